"""Is the winner really the winner? The best trials again, under seeds that they share.

The best value of a search is too good to be true: of many noisy values the lowest is taken. New
seeds measure the candidates without that selection. They are the trials of a study of their own,
so each leaves its curve and its run, and an interrupted confirmation goes on where it was. All
candidates have the same seeds, round by round, so what a seed adds to each of them cancels in
the differences.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.analysis import ranking
from tuner.analysis.statistics import Interval, bootstrap_interval, simultaneous, t_interval
from tuner.config import Listed, ParameterValue, StudySpec
from tuner.core.errors import UsageError
from tuner.core.outcome import COMPLETED, RUNNING
from tuner.core.text import derived
from tuner.ledger import Ledger, Reader, StudyRecord, TrialRecord

LEVEL = 0.95
CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of the best trials, and what it did under the new seeds."""

    trial: int  # its number in the study that is confirmed
    params: Mapping[str, ParameterValue]
    found: float  # its value in that study
    values: tuple[float | None, ...]  # [round]; None where it did not complete
    worse: Interval | None  # than the winner, paired by seed; positive is worse; None: no pairs
    bootstrap: Interval | None  # the same, without a normal's shape

    @property
    def completed(self) -> list[float]:
        """The values that there are."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """The mean of the values that there are."""
        return float(np.mean(self.completed)) if self.completed else None


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The candidates, the winner first, and what follows."""

    study: StudyRecord
    trials: StudyRecord  # the study of the new trials
    candidates: tuple[Candidate, ...]
    verdict: str
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """Give what `tuner confirm --json` prints."""
        return {
            "study": self.study.name,
            "confirmation": self.trials.name,
            "metric": self.study.spec.study.metric,
            "direction": self.study.spec.study.direction,
            "seeds": len(self.candidates[0].values),
            "winner": self.candidates[0].trial,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "candidates": [
                {
                    "trial": one.trial,
                    "params": dict(one.params),
                    "found": one.found,
                    "values": list(one.values),
                    "mean": one.mean,
                    "worse_by": _as_json(one.worse),
                    "bootstrap": _as_json(one.bootstrap),
                }
                for one in self.candidates
            ],
        }


def submit(ledger: Ledger, study: StudyRecord, *, top: int, seeds: int) -> StudyRecord:
    """Put the study of the new trials into the ledger, or find the one that is there.

    The same candidates with more seeds go on in the same study. Raises `UsageError` when fewer
    than two trials have completed.
    """
    best = [
        trial
        for trial in ranking.ranked(study, ledger.trials(study.id))
        if trial.state == COMPLETED
    ]
    if len(best) < 2:
        raise UsageError(
            f"study {study.name!r} has {len(best)} completed trials, expected at least 2 to "
            "compare; train more of it first"
        )
    params = [dict(trial.params or {}) for trial in best]
    different = [one for index, one in enumerate(params) if one not in params[:index]][:top]
    if len(different) < 2:
        raise UsageError(
            f"the completed trials of {study.name!r} all have the same parameters; expected at "
            "least 2 that differ"
        )
    known = {one.name: one for one in ledger.studies()}
    for count in range(1, len(known) + 2):
        name = derived(study.name, "confirm" + (f" {count}" if count > 1 else ""))
        spec = _spec(study, name, different, len(different) * seeds)
        there = known.get(name)
        if there is None or there.digest == spec.digest():
            limit = max(spec.budget.trials, there.limit if there else 0)  # never fewer
            made, _ = ledger.submit(spec, limit=limit, workload=study.workload)
            return made
    raise AssertionError("one of the names is free")


def _spec(
    study: StudyRecord, name: str, params: Sequence[Mapping[str, ParameterValue]], trials: int
) -> StudySpec:
    """Give the study that trains each of `params` once a round, to the horizon."""
    tables = study.spec.model_dump(mode="json")
    tables["training"] |= {"threads": study.threads}
    tables["study"] |= {
        "name": name,
        "description": f"The best trials of {study.name} again, under seeds that they share.",
    }
    tables["search"] |= {"sampler": {"name": "listed", "params": params}, "pruner": "none"}
    tables["budget"] |= {"trials": trials}
    return StudySpec.model_validate_json(json.dumps(tables))


def compare(ledger: Reader, study: StudyRecord, again: StudyRecord, seeds: int) -> Confirmation:
    """Compare the candidates with the winner, seed by seed."""
    sampler = again.spec.search.sampler
    assert isinstance(sampler, Listed)
    found = _found(study, ledger.trials(study.id), sampler)
    values: list[list[float | None]] = [[None] * seeds for _ in sampler.params]
    for trial in ledger.trials(again.id):
        place, round_ = trial.number % len(sampler.params), sampler.round(trial.number)
        if round_ < seeds and trial.state == COMPLETED:
            values[place][round_] = trial.value
    level = simultaneous(LEVEL, len(found) - 1)
    sign = 1 if study.spec.study.direction == "minimize" else -1
    candidates = []
    for place, origin in enumerate(found):
        pairs = [
            sign * (mine - best)
            for mine, best in zip(values[place], values[0], strict=True)
            if mine is not None and best is not None
        ]
        rng = np.random.default_rng([study.spec.study.seed, place])
        paired = place > 0 and bool(pairs)
        assert origin.value is not None
        candidates.append(
            Candidate(
                trial=origin.number,
                params=sampler.params[place],
                found=origin.value,
                values=tuple(values[place]),
                worse=t_interval(pairs, level) if paired else None,
                bootstrap=bootstrap_interval(pairs, rng, level) if paired else None,
            )
        )
    verdict, sentence = _verdict(candidates, study)
    return Confirmation(
        study=study,
        trials=again,
        candidates=tuple(candidates),
        verdict=verdict,
        sentence=sentence,
    )


def unfinished(ledger: Reader, again: StudyRecord) -> int:
    """Count the trials that are still to be trained to an end."""
    ended = [trial for trial in ledger.trials(again.id) if trial.state != RUNNING]
    return again.limit - len(ended)


def _found(study: StudyRecord, trials: Sequence[TrialRecord], sampler: Listed) -> list[TrialRecord]:
    """Give the trial of the study that each listed combination comes from."""
    best = [one for one in ranking.ranked(study, trials) if one.state == COMPLETED]
    return [next(one for one in best if one.params == params) for params in sampler.params]


def _verdict(candidates: Sequence[Candidate], study: StudyRecord) -> tuple[str, str]:
    winner, others = candidates[0], candidates[1:]
    name = f"trial {winner.trial} ({ranking.in_short(winner.params)})"
    seeds = len(winner.values)
    metric = study.spec.study.metric
    lost = seeds - len(winner.completed)
    if winner.mean is None:
        return REFUTED, f"No: {name} completed under none of {seeds} new seeds."
    kept = f"; {lost} of {seeds} seeds did not complete" if lost else ""
    means = f"mean {metric} {winner.mean:.4g} under {seeds} new seeds, {winner.found:.4g} found"
    about = f"{name[:1].upper()}{name[1:]} has {means}{kept}."
    better = [one for one in others if one.worse is not None and one.worse.below]
    if better:
        first = min(better, key=lambda one: one.worse.mean if one.worse else 0.0)
        said = _in_words(first)
        return REFUTED, f"No: trial {first.trial} is better than {name}: {said}. {about}"
    open_ = [
        one
        for one in others
        if not (one.worse is not None and one.worse.above) and (one.completed or one.worse)
    ]
    if open_:
        listed = "; ".join(f"trial {one.trial}: {_in_words(one)}" for one in open_)
        return UNDECIDED, (
            f"Undecided: {name} cannot be told from {len(open_)} of {len(others)} others "
            f"({listed}). More seeds may tell. {about}"
        )
    listed = "; ".join(f"trial {one.trial}: {_in_words(one)}" for one in others)
    return CONFIRMED, f"Yes: {name} is better than all {len(others)} others ({listed}). {about}"


def _in_words(candidate: Candidate) -> str:
    interval = candidate.worse
    if interval is None:
        return "completed under no seed that the winner completed under"
    mean = _signed(interval.mean)
    if interval.n == 1:
        return f"{mean} under the one seed that both completed, which says nothing of scatter"
    low, high = _signed(interval.low), _signed(interval.high)
    sure = f"with {100 * interval.level:.3g}% confidence"
    if interval.low <= 0 <= interval.high:
        return f"{mean}, but anything from {low} to {high} {sure}"
    return f"{mean}, from {low} to {high} {sure}"


def _signed(worse: float) -> str:
    return f"{abs(worse):.3g} {'worse' if worse >= 0 else 'better'}"


def _as_json(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    ends = {
        key: end if math.isfinite(end) else None
        for key, end in (("low", interval.low), ("high", interval.high))
    }
    return {"mean": interval.mean, **ends, "level": interval.level, "pairs": interval.n}
