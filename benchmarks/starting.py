"""Does a search that starts from a probe find more on the digits than one that does not?

Both have the same study, seeds and number of trials; the first spends a probe beside. For each: the
best validation loss, after half of the trials and after all; how many trials diverged; the steps of
all trials, and of the probe.

    python benchmarks/starting.py [--seeds 3] [--trials 24] [--write]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from tuner.config import reading
from tuner.ledger import Ledger, database, ranges
from tuner.operations import submit
from tuner.worker import work

STUDY = Path(__file__).parents[1] / "studies" / "digits.toml"
RESULTS = Path(__file__).parent / "results" / "starting.json"
PREFIXES = ("studies.",)


def searched(seed: int, trials: int, *, probe: bool) -> dict[str, Any]:
    """Run one whole search in a folder of its own."""
    changes = [f"study.seed={seed}", f"budget.trials={trials}", "training.trainer=cohort"]
    changes += ["budget.decide=0", "training.slots=1", f"probe.enabled={str(probe).lower()}"]
    spec = reading.load(STUDY, changes)
    with tempfile.TemporaryDirectory() as folder:
        places = database.addresses({}, Path(folder))
        ledger = Ledger(database.open_ledger(places, create=True))
        described = submit.prepare(spec, PREFIXES).description
        study, _ = submit.submit(ledger, spec, described)
        work(
            ledger,
            places,
            names=[study.name],
            prefixes=PREFIXES,
            stop=threading.Event(),
            until_idle=True,
        )
        done = ledger.trials(study.id)
        changed = ranges.history(ledger.study(study.name).attrs)
    values = [trial.value for trial in done if trial.state == "completed" and trial.value]
    early = [
        trial.value for trial in done[: trials // 2] if trial.state == "completed" and trial.value
    ]
    return {
        "best": min(values),
        "best of the first half": min(early) if early else None,
        "ended": dict(Counter(trial.state for trial in done)),
        "steps": sum(trial.steps for trial in done),
        "ranges": [(one.low, one.high) for one in changed],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--write", action="store_true", help="write results/starting.json")
    chosen = parser.parse_args()
    found: dict[str, Any] = {}
    for name, probe in (("with a probe", True), ("without", False)):
        runs = [searched(seed, chosen.trials, probe=probe) for seed in range(chosen.seeds)]
        found[name] = {"median best": statistics.median(r["best"] for r in runs), "seeds": runs}
    text = json.dumps(found, indent=1)
    print(text)
    if chosen.write:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
