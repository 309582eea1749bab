"""Confirm the best trial: train the best trials again under shared new seeds.

The best value of a search is biased, as the lowest of many noisy values. New seeds measure the
candidates without that selection. The new trials belong to a study of their own, so each has its
curve and its run, and an interrupted confirmation can be resumed. All candidates share the same
seeds, so the effect of a seed on all of them cancels in the paired differences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from tuner.analysis import ranking
from tuner.analysis.statistics import Interval, bootstrap_interval, simultaneous, t_interval
from tuner.config import Listed, ParameterValue, StudySpec
from tuner.core.errors import UsageError
from tuner.core.outcome import COMPLETED, RUNNING
from tuner.core.text import derived
from tuner.ledger import Ledger, Reader, StudyRecord, TrialRecord
from tuner.ledger.database import Addresses
from tuner.operations import run
from tuner.operations.run import Ended

LEVEL = 0.95
CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of the best trials and its values under the new seeds."""

    trial: int  # its number in the original study
    params: Mapping[str, ParameterValue]
    found: float  # its value in that study
    values: tuple[float | None, ...]  # [round]; None: not completed
    worse: Interval | None  # difference to the winner, paired by seed; > 0 is worse; None: no pairs
    bootstrap: Interval | None  # the same by the bootstrap, without assuming a normal distribution

    @property
    def completed(self) -> list[float]:
        """The values of the completed trials."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """The mean of those values."""
        return float(np.mean(self.completed)) if self.completed else None


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The candidates, the winner first, and the verdict."""

    study: StudyRecord
    trials: StudyRecord  # the study of the new trials
    candidates: tuple[Candidate, ...]
    verdict: str
    sentence: str
    answer: str | None = None  # which value of the parameter in question to take

    def as_json(self) -> dict[str, Any]:
        """Return what `tuner confirm --json` prints."""
        return {
            "study": self.study.name,
            "confirmation": self.trials.name,
            "metric": self.study.spec.study.metric,
            "direction": self.study.spec.study.direction,
            "seeds": len(self.candidates[0].values),
            "winner": self.candidates[0].trial,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "answer": self.answer,
            "candidates": [
                {
                    "trial": one.trial,
                    "params": dict(one.params),
                    "found": one.found,
                    "values": list(one.values),
                    "mean": one.mean,
                    "worse_by": one.worse.as_json() if one.worse else None,
                    "bootstrap": one.bootstrap.as_json() if one.bootstrap else None,
                }
                for one in self.candidates
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """A confirmation, and how its training ended."""

    confirmation: Confirmation
    ended: Ended
    unfinished: int  # trials that have not ended


def confirm(
    ledger: Ledger,
    places: Addresses,
    study: StudyRecord,
    *,
    top: int,
    seeds: int,
    prefixes: Sequence[str],
    console: Console | None = None,
    each: str | None = None,
) -> Confirmed:
    """Train the best `top` trials again under `seeds` new seeds and compare them in pairs.

    With `each`, a parameter such as "schedule", train the best trial of each of its values instead.
    Raise `UsageError` if fewer than two trials have completed.
    """
    confirming = submit(ledger, study, top=top, seeds=seeds, each=each)
    ended = run.train_study(ledger, places, confirming, prefixes, console=console)
    return Confirmed(
        confirmation=compare(ledger, study, ledger.study(confirming.name), seeds, each=each),
        ended=ended,
        unfinished=unfinished(ledger, confirming),
    )


def submit(
    ledger: Ledger, study: StudyRecord, *, top: int, seeds: int, each: str | None = None
) -> StudyRecord:
    """Submit the study of the new trials, or return the existing one.

    The same candidates with more seeds continue the same study. Raise `UsageError` if fewer than
    two trials have completed.
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
    if each is not None:
        params, top = _best_of_each(params, each), len(params)
    different = [one for index, one in enumerate(params) if one not in params[:index]][:top]
    if len(different) < 2:
        raise UsageError(
            f"the completed trials of {study.name!r} all have the same parameters; expected at "
            "least 2 that differ"
        )
    known = {one.name: one for one in ledger.studies()}
    for count in range(1, len(known) + 2):
        name = derived(study.name, "confirm" + (f" {count}" if count > 1 else ""))
        spec = _spec(study, name, different, len(different) * seeds, each)
        existing = known.get(name)
        if existing is None or existing.digest == spec.digest():
            limit = max(spec.budget.trials, existing.limit if existing else 0)  # never fewer
            submitted, _ = ledger.submit(spec, limit=limit, workload=study.workload)
            return submitted
    raise AssertionError("one of the names is free")


def _best_of_each(
    params: Sequence[dict[str, ParameterValue]], each: str
) -> list[dict[str, ParameterValue]]:
    """Return the first parameters with each value of the parameter `each`. Raise `UsageError`."""
    found: dict[ParameterValue, dict[str, ParameterValue]] = {}
    for one in params:
        if each in one:
            found.setdefault(one[each], one)
    if len(found) < 2:
        had = ", ".join(map(str, found)) or "none"
        raise UsageError(
            f"expected completed trials with at least 2 values of {each!r}, got {had}; parameters "
            f"here: {', '.join(sorted({key for one in params for key in one}))}"
        )
    return list(found.values())


def _spec(
    study: StudyRecord,
    name: str,
    params: Sequence[Mapping[str, ParameterValue]],
    trials: int,
    each: str | None,
) -> StudySpec:
    """Return the study that trains each of `params` once per round, to the horizon."""
    what = "trials" if each is None else f"trial of each {each}"
    tables = study.spec.model_dump(mode="json")
    tables["training"] |= {"threads": study.threads}
    tables["study"] |= {
        "name": name,
        "description": f"The best {what} of {study.name} again, under shared seeds.",
    }
    listed = {"sampler": {"name": "listed", "params": params}, "pruner": "none"}
    tables["search"] = listed
    tables["budget"] |= {"trials": trials}
    return StudySpec.model_validate_json(json.dumps(tables))


def compare(
    ledger: Reader,
    study: StudyRecord,
    confirming: StudyRecord,
    seeds: int,
    *,
    each: str | None = None,
) -> Confirmation:
    """Compare the candidates with the winner, seed by seed; `each` as in `confirm`."""
    sampler = confirming.spec.search.sampler
    assert isinstance(sampler, Listed)
    found = _found(study, ledger.trials(study.id), sampler)
    values: list[list[float | None]] = [[None] * seeds for _ in sampler.params]
    for trial in ledger.trials(confirming.id):
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
        trials=confirming,
        candidates=tuple(candidates),
        verdict=verdict,
        sentence=sentence,
        answer=None if each is None else _answer(candidates, each),
    )


def unfinished(ledger: Reader, confirming: StudyRecord) -> int:
    """Return the number of trials that have not ended."""
    ended = [trial for trial in ledger.trials(confirming.id) if trial.state != RUNNING]
    return confirming.limit - len(ended)


def _found(study: StudyRecord, trials: Sequence[TrialRecord], sampler: Listed) -> list[TrialRecord]:
    """Return the original trial of each listed combination."""
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
        difference = _in_words(first)
        return REFUTED, f"No: trial {first.trial} is better than {name}: {difference}. {about}"
    open_ = [
        one
        for one in others
        if not (one.worse is not None and one.worse.above) and (one.completed or one.worse)
    ]
    if open_:
        listed = "; ".join(f"trial {one.trial}: {_in_words(one)}" for one in open_)
        return UNDECIDED, (
            f"Undecided: {name} is not significantly different from {len(open_)} of {len(others)} "
            f"others ({listed}). More seeds may decide. {about}"
        )
    listed = "; ".join(f"trial {one.trial}: {_in_words(one)}" for one in others)
    return CONFIRMED, f"Yes: {name} is better than all {len(others)} others ({listed}). {about}"


SIMPLEST = ("constant", "linear", "cosine")
"""Values to prefer among those that are alike, the simplest first; else the winner's."""
ALIKE = 0.02
"""Candidates that differ by less than this share of the winner's mean are alike."""


def _answer(candidates: Sequence[Candidate], each: str) -> str:
    """Return which value of a parameter to take, where each candidate has another one."""
    winner, others = candidates[0], candidates[1:]
    name = str(winner.params[each])
    known = [(str(one.params[each]), one.worse) for one in others]
    sure = [(value, worse) for value, worse in known if worse is not None and worse.n > 1]
    if len(sure) < len(known) or winner.mean is None:
        missing = ", ".join(value for value, worse in known if worse is None or worse.n < 2)
        return f"Undecided: {name} and {missing or name} completed too few seeds; add seeds."
    better = [(value, worse) for value, worse in sure if worse.below]
    if better:
        value, worse = min(better, key=lambda pair: pair[1].mean)
        return f"{value} beats {name} by {_plus_minus(worse)}: take {value}."
    beaten = [f"{value} by {_plus_minus(worse)}" for value, worse in sure if worse.above]
    beats = f"{name} beats {', '.join(beaten)}" if beaten else ""
    open_ = [(value, worse) for value, worse in sure if not worse.above]
    if not open_:
        return f"{beats}: take {name}."
    bound = max(max(abs(worse.low), abs(worse.high)) for _, worse in open_)
    alike = [name, *(value for value, _ in open_)]
    if bound > ALIKE * abs(winner.mean):
        apart = f"{', '.join(alike[1:])} may differ from {name} by up to {bound:.2g}"
        undecided = f"undecided: {apart}; take {name}, or add seeds."
        return f"{beats}; {undecided}" if beats else f"{undecided[:1].upper()}{undecided[1:]}"
    taken = next((value for value in SIMPLEST if value in alike), name)
    if not beats:
        return f"No {each} differs from {name} by more than {bound:.2g}: take {taken}."
    return f"{beats}; {', '.join(alike[1:])}: within {bound:.2g} of {name}; take {taken}."


def _plus_minus(worse: Interval) -> str:
    return f"{abs(worse.mean):.3g} ± {(worse.high - worse.low) / 2:.2g}"


def _in_words(candidate: Candidate) -> str:
    interval = candidate.worse
    if interval is None:
        return "no seed was completed by both it and the winner"
    mean = _signed(interval.mean)
    if interval.n == 1:
        return f"{mean} under the only seed that both completed, too few to estimate the spread"
    low, high = _signed(interval.low), _signed(interval.high)
    sure = f"with {100 * interval.level:.3g}% confidence"
    if interval.low <= 0 <= interval.high:
        return f"{mean}, but anything from {low} to {high} {sure}"
    return f"{mean}, from {low} to {high} {sure}"


def _signed(worse: float) -> str:
    return f"{abs(worse):.3g} {'worse' if worse >= 0 else 'better'}"
