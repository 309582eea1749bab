"""What recording costs: a trial of about ten seconds, trained and recorded, and trained bare.

Three arms run in turn, so that a machine whose speed drifts slows all of them alike:

- *bare*: the loop a person writes who records nothing: model, loss, optimizer, rate, and the
  evaluations of the study, one number at the end;
- *measured*: our trainer, which also takes every step's loss and gradient norm and guards against
  divergence, with nothing written anywhere;
- *recorded*: the whole service: lease, drawing, curve chunks, checkpoints, reports and the
  outcome in the ledger, while a recorder beside it publishes to Optuna's tables and to MLflow.

Every arm trains the same model on the same batches with one thread, and its training is timed
from the first step to the last; imports and first starts are not. The ratio of each round is
taken before the median.

    python benchmarks/recording.py [--rounds 5] [--seconds 10] [--hidden 64]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from tuner.config import StudySpec, reading
from tuner.core.processes import RecorderProcess
from tuner.examples import digits
from tuner.ledger import Ledger
from tuner.ledger.database import addresses, open_ledger, upgrade_tracking
from tuner.operations import submit
from tuner.training import optimizers, schedules
from tuner.training.device import use_threads
from tuner.training.reference import BatchOrder, ReferenceTrainer
from tuner.training.trainer import Status, Task, seed_of
from tuner.worker import work

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the studies
STUDY = """
[study]
name = "recording {index}"
[workload]
factory = "studies.digits:mlp"
arguments = {{ hidden = {hidden} }}
[training]
steps = {steps}
evaluate_every = {every}
trainer = "reference"
[space]
lr = 0.05
schedule = {{ name = "cosine", warmup = 0.1 }}
optimizer = {{ name = "sgd", momentum = 0.9 }}
[search]
sampler = "grid"
[budget]
trials = 1
"""


def spec_of(index: int, steps: int, hidden: int) -> StudySpec:
    text = STUDY.format(index=index, steps=steps, every=max(1, steps // 20), hidden=hidden)
    return reading.parse(text, "benchmark")


def params_of(spec: StudySpec) -> dict[str, float | int | bool | str]:
    schedule, optimizer = spec.space.schedule[0], spec.space.optimizer[0]
    own = {**dict(schedule.entries()), **dict(optimizer.entries())}
    return {"lr": 0.05, "schedule": schedule.name, "optimizer": optimizer.name, **own}


def bare(spec: StudySpec, hidden: int) -> float:
    """Train without recording, and give the seconds."""
    workload = digits.mlp(hidden=hidden)
    params, steps = params_of(spec), spec.training.steps
    seed = seed_of(spec, 0)
    model = workload.model(seed, torch.float32)
    inputs, targets = workload.train_inputs.float(), workload.train_targets
    validation = workload.validation_inputs.float(), workload.validation_targets
    optimizer = optimizers.make(params, list(model.parameters()))
    rates = (0.05 * schedules.multipliers(params, steps)).tolist()
    order = BatchOrder(seed, len(inputs), spec.training.batch_size)
    evaluations = set(spec.evaluation_steps())
    best = float("inf")
    began = time.perf_counter()
    for step in range(steps):
        rows = order.rows(step)
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad()
        loss = workload.loss(model(inputs[rows]), targets[rows])
        loss.backward()
        optimizer.step()
        if step + 1 in evaluations:
            model.eval()
            with torch.no_grad():
                outputs = model(validation[0])
                best = min(best, workload.loss(outputs, validation[1]).item())
                for measure in workload.metrics.values():
                    measure(outputs, validation[1]).item()
            model.train()
    return time.perf_counter() - began


def measured(spec: StudySpec, hidden: int) -> float:
    """Train with our trainer and throw away what it measures; give the seconds."""
    trainer = ReferenceTrainer(digits.mlp(hidden=hidden), spec)
    trainer.admit(Task(number=0, seed=seed_of(spec, 0), params=params_of(spec)))
    began = time.perf_counter()
    while True:
        (event,) = trainer.advance(500)
        if event.status is Status.FINISHED:
            return time.perf_counter() - began
        assert event.status is not Status.DIVERGED, event.reason


def recorded(spec: StudySpec, folder: Path) -> float:
    """Train as the service does, a recorder beside it; give the seconds of the attempt."""
    places = addresses({}, folder)
    ledger = Ledger(open_ledger(places, create=True))
    described = submit.prepare(spec, ["studies."]).description
    study, _ = submit.submit(ledger, spec, described)
    recorder = RecorderProcess([study.name])
    work(
        ledger,
        places,
        names=[study.name],
        prefixes=["studies."],
        stop=threading.Event(),
        until_idle=True,
    )
    recorder.close()
    (trial,) = ledger.trials(study.id)
    assert trial.state == "completed", trial.reason
    assert trial.steps == spec.training.steps
    (attempt,) = ledger.attempts(study.id)
    assert attempt.ended_at is not None
    return attempt.ended_at - attempt.started_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--hidden", type=int, default=64)
    options = parser.parse_args()
    use_threads(1)
    trial = spec_of(0, 1000, options.hidden)
    steps = round(1000 * options.seconds / min(bare(trial, options.hidden) for _ in range(3)))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        upgrade_tracking(addresses({}, Path(folder)))
        os.chdir(folder)  # the recorder finds the same files
        for index in range(options.rounds):
            spec = spec_of(index, steps, options.hidden)
            row = {
                "bare": bare(spec, options.hidden),
                "measured": measured(spec, options.hidden),
                "recorded": recorded(spec, Path(folder)),
            }
            rows.append(row)
            print(f"round {index}: " + ", ".join(f"{k} {v:.2f} s" for k, v in row.items()))
    report = {"machine": platform.machine(), "steps": steps, "hidden": options.hidden}
    for above, below in (("recorded", "bare"), ("recorded", "measured"), ("measured", "bare")):
        ratios = sorted(row[above] / row[below] for row in rows)
        median = statistics.median(ratios)
        report[f"{above}/{below}"] = {"min": ratios[0], "median": median, "max": ratios[-1]}
        print(f"{above}/{below}: {median:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    result = Path(__file__).resolve().parent / "results" / f"recording-{options.hidden}.json"
    result.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
