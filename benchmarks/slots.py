"""The cost of concurrent trials in search quality: the best value found, by the number of slots.

A search asks for a trial whenever a slot is free, and a running trial has no result yet. The
sampler is tpe, compared with random search, which learns nothing. The objective stands for what a
study of rates looks like: a parabola over log10 lr, with another best rate for each optimizer, a
better schedule, noise, and divergence above ten times the best rate. Its best value is 0.

    python benchmarks/slots.py [--budget 64] [--seeds 16] [--slots 1 2 4 8 16 32 64]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tuner.config import StudySpec
from tuner.core.outcome import COMPLETED, DIVERGED, Outcome
from tuner.ledger import Ledger
from tuner.ledger.database import addresses, open_ledger
from tuner.search import Search

BEST_RATE = {"sgd": -0.5, "adamw": -2.5}  # log10
WORSE = {"sgd": 0.05, "adamw": 0.0, "constant": 0.05, "cosine": 0.0}
NOISE = 0.02


def spec_of(sampler: str, budget: int, seed: int, name: str) -> StudySpec:
    return StudySpec.model_validate(
        {
            "study": {"name": name, "seed": seed},
            "workload": {"factory": "studies.digits:mlp"},
            "training": {"steps": 100},
            "space": {
                "lr": {"low": 1e-5, "high": 10.0},
                "schedule": ["constant", "cosine"],
                "optimizer": ["sgd", "adamw"],
            },
            "search": {"sampler": sampler, "pruner": "none"},
            "budget": {"trials": budget, "decide": 0},
        }
    )


def outcome_of(params: Mapping[str, Any], chance: np.random.Generator) -> Outcome:
    """Return how a trial ends."""
    above = math.log10(params["lr"]) - BEST_RATE[params["optimizer"]]
    if above > 1.0:
        return Outcome(kind=DIVERGED, reason="The rate is too high.", stopped_step=3)
    value = 0.1 * above**2 + WORSE[params["optimizer"]] + WORSE[params["schedule"]]
    noisy = value + NOISE * float(chance.standard_normal())
    return Outcome(kind=COMPLETED, reason="Ran all steps.", value=noisy)


def searched(ledger: Ledger, spec: StudySpec, slots: int) -> float:
    """Search with so many slots; give the true value of the best trial, noise left out."""
    study, _ = ledger.submit(spec, limit=spec.budget.trials, workload={})
    search, running = Search(study, ledger), deque[Any]()
    chance = np.random.default_rng(spec.study.seed)
    while True:
        claim = ledger.claim(study.id, "worker", {}) if len(running) < slots else None
        if claim is not None:
            draw = search.draw(claim.trial.number)
            ledger.draw(
                claim.lease,
                draw.params,
                attrs=draw.attrs,
                study_attrs=draw.study_attrs,
                asked_revision=draw.revision,
            )
            running.append((claim, draw.params))
        elif running:
            oldest, params = running.popleft()
            ledger.finish(oldest.lease, outcome_of(params, chance))
        else:
            break
    best = ledger.best(study)
    assert best is not None
    assert best.params is not None
    above = math.log10(float(best.params["lr"])) - BEST_RATE[str(best.params["optimizer"])]
    return (
        0.1 * above**2 + WORSE[str(best.params["optimizer"])] + WORSE[str(best.params["schedule"])]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    options = parser.parse_args()
    found: dict[str, Any] = {}
    arms = [("tpe", slots) for slots in options.slots] + [("random", 1)]
    with tempfile.TemporaryDirectory() as folder:
        places = addresses({}, Path(folder))
        ledger = Ledger(open_ledger(places, create=True))
        for sampler, slots in arms:
            name = f"{sampler}, {slots} slots" if sampler == "tpe" else "random"
            values = [
                searched(ledger, spec_of(sampler, options.budget, seed, f"{name} {seed}"), slots)
                for seed in range(options.seeds)
            ]
            low, middle, high = statistics.quantiles(values, n=4)
            found[name] = {"lower quartile": low, "median": middle, "upper quartile": high}
            print(f"{name:14} regret {middle:.4f} ({low:.4f} to {high:.4f})", flush=True)
        ledger.engine.dispose()
    result = {"machine": platform.machine(), "budget": options.budget, "seeds": options.seeds}
    file = Path(__file__).parent / "results" / f"slots-{options.budget}.json"
    file.write_text(json.dumps(result | {"regret": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
