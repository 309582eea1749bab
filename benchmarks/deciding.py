"""How often is the decided answer the truth? Races replayed on many fully trained seeds.

    python -m benchmarks.deciding train FOLDER [--seeds 24] [--studies 1]

searches the digits example with several seeds, trains the best trial of each schedule under many
common seeds, and adds the values to the results. Whatever is trained already is not repeated, so
an interrupted run is continued by the same command.

    python -m benchmarks.deciding replay [--races 400]

draws the seeds of races at random from those values, without replacement, and compares what a race
says with the means over all seeds: is the candidate that it takes within the stated bound of the
best one, and does no candidate beat a better one? The truth has a standard error of its own, which
is printed, and shares seeds with the races, so the shares of true answers are a little too high.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import tuner
from tuner.analysis import deciding, racing
from tuner.analysis.racing import Question, race
from tuner.core.outcome import COMPLETED
from tuner.ledger.deciding import add_rounds, cell_of
from tuner.operations import context, run
from tuner.worker.deciding import round_seed, submit

RESULTS = Path(__file__).with_name("results") / "deciding.json"
STUDY = Path(__file__).parents[1] / "studies" / "digits.toml"
BUDGETS = (9, 20, 40, 60)


def trained(seed: int, seeds: int) -> dict[str, Any]:
    """Return the values of the best trial of each schedule of one study, by label."""
    name = f"digits {seed}"
    overrides = {"study.name": name, "study.seed": seed, "budget.trials": 60, "budget.decide": 0.0}
    tuner.run(STUDY, overrides=overrides)
    ledger = context.open_ledger()
    study = ledger.study(name)
    best = deciding.candidates(study, ledger.trials(study.id))
    found = deciding.best_of_each(best, "schedule")
    again = submit(ledger, study)
    cells = [(one, r, round_seed(study, r)) for r in range(seeds) for one in found]
    add_rounds(ledger, again, study, cells)
    run.train_study(ledger, context.addresses(), again, context.PREFIXES)
    values: dict[str, list[float | None]] = {}
    for one in found:
        own: list[float | None] = [None] * seeds
        for trial in ledger.trials(again.id):
            _, number, round_ = cell_of(trial.attrs) or ("", -1, seeds)
            if number == one.number and round_ < seeds and trial.state == COMPLETED:
                own[round_] = trial.value
        values[str((one.params or {})["schedule"])] = own
    return {"study": "digits", "seed": seed, "searched": [one.value for one in found],
            "values": values}  # fmt: skip


def replay(study: dict[str, Any], trainings: int, races: int) -> str:
    """Return a line about races of so many trainings, with seeds drawn from a study's."""
    labels = list(study["values"])
    values = np.array([study["values"][one] for one in labels])  # [candidate, seed]
    most = min(len(labels), racing.candidates_within(trainings))
    truth = values[:most].mean(axis=1)
    asked = [Question(name="schedule", labels=dict(enumerate(labels[:most])))]
    limits, rng = deciding.within(trainings), np.random.default_rng(0)
    decided, true, spent, right = [], [], [], []
    for _ in range(races):
        order = rng.permutation(values.shape[1])
        ended: dict[tuple[int, int], float | None] = {}
        while todo := race(asked, ended, limits).todo:
            ended |= {(one, r): values[one, order[r % len(order)]] for one, r in todo}
        (answer,) = race(asked, ended, limits).answers
        decided.append(answer.decided)
        spent.append(len(ended))
        beats = all(truth[one.loser] >= truth[one.winner] for one in answer.beaten)
        bounds = all(truth[one] - truth.min() <= bound for one, bound in answer.bounds.items())
        true.append(beats and bounds)
        margin = answer.margin or 0.0
        right.append(truth[answer.take] - truth.min() <= margin)
    share = np.mean(true)
    error = 1.96 * np.sqrt(share * (1 - share) / races)
    return (
        f"{study['study']} {study['seed']}, {trainings} trainings of {most} candidates: "
        f"decided {np.mean(decided):.0%}, all that is said is true {share:.1%} ± {error:.1%}, "
        f"taken within the margin {np.mean(right):.1%}, {np.mean(spent):.1f} trained"
    )


def main() -> None:
    """Train, or replay."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    training.add_argument("--seeds", type=int, default=24)
    training.add_argument("--studies", type=int, default=1)
    replaying = commands.add_parser("replay")
    replaying.add_argument("--races", type=int, default=400)
    asked = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if asked.command == "train":
        asked.folder.mkdir(parents=True, exist_ok=True)
        os.chdir(asked.folder)
        for seed in range(asked.studies):
            if all(one["seed"] != seed for one in known):
                known.append(trained(seed, asked.seeds))
                RESULTS.write_text(json.dumps(known, indent=1) + "\n")
        return
    for study in known:
        values = np.array(list(study["values"].values()))
        means = ", ".join(
            f"{label} {np.mean(own):.4f} ± {np.std(own, ddof=1) / np.sqrt(len(own)):.4f}"
            for label, own in study["values"].items()
        )
        print(f"{study['study']} {study['seed']}, {values.shape[1]} seeds: {means}")
        for trainings in BUDGETS:
            print(replay(study, trainings, asked.races), flush=True)


if __name__ == "__main__":
    main()
