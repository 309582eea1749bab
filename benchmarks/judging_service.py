"""What search and early judging are worth in the whole service: the chosen trial at equal steps.

    python -m benchmarks.judging_service [digits] [text] … [--seeds 20] [--trials 40]

Each seed of each problem is a study per arm, with eight slots. An arm is a sampler and a pruner;
that of the defaults trains `--trials` trials. Every other study gets trials until it has used as
many steps, those of branches included, to within half a trial. The value is that of the trial that
the study would choose: the best that ran to the horizon. The value again is the mean loss of its
parameters under three seeds that did not choose it. Lower is better.

Differences are paired by seed; the interval is a 95 % bootstrap interval over seeds. Studies that
are in the results already are not trained again, so an interrupted run is continued by the same
command.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState

from tuner.config import reading
from tuner.core.outcome import COMPLETED, PRUNED
from tuner.ledger import Ledger, StudyRecord, database
from tuner.ledger.deciding import add_rounds
from tuner.ledger.records import TrialRecord
from tuner.operations import submit
from tuner.search.mirror import Mirror, TrialsByNumber
from tuner.worker import deciding, work

RESULTS = Path(__file__).with_name("results") / "judging_service.jsonl"
TELLING = "default, gp told branches"
ARMS = {  # by name: sampler, pruner
    "default": ('"auto"', "one_rung"),
    "no pruning": ('"auto"', "none"),
    "median": ('"auto"', "median"),
    "asha": ('"auto"', "asha"),
    "tpe, median": ('{ name = "tpe", start = "random" }', "median"),  # both as Optuna has them
    TELLING: ('"auto"', "one_rung"),
    "random": ('"random"', "none"),
}
SEEDS_AGAIN = 3
PREFIXES = ["studies.", "tuner.examples."]
STUDY = """
[study]
name = "{name}"
seed = {seed}

[search]
sampler = {sampler}
pruner = "{pruner}"

[budget]
trials = {trials}
decide = 0

[space.optimizer]
{optimizer}
{rest}
"""
ADAMW = 'name = "adamw"\nweight_decay = { low = 1e-4, high = 1e-1 }'
SCHEDULES = """
[space]
lr = { low = 1e-4, high = 1.0 }
schedule = ["constant", "linear", "cosine", "step", "wsd", "one_cycle"]
"""
PROBLEMS = {  # by name: factory, steps of a trial, training
    "digits": ("tuner.examples.digits:mlp", 300, "batch_size = 64\nevaluate_every = 30"),
    "tabular": ("tuner.examples.tabular:tumours", 280, "batch_size = 32\nevaluate_every = 28"),
    "text": ("tuner.examples.text:transformer", 300, "batch_size = 16\nevaluate_every = 30"),
    "mnist": ("tuner.examples.mnist:convolutional", 150, "batch_size = 64\nevaluate_every = 15"),
}


def study_file(problem: str, arm: str, seed: int, trials: int) -> str:
    """Return the study file of an arm."""
    factory, steps, training = PROBLEMS[problem]
    sampler, pruner = ARMS[arm]
    rest = f'[workload]\nfactory = "{factory}"\n'
    if problem == "text":
        rest += "arguments = { context = 16, width = 32, heads = 4, layers = 2 }\n"
    rest += f'[training]\nsteps = {steps}\nslots = 8\ntrainer = "cohort"\n{training}\n'
    return SCHEDULES + STUDY.format(
        name=f"{problem} {arm} {seed}",
        seed=seed,
        sampler=sampler,
        pruner=pruner,
        trials=trials,
        optimizer=ADAMW,
        rest=rest,
    )


def train(ledger: Ledger, places: database.Addresses, text: str) -> StudyRecord:
    """Train what a study file lacks, as a worker does."""
    spec = reading.parse(text, "benchmark")
    study, _ = submit.submit(ledger, spec, submit.prepare(spec, PREFIXES).description)
    finish(ledger, places, study)
    return ledger.study(study.name)


def finish(ledger: Ledger, places: database.Addresses, study: StudyRecord) -> None:
    """Train the trials that a study has left."""
    work(
        ledger,
        places,
        names=[study.name],
        prefixes=PREFIXES,
        stop=threading.Event(),
        until_idle=True,
    )


def again(
    ledger: Ledger, places: database.Addresses, study: StudyRecord, chosen: TrialRecord
) -> float:
    """Return the mean value of a trial's parameters under seeds that did not choose it."""
    other = deciding.submit(ledger, study)
    rounds = range(SEEDS_AGAIN)
    cells = [(chosen, one, deciding.round_seed(study, one)) for one in rounds]
    add_rounds(ledger, other, study, cells)
    finish(ledger, places, other)
    values = [one.value for one in ledger.trials(other.id)]
    return float(np.mean([np.nan if one is None else one for one in values]))


@contextmanager
def gp_told_branches(ledger: Ledger) -> Iterator[None]:
    """Let the gp take a pruned trial's value from its branch, not from its last report.

    The value is that of the branch plus what completed trials gained from there, in the median.
    """
    branches: dict[tuple[str, int], float] = {}

    def read(mirror: Mirror) -> None:
        for trial in ledger.trials(ledger.study(mirror.name).id):
            key = mirror.name, trial.number
            if key not in branches and trial.state in (COMPLETED, PRUNED):
                for one in ledger.curve(trial.id).branches:
                    branches[key] = one.metrics["val_loss"]

    before = Mirror._with_values

    def with_values(mirror: Mirror) -> TrialsByNumber:
        if any(one.state == TrialState.PRUNED for one in mirror._all):
            read(mirror)
        told = {number: value for (name, number), value in branches.items() if name == mirror.name}
        valued = before(mirror)
        gains = [
            one.value - told[one.number]
            for one in mirror._all
            if one.state == TrialState.COMPLETE and one.value is not None and one.number in told
        ]
        for one in valued:
            if gains and mirror._outcomes.get(one.number) == PRUNED and one.number in told:
                one.value = told[one.number] + float(np.median(gains))
        return valued

    Mirror._with_values = with_values  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Mirror._with_values = before  # type: ignore[method-assign,assignment]


def steps_of(ledger: Ledger, study: StudyRecord) -> int:
    """Return the steps of all trials of a study and of their branches."""
    trials = ledger.trials(study.id)
    branches = [one for trial in trials for one in ledger.curve(trial.id).branches]
    return sum(trial.steps for trial in trials) + sum(len(one.losses) for one in branches)


def outcome(problem: str, arm: str, seed: int, trials: int, steps: int | None) -> dict[str, Any]:
    """Train an arm until it has used so many steps, or all its trials if there is no limit."""
    horizon = PROBLEMS[problem][1]
    with tempfile.TemporaryDirectory() as name:
        places = database.addresses({}, Path(name))
        ledger = Ledger(database.open_ledger(places, create=True))
        budget = trials if steps is None else max(8, steps // horizon)
        while True:
            with gp_told_branches(ledger) if arm == TELLING else nullcontext():
                study = train(ledger, places, study_file(problem, arm, seed, budget))
            used = steps_of(ledger, study)
            if steps is None or steps - used < horizon / 2:
                break
            budget += max(1, round((steps - used) / horizon))
        whole = [
            one
            for one in ledger.trials(study.id)
            if one.state == COMPLETED and one.value is not None
        ]
        chosen = min(whole, key=lambda one: one.value or 0.0)
        found = {
            "trials": budget,
            "whole": len(whole),
            "steps": used,
            "value": chosen.value,
            "again": again(ledger, places, study, chosen),
        }
        ledger.engine.dispose()
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the differences from the default, paired by seed."""
    lines = [
        "| problem | arm | seeds | trials | steps | value | less default | again | less default |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for problem in PROBLEMS:
        of_problem = [one for one in rows if one["problem"] == problem]
        by_arm = {
            arm: {one["seed"]: one for one in of_problem if one["arm"] == arm} for arm in ARMS
        }
        seeds = sorted(set.intersection(*(set(some) for some in by_arm.values())))
        if not seeds:
            continue
        for arm, some in by_arm.items():
            trials, steps = (np.mean([some[n][key] for n in seeds]) for key in ("trials", "steps"))
            line = f"| {problem} | {arm} | {len(seeds)} | {trials:.0f} | {steps:.0f} "
            for key in ("value", "again"):
                values = np.array([some[n][key] for n in seeds])
                less = values - [by_arm["default"][n][key] for n in seeds]
                draws = np.random.default_rng(0).integers(len(seeds), size=(4000, len(seeds)))
                low, high = np.quantile(less[draws].mean(axis=1), [0.025, 0.975])
                line += f"| {values.mean():.4f} | {less.mean():+.4f} ({low:+.4f} to {high:+.4f}) "
            lines.append(line + "|")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line; train what the results lack."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("problems", nargs="*", metavar="PROBLEM", choices=[*PROBLEMS, []])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=40)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.disable(logging.WARNING)  # asha's warning, which is what this measures
    rows = [json.loads(line) for line in RESULTS.open()] if RESULTS.exists() else []
    known = {(one["problem"], one["arm"], one["seed"]): one for one in rows}
    for seed in range(asked.seeds):
        for problem in asked.problems or PROBLEMS:
            for arm in ARMS:
                if (problem, arm, seed) in known:
                    continue
                first = known.get((problem, "default", seed))
                steps = None if first is None else first["steps"]
                found = outcome(problem, arm, seed, asked.trials, steps)
                row = {"problem": problem, "arm": arm, "seed": seed, **found}
                known[problem, arm, seed] = row
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    print(table(list(known.values())))


if __name__ == "__main__":
    main()
