"""Ideas for a better pruner than `one_rung`, and how much of its loss is chance.

    python -m benchmarks.early_judging_tried POOLS [--studies 25] [--common]

replays rules that are not in the product beside `one_rung`, on the narrow studies of
`benchmarks.early_judging`. Differences are paired, with 95 % bootstrap intervals over pools.

*Chance*: the noise of a pool is the standard deviation, in the logarithm of the final value, of its
better half around a quadratic in the logarithm of the rate for each schedule (each trial left out
of its own fit). The differences of two trials of equal worth have √2 times that. It counts how
often the best trial that `one_rung` lost was better than the chosen one by less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr

from benchmarks.early_judging import (
    BRANCHES,
    COMMON,
    FORWARD,
    GROUP,
    LATE,
    RULES,
    Rule,
    Study,
    interval,
    narrow,
    outcomes,
    rungs,
    studies,
)

RESULTS = Path(__file__).with_name("results") / "early_judging_tried.json"
SAFE = "one_rung, safe"

# --- rules --------------------------------------------------------------------------------------

Score = Callable[[Study, np.ndarray, list[int], np.ndarray], np.ndarray]
"""Map a study, those at the rung, those completed and all branch values to scores of those at the
rung; lower is better."""


def ranked(score: Score, share: float = 0.5, fewest: int = 6) -> Rule:
    """Continue a share of the trials so far at a third of the horizon, by a score."""

    def rule(study: Study) -> tuple[np.ndarray, np.ndarray]:
        at, values, cost = study.judged(FORWARD)
        ends, extra = study.lengths.copy(), np.zeros(len(study.lengths))
        there: list[int] = []
        done: list[int] = []
        for arrived in _groups(study, at, values):
            there += arrived
            scores = score(study, np.array(there), done, values)
            known, own = np.sort(scores), dict(zip(there, scores, strict=True))
            for n in arrived:
                extra[n] += cost
                ahead = int(known.searchsorted(own[n]))
                if len(there) >= fewest and ahead >= max(int(len(there) * share), 1):
                    ends[n] = at
                elif math.isfinite(study.final[n]):
                    done.append(n)
        return ends, extra

    return rule


def _groups(study: Study, at: int, values: np.ndarray) -> list[list[int]]:
    """Return the trials that arrive at a rung together, one group after the other."""
    return [
        [
            n
            for n in range(first, min(first + GROUP, len(values)))
            if study.lengths[n] >= at and not math.isnan(values[n])
        ]
        for first in range(0, len(values), GROUP)
    ]


def _kernel(study: Study, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return a prior covariance over rate and schedule, in units of the branch values' variance."""
    logs = np.log10(study.rates)
    near = np.exp(-((logs[one][:, None] - logs[two]) ** 2) / (2 * 0.4**2))
    same = study.schedules[one][:, None] == study.schedules[two]
    covariance: np.ndarray = 0.3 * near + same * (0.1 + 0.2 * near)
    return covariance


def _standardized(values: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, float]:
    """Return standardized logarithms of values and their spread at the rung, without the worst."""
    logs = np.log(np.where(np.isfinite(values), values, np.nan))
    some = logs[there][np.isfinite(logs[there])]
    middle, spread = float(np.median(some)), float(np.std(some[some <= np.quantile(some, 0.9)]))
    scaled = np.clip((logs - middle) / (spread + 1e-9), -4.0, 4.0)
    return np.nan_to_num(scaled, nan=4.0), spread + 1e-9


def smoothed(weight: float) -> Score:
    """Mix branch values with their smooth surface over rate and schedule."""

    def score(study: Study, there: np.ndarray, _: list[int], values: np.ndarray) -> np.ndarray:
        scaled, _spread = _standardized(values, there)
        prior = _kernel(study, there, there)
        surface = prior @ np.linalg.solve(prior + 0.5 * np.eye(len(there)), scaled[there])
        mixed: np.ndarray = weight * surface + (1 - weight) * scaled[there]
        return mixed

    return score


def predicted(
    study: Study, there: np.ndarray, done: list[int], values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of final values' logarithms by a Gaussian process.

    Its mean is a line in the logarithm of the branch value; rate and schedule explain residuals of
    completed trials, whose own values are known.
    """
    scaled, spread = _standardized(values, there)
    known = np.array(done, dtype=int)
    if not len(known):
        return scaled[there], np.ones(len(there))

    def prior(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return _kernel(study, one, two) + 4.0 + 0.1 * np.outer(scaled[one], scaled[two])

    final = np.log(study.final[known])
    rest = np.clip((final - np.median(final)) / spread, -4.0, 6.0) - 0.7 * scaled[known]
    cross = prior(there, known)
    solved = np.linalg.solve(prior(known, known) + 0.3 * np.eye(len(known)), np.c_[rest, cross.T])
    mean = np.median(final) + spread * (cross @ solved[:, 0] + 0.7 * scaled[there])
    variance = np.diag(prior(there, there)) - (cross * solved[:, 1:].T).sum(1)
    deviation = spread * np.sqrt(np.maximum(variance, 0.0) + 0.3)
    ended = np.isin(there, known)
    mean[ended], deviation[ended] = np.log(study.final[there[ended]]), 0.0
    return mean, deviation


def by_prediction(optimism: float) -> Score:
    """Score by predicted final values, less so many deviations."""

    def score(study: Study, there: np.ndarray, done: list[int], values: np.ndarray) -> np.ndarray:
        mean, deviation = predicted(study, there, done, values)
        lower: np.ndarray = mean - optimism * deviation
        return lower

    return score


def improbable(chance: float) -> Rule:
    """Stop trials whose probability of improvement on the best completed one is below a chance."""

    def rule(study: Study) -> tuple[np.ndarray, np.ndarray]:
        at, values, cost = study.judged(FORWARD)
        ends, extra = study.lengths.copy(), np.zeros(len(study.lengths))
        there: list[int] = []
        done: list[int] = []
        for arrived in _groups(study, at, values):
            there += arrived
            mean, deviation = predicted(study, np.array(there), done, values)
            place = {n: index for index, n in enumerate(there)}
            best = min((math.log(study.final[n]) for n in done), default=math.inf)
            before = len(done)
            for n in arrived:
                extra[n] += cost
                gain = (best - mean[place[n]]) / max(deviation[place[n]], 1e-12)
                if before >= GROUP and ndtr(gain) < chance:
                    ends[n] = at
                elif math.isfinite(study.final[n]):
                    done.append(n)
        return ends, extra

    return rule


def by_margin(share: float, deviations: float) -> Rule:
    """As `one_rung`, with more room while few have been compared, of `deviations` of the rank."""

    def rule(study: Study) -> tuple[np.ndarray, np.ndarray]:
        at, values, cost = study.judged(FORWARD)
        ends, extra = study.lengths.copy(), np.zeros(len(study.lengths))
        there: list[int] = []
        for arrived in _groups(study, at, values):
            there += arrived
            known, count = np.sort(values[there]), len(there)
            unseen = 1 - count / len(ends)
            limit = count * share + deviations * math.sqrt(count * share * (1 - share) * unseen)
            for n in arrived:
                extra[n] += cost
                if count >= 6 and known.searchsorted(values[n]) >= max(limit, 1):
                    ends[n] = at
        return ends, extra

    return rule


def resumed(share: float, *, together: bool = False) -> Rule:
    """As `one_rung`, but a stopped trial goes on once it is in the better share of all so far.

    `together`: nothing goes on until all have been compared, which is the most it could gain.
    """

    def rule(study: Study) -> tuple[np.ndarray, np.ndarray]:
        at, values, cost = study.judged(FORWARD)
        ends, extra = study.lengths.copy(), np.zeros(len(study.lengths))
        groups = _groups(study, at, values)
        there: list[int] = []
        stopped: set[int] = set()
        for arrived in [list(itertools.chain(*groups))] if together else groups:
            there += arrived
            known = np.sort(values[there])
            extra[arrived] += cost
            for n in {*arrived, *stopped}:
                worse = known.searchsorted(values[n]) >= max(int(len(there) * share), 1)
                (stopped.add if worse and len(there) >= 6 else stopped.discard)(n)
        ends[list(stopped)] = at
        return ends, extra

    return rule


TRIED: Mapping[str, Rule] = {
    SAFE: RULES[SAFE],
    "keep 0.53": rungs((FORWARD, 1 / 0.53), fewest=6),
    "keep 0.42": rungs((FORWARD, 1 / 0.42), fewest=6),
    "more room while few were compared: keep 0.45": by_margin(0.45, 1.0),
    "stopped trials may go on: keep 1/2": resumed(0.5),
    "stopped trials may go on: keep 0.48": resumed(0.48),
    "all compared at once: keep 1/2": resumed(0.5, together=True),
    "a second rung: 2/3 at H/3, 1/2 at 0.52 H": rungs((FORWARD, 1.5), (LATE, 2), fewest=6),
    "a second rung: 3/4 at H/3, 0.4 at 0.52 H": rungs((FORWARD, 4 / 3), (LATE, 2.5), fewest=6),
    "a second rung: 2/3 at H/3, 1/2 at 0.52 H, raw": rungs((FORWARD, 1.5), ("raw 14", 2), fewest=6),
    "a second rung: 3/4 at H/3, raw, 1/3 at 0.52 H": rungs(("raw 9", 4 / 3), (LATE, 3), fewest=6),
    "one rung at 0.52 H: keep 1/4": rungs((LATE, 4), fewest=6),
    "smoothed over rates, 0.3": ranked(smoothed(0.3)),
    "smoothed over rates, 0.5": ranked(smoothed(0.5)),
    "smoothed over rates, 0.7": ranked(smoothed(0.7)),
    "Gaussian process: better half": ranked(by_prediction(0.0)),
    "Gaussian process: better half, optimistic": ranked(by_prediction(1.0)),
    "Gaussian process: improvement below 0.5 %": improbable(0.005),
    "Gaussian process: improvement below 1 %": improbable(0.01),
    "Gaussian process: improvement below 2 %": improbable(0.02),
}


# --- chance -------------------------------------------------------------------------------------


def noise(pool: Mapping[str, np.ndarray]) -> float:
    """Return the deviation of final values' logarithms that rate and schedule do not explain."""
    among = narrow(pool)
    among = among[np.isfinite(pool["values"][among, -1])]
    final, logs = np.log(pool["values"][among, -1]), np.log10(pool["lr"][among])
    left = np.full(len(among), np.nan)
    for name in set(pool["schedule"]):
        own = np.flatnonzero(pool["schedule"][among] == name)
        if len(own) > 5:
            powers = np.vander(logs[own] - logs[own].mean(), 3)
            hat = powers @ np.linalg.pinv(powers)
            left[own] = (final[own] - hat @ final[own]) / (1 - np.diag(hat))
    better = left[(final <= np.median(final)) & np.isfinite(left)]
    return float(np.median(np.abs(better)) / 0.6745)  # robust where a quadratic does not fit


def luck(rule: Rule, drawn: list[Study], deviation: float) -> np.ndarray:
    """Return for each lost best trial by how many deviations of a difference it was better."""
    gaps = []
    for study in drawn:
        ends, _ = rule(study)
        chosen = np.where(ends == study.lengths, study.final, math.inf).min()
        if chosen > study.final.min():
            gaps.append(math.log(chosen / study.final.min()) / (math.sqrt(2) * deviation))
    return np.array(gaps)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", type=int, default=25)
    parser.add_argument("--common", action="store_true", help="one seed for all trials")
    asked = parser.parse_args()
    paths = sorted(asked.folder.glob("*.npz"))
    pools = {
        one.stem: dict(np.load(one)) for one in paths if one.stem.endswith(COMMON) == asked.common
    }
    assert all(name in pool for pool in pools.values() for name in BRANCHES)
    drawn = [
        studies(pool, narrow(pool), 60, asked.studies, seed)
        for seed, pool in enumerate(pools.values())
    ]
    deviations = {name: noise(pool) for name, pool in pools.items()}
    gaps = [
        luck(RULES[SAFE], some, deviation)
        for some, deviation in zip(drawn, deviations.values(), strict=True)
    ]
    gap = np.concatenate(gaps)
    found: dict[str, Any] = {
        "pools": list(pools),
        "studies": asked.studies,
        "noise, in the logarithm": {name: round(one, 4) for name, one in deviations.items()},
        "lost": interval(np.array([len(one) / asked.studies for one in gaps])),
        "lost by more than one deviation": interval(
            np.array([(one > 1).sum() / asked.studies for one in gaps])
        ),
        "share of the lost that is within one deviation": round(float((gap <= 1).mean()), 3),
        "rules": {},
    }
    base = None
    for name, rule in TRIED.items():
        each = np.array([outcomes(rule, some) for some in drawn])  # [pool, outcome]
        base = each if base is None else base
        found["rules"][name] = {
            "cost": interval(each[:, 2]),
            "lost": interval(each[:, 0]),
            "regret": interval(each[:, 1]),
            "fewer lost": interval(each[:, 3]),
            "fewer regret": interval(each[:, 4]),
            "cost less one_rung's": interval(each[:, 2] - base[:, 2]),
            "lost less one_rung's": interval(each[:, 0] - base[:, 0]),
            "regret less one_rung's": interval(each[:, 1] - base[:, 1]),
            "pools worse than fewer": int((each[:, 1] > each[:, 4] + 1e-9).sum()),
        }
        print(name, json.dumps(found["rules"][name]), flush=True)
    results = RESULTS.with_stem(RESULTS.stem + (COMMON if asked.common else ""))
    results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
