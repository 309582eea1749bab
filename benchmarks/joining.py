"""What joining a study of many trials costs a fresh process: ours, and Optuna's alone.

The same trials, each with twenty reports, are in our tables and in Optuna's, in one database. Every
measurement is a process of its own, and the two take turns. Timed are, after all imports:

- *join*: a `Search` and its first refresh; with Optuna, `load_study`;
- *first ask*: the draw of one trial, which for Optuna is when it reads the trials.

Memory is what the process holds at its highest, above what it held before.

    python benchmarks/joining.py [--storage URL] [--trials 10000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import filling
import optuna
from spread import spread

from tuner.ledger import Ledger
from tuner.ledger.database import addresses, open_ledger, optuna_storage, upgrade_ledger
from tuner.search import Search
from tuner.search.space import suggest

ARMS = ("tuner", "optuna")
MEGABYTE = 1024**2


def held(what: str) -> float:
    """Return the memory of the process in megabytes: current (VmRSS) or peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    assert found is not None, "expected Linux's /proc"
    return int(found[1]) * 1024 / MEGABYTE


def joined(arm: str, url: str, folder: Path, name: str, trials: int) -> dict[str, float]:
    """Join, ask once, and give seconds and megabytes."""
    places = addresses({"TUNER_DATABASE_URL": url}, folder)
    ledger = Ledger(open_ledger(places, create=False))
    study = ledger.study(name)
    storage = optuna_storage(places)
    before, began = held("VmRSS"), time.perf_counter()
    if arm == "tuner":
        search = Search(study, ledger)
        search.refresh()
        there = time.perf_counter()
        search.draw(trials)
    else:
        sampler = optuna.samplers.TPESampler(seed=0)
        plain = optuna.load_study(study_name=f"{name}, optuna's", storage=storage, sampler=sampler)
        there = time.perf_counter()
        suggest(plain.ask(), study.spec.space)
    asked = time.perf_counter()
    return {
        "join, s": there - began,
        "first ask, s": asked - there,
        "both, s": asked - began,
        "memory, MB": held("VmHWM") - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", help="a database's URL; a new SQLite file without it")
    parser.add_argument("--trials", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--study", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        found = joined(options.arm, options.storage, Path.cwd(), options.study, options.trials)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        url = options.storage or f"sqlite:///{folder}/tuner.db"
        name = f"joining, {options.trials} trials, {time.time():.0f}"
        fill(url, Path(folder), name, options.trials)
        rounds = [
            {arm: in_a_process(arm, url, name, options.trials) for arm in ARMS}
            for _ in range(options.rounds)
        ]
    report: dict[str, Any] = {
        "machine": platform.machine(),
        "database": (options.storage or "sqlite").partition(":")[0],
        "trials": options.trials,
        "reports": options.trials * filling.REPORTS,
        "rounds": options.rounds,
    }
    for arm in ARMS:
        report[arm] = {what: spread([one[arm][what] for one in rounds]) for what in rounds[0][arm]}
    for what in ("both, s", "memory, MB"):
        ratios = [one["optuna"][what] / one["tuner"][what] for one in rounds]
        report[f"optuna/tuner {what.partition(',')[0]}"] = spread(ratios)
    print(json.dumps(report, indent=2))
    result = Path(__file__).resolve().parent / "results" / f"joining-{report['database']}.json"
    result.write_text(json.dumps(report, indent=2) + "\n")


def fill(url: str, folder: Path, name: str, trials: int) -> None:
    """Insert the same trials into our tables and into Optuna's."""
    places = addresses({"TUNER_DATABASE_URL": url}, folder)
    upgrade_ledger(places)
    ledger = Ledger(open_ledger(places, create=False))
    spec = filling.spec_of(name)
    study, _ = ledger.submit(spec, limit=spec.budget.trials, workload={})
    found = list(filling.ended(spec, trials))
    filling.fill(ledger, study, found)
    filling.fill_optuna(optuna_storage(places), f"{name}, optuna's", found)


def in_a_process(arm: str, url: str, name: str, trials: int) -> dict[str, float]:
    """Measure one arm in a fresh process."""
    command = [sys.executable, __file__, "--arm", arm, "--storage", url, "--study", name]
    command += ["--trials", str(trials)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    found: dict[str, float] = json.loads(output.stdout)
    return found


if __name__ == "__main__":
    main()
