"""Which rule that stops trials early loses the best one? Replays on curves of other people.

    python -m benchmarks.early_judging_public algoperf ALGOPERF_CURVES
    python -m benchmarks.early_judging_public language LANGUAGE_MODEL_CURVES

*AlgoPerf*: runs of MLCommons' benchmark, round 0.5 (repository mlcommons/submissions_algorithms,
`previous_leaderboards/algoperf_v05/logs`, Apache-2.0), a JSON object a line. The trials of one
submission on one workload are a study; its horizon is its longest run, and trials that stopped
before 90 % of it are left out, since runs end where they reach a target. Only values in the middle
of schedules are known, so only rules that compare those are replayed, as in
`benchmarks.early_judging`. Some runs end far worse than all others, so regret counts what is worse
than the median as the median: 1 is the most. Submissions on one workload resemble each other:
intervals are 95 % bootstrap intervals over workloads.

*Language models*: 124M parameters under several rates, schedules and horizons (repository
fabian-sp/lr-scheduling, MIT; Schaipp et al., arXiv 2501.18965). Rate and schedule for 50,000 steps
are chosen by values in the middle of those runs, or by runs of the same shape *completed* at a
shorter horizon. It is one problem; the intervals are over which half of the combinations a study
tries.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from benchmarks.early_judging import EVALUATIONS, RULES, Study, fewer, interval, outcomes, table

RESULTS = Path(__file__).with_name("results") / "early_judging_public.json"
FEWEST = 8
"""Trials of a study that is replayed, at least."""
RAW = ("raw", "halving", "asha", "hyperband", "median", "percentile", "patient")
"""Beginnings of the names of rules that need no branch."""
HORIZON, SHORTER = 50_000, (15_000, 25_000, 35_000)
"""Steps for which a rate and a schedule are chosen, and those after which they are."""


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a compressed file, one a line."""
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


# --- AlgoPerf -----------------------------------------------------------------------------------


def studies(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], np.ndarray]:
    """Return values [trial, evaluation] by workload and submission.

    An evaluation is the last one at or before a 27th of the horizon; nan if there was none.
    """
    grouped = defaultdict(list)
    for run in runs:
        losses = [math.nan if loss is None else float(loss) for loss in run["validation_loss"]]
        if losses:
            grouped[run["workload"], run["submission"]].append((np.array(run["step"]), losses))
    found = {}
    for name, trials in sorted(grouped.items()):
        horizon = max(steps[-1] for steps, _ in trials)
        shares = horizon * np.arange(EVALUATIONS + 1) / EVALUATIONS
        rows = []
        for steps, losses in trials:
            if steps[-1] < 0.9 * horizon or not math.isfinite(losses[-1]):
                continue
            at = np.searchsorted(steps, shares, side="right") - 1
            row = np.where(at >= 0, np.array(losses)[at], math.nan)
            row[-1] = losses[-1]
            rows.append(np.where(np.isfinite(row), row, math.nan))
        if len(rows) >= FEWEST:
            found[name] = np.array(rows)
    return found


def algoperf(path: Path, orders: int) -> dict[str, Any]:
    """Replay rules on every study in random orders."""
    pools = studies(lines_of(path))
    workloads = sorted({workload for workload, _ in pools})
    found: dict[str, Any] = {
        "studies": len(pools),
        "workloads": len(workloads),
        "trials": sum(len(values) for values in pools.values()),
        "orders": orders,
        "rank correlation with the final value": {
            f"raw {at}": interval(
                np.array(
                    [
                        np.nanmean([_correlation(pools[n], at) for n in pools if n[0] == workload])
                        for workload in workloads
                    ]
                )
            )
            for at in (1, 3, 9, 14)
        },
        "real": {},
    }
    drawn = {}
    for seed, (name, values) in enumerate(pools.items()):
        draws = np.random.default_rng(seed)
        shuffled = [values[draws.permutation(len(values))] for _ in range(orders)]
        whole = np.full(len(values), float(EVALUATIONS))
        drawn[name] = [
            Study(
                values=some,
                branches={},
                final=np.minimum(some[:, -1], np.median(some[:, -1])),
                lengths=whole,
                rates=np.empty(0),
                schedules=np.empty(0),
            )
            for some in shuffled
        ]
    for name, rule in RULES.items():
        if not name.startswith(RAW):
            continue
        every = {study: outcomes(rule, some) for study, some in drawn.items()}
        each = np.array(
            [
                np.mean([one for (other, _), one in every.items() if other == workload], axis=0)
                for workload in workloads
            ]
        )  # [workload, outcome]
        found["real"][name] = {
            "lost": interval(each[:, 0]),
            "regret": interval(each[:, 1]),
            "cost": interval(each[:, 2]),
            "fewer lost": interval(each[:, 3]),
            "fewer regret": interval(each[:, 4]),
            "regret less fewer's": interval(each[:, 1] - each[:, 4]),
            "pools worse than fewer": int((each[:, 1] > each[:, 4] + 1e-9).sum()),
        }
    return found


def _correlation(values: np.ndarray, at: int) -> float:
    """Return Spearman's, of values at an evaluation with final ones."""
    known = np.isfinite(values[:, at])
    if known.sum() < FEWEST or not np.ptp(values[known, at]):
        return math.nan
    return float(spearmanr(values[known, at], values[known, -1]).statistic)


# --- language models ----------------------------------------------------------------------------


def language(path: Path, count: int) -> dict[str, Any]:
    """Choose by values of long runs and of completed shorter ones; regret is in loss."""
    runs = [one for one in lines_of(path) if one["source"] == "lr-scheduling"]
    ends: dict[int, dict[Any, float]] = defaultdict(dict)  # final loss by horizon and combination
    stems: dict[float, dict[int, float]] = {}  # curve at a constant rate
    middles: dict[Any, dict[int, float]] = {}  # curve of runs of the whole horizon
    for run in runs:
        at = run["horizon"]
        curve = dict(zip(run["val_step"], run["val_loss"], strict=True))
        final = dict(run["final_val_loss"]).get(at)
        if final is None:
            continue
        ends[at].setdefault(_combination(run), final)
        if at == HORIZON:
            middles[_combination(run)] = curve
            if run["decay_fraction"] == 0:
                stems[run["lr"]] = curve
    combinations = sorted(set(ends[HORIZON]).intersection(*(ends[at] for at in SHORTER)))
    final = np.array([ends[HORIZON][one] for one in combinations])
    judges = {}
    for at in SHORTER:
        # a decay that begins later continues the constant rate
        raw = [middles[one].get(at, stems.get(one[0], {}).get(at)) for one in combinations]
        judges[f"raw value at {at}"] = np.array(raw, dtype=float)
        judges[f"completed at {at}"] = np.array([ends[at][one] for one in combinations])
    draws = np.random.default_rng(0)
    half = len(combinations) // 2
    some = np.array([draws.permutation(len(combinations))[:half] for _ in range(count)])
    least = final[some].min(axis=1)  # [study]
    found: dict[str, Any] = {
        "combinations": len(combinations),
        "studies of half of them": count,
        "judges": {},
    }
    for name, values in judges.items():
        at = int(name.rpartition(" ")[-1]) / HORIZON
        # the chosen one continues, or is trained anew if the judge was a completed run
        last = 1 - at if name.startswith("raw") else 1.0
        regrets = np.take_along_axis(final[some], values[some].argmin(1)[:, None], 1)[:, 0] - least
        spent = at * half + last
        whole = [fewer(final[rows], spent)[1] for rows in some]
        found["judges"][name] = {
            "correlation": _rounded(kendalltau(values, final).statistic),
            "chosen": list(combinations[values.argmin()]),
            "regret": _rounded(final[values.argmin()] - final.min()),
            "cost of halves": _rounded(spent / half),
            "regret of halves": [
                _rounded(one) for one in (regrets.mean(), *np.quantile(regrets, [0.025, 0.975]))
            ],
            "fewer regret of halves": _rounded((whole - least).mean()),
        }
    return found


def _rounded(number: float) -> float:
    return round(float(number), 5)


def _combination(run: Mapping[str, Any]) -> tuple[float, str, str]:
    """Return rate, schedule and its shape."""
    if run["schedule"] == "cosine":
        return run["lr"], "cosine", run["run"].removesuffix("-124m")
    return run["lr"], "wsd", f"{run['decay']} over {run['decay_fraction']:g}"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("algoperf")
    first.add_argument("--orders", type=int, default=10, help="orders of the trials of a study")
    second = commands.add_parser("language")
    second.add_argument("--halves", type=int, default=2000, help="studies of half the combinations")
    for command in (first, second):
        command.add_argument("curves", type=Path)
    asked = parser.parse_args()
    if asked.command == "algoperf":
        name, found = "algoperf", algoperf(asked.curves, asked.orders)
        print(table(found, "real"))
    else:
        name, found = "language models", language(asked.curves, asked.halves)
        print(json.dumps(found, indent=1))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
