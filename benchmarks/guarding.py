"""Whom does the divergence guard stop? Real curves, and trials of our own that nothing stopped.

*Real curves*: runs of MLCommons' AlgoPerf, all of them from a file that is given, or the sample in
`tests/data`. Each evaluation is one observation, since a run has no other; missing losses are left
out, there is no warm-up, the rate is taken as constant, no baseline is known, and the horizon is
the run's own number of evaluations: all as the guard is most eager. Runs of one workload are ranked
by their last training loss, and by their last validation loss; who of the best half is stopped?

*Our own*: studies of this repository, every optimiser and schedule in turn, each trained to its
horizon whatever happens, at rates from a third of the stable limit to thirty times it, even in the
logarithm. The stable limit is measured: the lowest of rates by a factor of 1.5 whose loss is higher
after 15 steps at a constant rate. Then a guard sees the recorded losses and gradient norms. A trial
ends by the training loss of up to 1,000 rows before the first update and after the last:

- *lost*: not finite, or more than 10 times the level at which it began;
- *good*: at least a tenth below it; the rest is neither.

The half that is *seen* has the studies as in their files, on which the rules were made, though by
other seeds; the half that is *held out* has other shapes of model and other seeds. The same for the
real curves, where every other workload is held out, and none was looked at for the rules.

    python benchmarks/guarding.py [CURVES.jsonl.gz] [--runs 500]
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from studies import diabetes, digits, house_prices, mnist, quadratic, sine, text, wine
from tuner.spec import ParameterValue, Space, StudySpec, options
from tuner.training import optimizers
from tuner.training.batches import BatchOrder
from tuner.training.device import use_threads, without_subnormals
from tuner.training.loop import Trial
from tuner.training.pace import STATEFUL, pace
from tuner.training.schedules import SCHEDULES
from tuner.training.trainer import Task
from tuner.training.watch import Watch
from tuner.training.workloads import Workload, seeded

SAMPLE = Path(__file__).resolve().parent.parent / "tests" / "data" / "algoperf_sample.jsonl.gz"
F64 = torch.float64
LOST, GOOD = 10.0, 0.9  # levels of the beginning


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained."""

    name: str
    workload: Callable[[], Workload] | None  # None: the train function of studies/wine.py
    steps: int
    batch: int | str
    dtype: torch.dtype = torch.float32
    penalty: float = 1e-4  # of wine's


SEEN = (
    Case(name="house_prices", workload=house_prices.line, steps=50, batch="full", dtype=F64),
    Case(name="quadratic", workload=quadratic.parabola, steps=100, batch="full", dtype=F64),
    Case(name="sine", workload=sine.wave, steps=60, batch="full", dtype=torch.float64),
    Case(name="diabetes", workload=diabetes.patients, steps=200, batch=64),
    Case(name="diabetes, a line", workload=lambda: diabetes.patients(0), steps=200, batch=64),
    Case(name="digits", workload=digits.mlp, steps=300, batch=64),
    Case(name="mnist", workload=mnist.convolutional, steps=150, batch=64),
    Case(name="text", workload=text.transformer, steps=150, batch=16),
    Case(name="wine", workload=None, steps=60, batch="full"),
)  # fmt: skip
HELD_OUT = (
    Case(name="house_prices", workload=house_prices.line, steps=120, batch="full", dtype=F64),
    Case(name="quadratic", workload=lambda: quadratic.parabola(-30.0), steps=70, batch="full",
         dtype=F64),
    Case(name="sine", workload=lambda: sine.wave(2.5), steps=90, batch="full", dtype=F64),
    Case(name="diabetes", workload=lambda: diabetes.patients(64, 1), steps=150, batch=32),
    Case(name="diabetes, a line", workload=lambda: diabetes.patients(0, 1), steps=120, batch=16),
    Case(name="digits", workload=lambda: digits.mlp(32, 3, 1), steps=200, batch=32),
    Case(name="mnist", workload=lambda: mnist.convolutional(4, 1), steps=100, batch=32),
    Case(name="text", workload=lambda: text.transformer(8, 16, 2, 2), steps=200, batch=8),
    Case(name="wine", workload=None, steps=100, batch="full", penalty=1e-2),
)  # fmt: skip
OPTIMIZERS: tuple[dict[str, Any], ...] = (
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.9},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    *({"name": name} for name in optimizers.OPTIMIZERS if name != "sgd"),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trial that nothing stopped, and where the guard would have."""

    case: str
    params: dict[str, ParameterValue]
    ratio: float  # of its rate to the stable limit
    losses: np.ndarray  # float64 [step]
    began: float
    ended: float
    stopped: int | None = None
    reason: str = ""

    @property
    def levels(self) -> float:
        """How high it ended, in levels of its beginning; above a loss of 0, or the lowest."""
        if not math.isfinite(self.ended):
            return math.inf
        floor = min(0.0, np.min(self.losses, initial=0.0, where=np.isfinite(self.losses)))
        return (self.ended - floor) / max(abs(self.began), self.began - floor)


def complete(lr: float, schedule: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    """Give a trial's flat parameters; what is not said has its default."""
    space = Space.model_validate({"lr": lr, "schedule": schedule, "optimizer": optimizer})
    names = {"schedule": space.schedule[0].name, "optimizer": space.optimizer[0].name}
    entries = space.entries(**names)
    return {"lr": lr, **names, **{key: options(entry)[0] for key, entry in entries.items()}}


def spec_of(steps: int) -> StudySpec:
    """Give a study that has nothing but a horizon, evaluated ten times, and a guard."""
    return StudySpec.model_validate(
        {
            "study": {"name": "guarding"},
            "workload": {"factory": "studies.digits:mlp"},
            "training": {"steps": steps, "evaluate_every": max(1, steps // 10)},
            "space": {"lr": 0.1, "schedule": "constant", "optimizer": "sgd"},
            "search": {"sampler": "random", "pruner": "none"},
            "budget": {"trials": 1},
        }
    )


def watched(
    losses: Sequence[float], norms: Sequence[float], params: dict[str, Any], baseline: float | None
) -> tuple[int | None, str]:
    """Give the step where the guard would have stopped a recorded trial, and why."""
    steps = len(losses)
    watch = Watch(spec_of(steps), pace(params, steps, "minimize"), baseline)
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if reason := watch.see(float(loss), float(norm)):
            return step, reason
    return None, ""


def curves(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read AlgoPerf's runs by workload; numbers that were left out are left out."""
    runs = defaultdict(list)
    with gzip.open(path, "rt") as lines:
        for line in lines:
            run = json.loads(line)
            for name in ("train_loss", "validation_loss"):
                run[name] = [float(value) for value in run[name] if value is not None]
            runs[run["workload"]].append(run)
    return runs


def replayed(path: Path) -> list[dict[str, Any]]:
    """Let the guard watch every run; who it stops, and whether it ended in the best half."""
    constant = complete(1.0, {"name": "constant"}, {"name": "sgd"})
    rows = []
    for index, (workload, runs) in enumerate(sorted(curves(path).items())):
        best = {name: best_half(runs, name) for name in ("train_loss", "validation_loss")}
        for number, run in enumerate(runs):
            losses = run["train_loss"]
            stopped, reason = watched(losses, [0.0] * len(losses), constant, None)
            row = {"workload": workload, "half": "held out" if index % 2 else "seen"}
            row |= {name: number in ranks for name, ranks in best.items()}
            row |= {"stopped": stopped, "reason": reason, "evaluations": len(losses)}
            rows.append(row | {"lost": not -math.inf < losses[-1] <= LOST * losses[0]})
    return rows


def best_half(runs: list[dict[str, Any]], name: str) -> set[int]:
    """Give the places of the better half, by the last loss; what is not finite is last."""
    last = [run[name][-1] if run[name] else math.nan for run in runs]
    order = sorted(range(len(runs)), key=lambda n: last[n] if math.isfinite(last[n]) else math.inf)
    return set(order[: (len(order) + 1) // 2])


def trained(case: Case, workload: Workload | None, params: dict[str, Any], seed: int, steps: int,
            ) -> tuple[np.ndarray, np.ndarray, float, float]:  # fmt: skip
    """Train to the horizon, whatever happens; losses and norms [step], loss before and after."""
    if workload is None:
        return passes(case, params, seed, steps)
    inputs, targets = (
        data.to(case.dtype) if data.is_floating_point() else data
        for data in (workload.train_inputs, workload.train_targets)
    )
    order = BatchOrder(seed, len(inputs), case.batch)
    paced = pace(params, steps, "minimize")
    evaluated = spec_of(steps).evaluation_steps()
    losses, norms = [], []
    with seeded(seed), without_subnormals():
        model = workload.model(seed, case.dtype)
        parameters = list(model.parameters())
        optimizer = optimizers.make(params, parameters)

        def whole() -> float:
            with torch.no_grad():
                return workload.loss(model.eval()(inputs[:1000]), targets[:1000]).item()

        began = whole()
        for step in range(steps):
            rows = order.rows(step)
            batch = (inputs, targets) if rows is None else (inputs[rows], targets[rows])
            for group in optimizer.param_groups:
                group["lr"] = paced.rate(step)
            optimizer.zero_grad()
            loss = workload.loss(model.train()(batch[0]), batch[1])
            loss.backward()
            gradient = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
            losses.append(loss.item())
            norms.append(torch.linalg.vector_norm(gradient).item())
            optimizer.step()
            if params["schedule"] in STATEFUL and step + 1 in evaluated:
                value = whole()
                if math.isfinite(value):
                    paced.evaluated(step + 1, value)
        return np.array(losses), np.array(norms), began, whole()


class Losses:
    """Takes what a train function reports; a `Recorder` that never stops it."""

    first_step = 0

    def __init__(self) -> None:
        self.seen: list[float] = []

    def report(self, step: int, row: tuple[float, float, float] | None, metrics: object) -> None:
        self.seen += [] if row is None else [row[0]]

    def due(self) -> bool:
        return False

    def save(self, state: object) -> None: ...

    def load(self) -> None: ...


def passes(case: Case, params: dict[str, Any], seed: int, steps: int
           ) -> tuple[np.ndarray, np.ndarray, float, float]:  # fmt: skip
    """Let wine's own loop run; scikit-learn raises where weights are no longer finite."""
    recorder, spec = (
        Losses(),
        spec_of(steps + 1),
    )  # one more pass, whose loss is that after the last
    task = Task(number=0, seed=seed, params=params)
    try:
        wine.train(Trial(task, spec, recorder), case.penalty)  # type: ignore[arg-type]
    except ValueError:
        recorder.seen += [math.nan] * (steps + 1 - len(recorder.seen))
    losses = np.array(recorder.seen)
    return losses[:-1], np.zeros(steps), losses[0], losses[-1]


def stable_limit(case: Case, workload: Workload | None, optimizer: dict[str, Any]) -> float:
    """Measure the lowest rate that is too high; 2 where none is, as on a sine."""
    for rate in 1e-3 * 1.5 ** np.arange(46):
        params = complete(float(rate), {"name": "constant"}, optimizer)
        _, _, began, ended = trained(case, workload, params, 1, 15)
        if not ended <= began:
            return float(rate)
    return 2.0


def runs_of(cases: Iterable[Case], runs: int, seed: int) -> list[Run]:
    """Train so many trials of each case, and let the guard watch them."""
    found = []
    for number, case in enumerate(cases):
        workload = case.workload and case.workload()
        draws = np.random.default_rng([seed, number])
        limits: dict[int, float] = {}
        for index in range(runs):
            # wine's loop has an optimiser of its own
            which = (index + number) % len(OPTIMIZERS) if workload else 0
            optimizer = OPTIMIZERS[which]
            if which not in limits:
                limits[which] = stable_limit(case, workload, optimizer)
            names = (*SCHEDULES, *STATEFUL) if workload else tuple(SCHEDULES)
            name = names[(7 * index + number) % len(names)]
            own = {"milestones": "0.5,0.75"} if name == "multistep" else {}
            ratio = 10 ** draws.uniform(-0.5, 1.5)
            schedule = {"name": name, "warmup": float(draws.choice([0.0, 0.1])), **own}
            params = complete(ratio * limits[which], schedule, optimizer)
            trial = trained(case, workload, params, int(draws.integers(2**31)), case.steps)
            baseline = workload.baseline_loss if workload else wine.train.baseline_loss  # type: ignore[attr-defined]
            stopped, reason = watched(trial[0], trial[1], params, baseline)
            run = Run(case=case.name, params=params, ratio=ratio, losses=trial[0], began=trial[2],
                      ended=trial[3], stopped=stopped, reason=reason)  # fmt: skip
            found.append(run)
    return found


def share(name: str, stopped: int, runs: int) -> dict[str, Any]:
    """Give and print a share with its 95 percent interval by Clopper and Pearson."""
    if not runs:
        return {"stopped": 0, "runs": 0}
    low, high = binomtest(stopped, runs).proportion_ci(0.95, "exact")
    print(f"{name}: {stopped} of {runs}, {stopped / runs:.2%} ({low:.2%} to {high:.2%})")
    return {"stopped": stopped, "runs": runs, "share": stopped / runs, "interval": [low, high]}


def of_curves(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up what the guard does to real curves."""
    report: dict[str, Any] = {"runs": len(rows)}
    for half in ("all", "seen", "held out"):
        own = [row for row in rows if half in ("all", row["half"])]
        report[half] = {
            f"best half by {name}": share(
                f"real, {half}, best half by {name}",
                sum(row[name] and row["stopped"] is not None for row in own),
                sum(row[name] for row in own),
            )
            for name in ("train_loss", "validation_loss")
        }
        lost = [row for row in own if row["lost"]]
        report[half]["lost"] = share(
            f"real, {half}, lost", sum(row["stopped"] is not None for row in lost), len(lost)
        )
    return report


def of_trials(name: str, runs: list[Run]) -> dict[str, Any]:
    """Sum up what the guard does to trials that nothing stopped."""
    kinds = {
        "not finite": [run for run in runs if run.levels == math.inf],
        "far worse": [run for run in runs if LOST < run.levels < math.inf],
        "lost": [run for run in runs if run.levels > LOST],
        "good": [run for run in runs if run.levels < GOOD],
        "neither": [run for run in runs if GOOD <= run.levels <= LOST],
    }
    report: dict[str, Any] = {"runs": len(runs)}
    for kind, own in kinds.items():
        report[kind] = share(f"{name}, {kind}", sum(r.stopped is not None for r in own), len(own))
    at = [run.stopped / len(run.losses) for run in kinds["lost"] if run.stopped is not None]
    steps = sum(len(run.losses) for run in runs)
    saved = sum(len(r.losses) - r.stopped for r in runs if r.stopped is not None)
    of_lost = sum(len(run.losses) for run in kinds["lost"])
    report["stop, share of the horizon"] = np.quantile(at, [0.1, 0.5, 0.9]).tolist() if at else []
    report["saved, of all steps"] = saved / steps
    saved_lost = sum(len(r.losses) - r.stopped for r in kinds["lost"] if r.stopped is not None)
    report["saved, of the steps of lost trials"] = saved_lost / max(of_lost, 1)
    print(f"{name}: stopped at {report['stop, share of the horizon']} of the horizon (10, 50 and "
          f"90 percent); saved {saved / steps:.1%} of all steps")  # fmt: skip
    return report


def mistaken(runs: list[Run]) -> list[dict[str, Any]]:
    """Give the trials where the guard was wrong."""
    return [
        {"case": run.case, "ratio": run.ratio, "ended at levels": run.levels,
         "stopped": run.stopped, "steps": len(run.losses), "reason": run.reason, **run.params}
        for run in runs
        if (run.levels > LOST and run.stopped is None)
        or (run.levels < GOOD and run.stopped is not None)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("curves", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--runs", type=int, default=500)
    given = parser.parse_args()
    use_threads(1)
    report: dict[str, Any] = {"curves": {"file": given.curves.name}}
    report["curves"] |= of_curves(replayed(given.curves))
    each, began = math.ceil(given.runs / len(SEEN + HELD_OUT)), time.perf_counter()
    seen, held_out = runs_of(SEEN, each, 100), runs_of(HELD_OUT, each, 200)
    print(f"trained for {time.perf_counter() - began:.0f} s")
    report["trials"] = {
        "all": of_trials("all", seen + held_out),
        "seen": of_trials("seen", seen),
        "held out": of_trials("held out", held_out),
        "mistaken": mistaken(seen + held_out),
    }
    for case in SEEN:
        own = [run for run in seen + held_out if run.case == case.name]
        report["trials"][case.name] = of_trials(case.name, own)
    path = Path(__file__).resolve().parent / "results" / "guard.json"
    path.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
