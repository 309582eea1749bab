"""What asking costs beside many trials that have ended: ours, and Optuna's alone.

The same trials are in our tables and in Optuna's, in one database. Each round asks ours and then
Optuna for a trial, reports once, asks whether to stop, and ends it:

- *ask*: a claim, the draw and its commit; with Optuna, `ask` and the suggestions;
- *draw* (ours alone): the part of it that is not the ledger's, refresh included;
- *decide*: the answer at a rung; with Optuna, `report` and `should_prune`;
- *tell*: the outcome's commit; with Optuna, `tell`.

Both have their trials in memory when the first round begins, and both sample with tpe.

    python benchmarks/asking.py [--storage URL] [--trials 100 1000 10000] [--rounds 20]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filling
import optuna
from spread import spread

from tuner.config import StudySpec
from tuner.core.outcome import COMPLETED, Outcome
from tuner.ledger import Ledger, StudyRecord
from tuner.ledger.database import addresses, open_ledger, optuna_storage, upgrade_ledger
from tuner.search import Search
from tuner.search.space import suggest
from tuner.training.device import use_threads

PRUNERS = {
    "asha": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=10, reduction_factor=3),
    "median": optuna.pruners.MedianPruner,
    "hyperband": lambda: optuna.pruners.HyperbandPruner(
        min_resource=10, max_resource=10 * filling.REPORTS + 10, reduction_factor=3
    ),
}
RUNG = 10
"""The step at which each trial reports."""

Times = defaultdict[str, list[float]]


@contextmanager
def timed(times: Times, what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    times[what].append(time.perf_counter() - began)


def ours(ledger: Ledger, study: StudyRecord, search: Search, times: Times) -> None:
    """Ask, decide and tell once."""
    with timed(times, "ask"):
        claim = ledger.claim(study.id, "benchmark", {})
        assert claim is not None
        number = claim.trial.number
        with timed(times, "draw"):
            draw = search.draw(number)
        ledger.draw(
            claim.lease,
            draw.params,
            attrs=draw.attrs,
            study_attrs=draw.study_attrs,
            asked_revision=draw.revision,
        )
    with timed(times, "decide"):
        search.decide(number, RUNG, float(number))
    outcome = Outcome(kind=COMPLETED, reason="As the benchmark has it.", value=float(number))
    with timed(times, "tell"):
        ledger.finish(claim.lease, outcome)


def optunas(study: optuna.Study, spec: StudySpec, times: Times) -> None:
    """Ask, decide and tell once."""
    with timed(times, "ask"):
        trial = study.ask()
        suggest(trial, spec.space)
    with timed(times, "decide"):
        trial.report(float(trial.number), RUNG)
        trial.should_prune()
    with timed(times, "tell"):
        study.tell(trial, float(trial.number))


def measured(url: str, folder: Path, pruner: str, trials: int, rounds: int) -> dict[str, Any]:
    """Time both beside so many trials; give milliseconds and ratios."""
    places = addresses({"TUNER_DATABASE_URL": url}, folder)
    upgrade_ledger(places)
    ledger = Ledger(open_ledger(places, create=False))
    name = f"asking, {trials} trials, {pruner}, {time.time():.0f}"
    spec = filling.spec_of(name, pruner=pruner)
    study, _ = ledger.submit(spec, limit=spec.budget.trials, workload={})
    found = list(filling.ended(spec, trials))
    filling.fill(ledger, study, found)
    storage = optuna_storage(places)
    filling.fill_optuna(storage, f"{name}, optuna's", found)
    plain = optuna.create_study(
        storage=storage,
        study_name=f"{name}, optuna's",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=PRUNERS[pruner](),
    )
    search, arms = Search(study, ledger), {"tuner": Times(list), "optuna": Times(list)}
    for _ in range(rounds + 1):  # the first one reads all trials
        ours(ledger, study, search, arms["tuner"])
        optunas(plain, spec, arms["optuna"])
    report: dict[str, Any] = {
        arm: {what: in_milliseconds(seconds[1:]) for what, seconds in times.items()}
        for arm, times in arms.items()
    }
    for what in ("ask", "decide", "tell"):
        pairs = zip(arms["tuner"][what][1:], arms["optuna"][what][1:], strict=True)
        ratios = [theirs / mine for mine, theirs in pairs]
        report[f"optuna/tuner {what}"] = spread(ratios)
    return report


def in_milliseconds(seconds: list[float]) -> dict[str, float]:
    return spread([1000 * one for one in seconds])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", help="a database's URL; a new SQLite file without it")
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--pruners", nargs="+", choices=PRUNERS, default=list(PRUNERS))
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    use_threads(1)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    report: dict[str, Any] = {
        "machine": platform.machine(),
        "database": (options.storage or "sqlite").partition(":")[0],
        "rounds": options.rounds,
        "unit": "ms",
    }
    for pruner in options.pruners:
        for trials in options.trials:
            with tempfile.TemporaryDirectory() as folder:
                url = options.storage or f"sqlite:///{folder}/tuner.db"
                found = measured(url, Path(folder), pruner, trials, options.rounds)
            report[f"{trials} trials, {pruner}"] = found
            mine, theirs = found["tuner"], found["optuna"]
            line = [
                f"{what} {mine[what]['median']:.1f} ms, optuna {theirs[what]['median']:.1f} ms"
                for what in theirs
            ]
            print(
                f"{trials} trials, {pruner}: {'; '.join(line)}; "
                f"draw {mine['draw']['median']:.1f} ms",
                flush=True,
            )  # fmt: skip
    result = Path(__file__).resolve().parent / "results" / f"asking-{report['database']}.json"
    result.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
