"""Confirm the best trial: train the best trials again under shared new seeds.

The best value of a search is biased, as the lowest of many noisy values. New seeds measure the
candidates without that selection. This is the race by which a study decides at its end, see
`tuner.analysis.racing`, on a question and with a budget of one's own. The new trials belong to a
study of their own, so each has its curve and its run, and an interrupted confirmation can be
resumed; trainings that an earlier decision has made are not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from tuner.analysis import deciding
from tuner.analysis.deciding import TRIAL, Decision
from tuner.analysis.racing import Limits, Question
from tuner.config import ParameterValue
from tuner.core.errors import UsageError
from tuner.ledger import Ledger, Reader, StudyRecord, events
from tuner.ledger.database import Addresses
from tuner.operations import run
from tuner.operations.context import acting
from tuner.operations.run import Ended
from tuner.worker.deciding import advance_by, submit

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of the best trials and its values under the new seeds."""

    trial: int  # its number in the original study
    params: Mapping[str, ParameterValue]
    found: float  # its value in that study
    values: tuple[float | None, ...]  # of the rounds that it was trained for; None: not completed

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
    """The candidates, the best of the search first, and the verdict on it."""

    study: StudyRecord
    trials: StudyRecord  # the study of the new trials
    candidates: tuple[Candidate, ...]
    winner: int
    verdict: str
    sentence: str
    answer: str  # which trial, or which value of the parameter in question, to take
    unfinished: int  # new trials that have not ended

    def as_json(self) -> dict[str, Any]:
        """Return what `tuner confirm --json` prints."""
        return {
            "study": self.study.name,
            "confirmation": self.trials.name,
            "metric": self.study.spec.study.metric,
            "direction": self.study.spec.study.direction,
            "seeds": max(len(one.values) for one in self.candidates),
            "winner": self.winner,
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
                }
                for one in self.candidates
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """A confirmation, and how its training ended."""

    confirmation: Confirmation
    ended: Ended


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
    """Train the best `top` trials again under up to `seeds` new seeds and compare them in pairs.

    With `each`, a parameter such as "schedule", train the best trial of each of its values instead.
    Candidates that are beaten are trained no further. Raise `UsageError` if fewer than two trials
    have completed.
    """
    asked = question(ledger, study, top=top, each=each)
    again = submit(ledger, study)
    events.add(ledger, study.name, events.CONFIRMED, acting(), {"by": again.name})
    ended = run.train_study(
        ledger,
        places,
        again,
        prefixes,
        console=console,
        race=partial(advance, ledger, study, asked, seeds),
    )
    return Confirmed(confirmation=compare(ledger, study, asked, seeds), ended=ended)


def question(ledger: Reader, study: StudyRecord, *, top: int, each: str | None = None) -> Question:
    """Return what is to be confirmed. Raise `UsageError` if there is nothing to compare."""
    if study.spec.study.objectives:
        raise UsageError(
            f"study {study.name!r} has several objectives, so there is no best trial to confirm; "
            f"`tuner best {study.name}` lists its front"
        )
    best = deciding.candidates(study, ledger.completed(study.id))
    if len(best) < 2:
        feasible = " and satisfy the constraints" if study.spec.study.constraints else ""
        raise UsageError(
            f"study {study.name!r} has {len(best)} completed trials that differ in their "
            f"parameters{feasible}, expected at least 2 to compare; train more of it first"
        )
    if each is None:
        return deciding.question(TRIAL, best[:top])
    found = deciding.best_of_each(best, each)
    if len(found) < 2:
        had = ", ".join(str((one.params or {})[each]) for one in found) or "none"
        known = sorted({key for one in best for key in one.params or {}})
        raise UsageError(
            f"expected completed trials with at least 2 values of {each!r}, got {had}; parameters "
            f"here: {', '.join(known)}"
        )
    return deciding.question(each, found)


def advance(ledger: Ledger, study: StudyRecord, asked: Question, seeds: int) -> int | None:
    """Add the next rounds; return how many trials were added, or None if nothing is left."""
    going = advance_by(ledger, study, partial(_decision, ledger, study, asked, seeds))
    return None if going is None else going.added


def _decision(ledger: Reader, study: StudyRecord, asked: Question, seeds: int) -> Decision:
    trials = ledger.numbered(study.id, asked.candidates)
    return deciding.decision_on(ledger, study, trials, [asked], Limits(rounds=seeds))


def compare(ledger: Reader, study: StudyRecord, asked: Question, seeds: int) -> Confirmation:
    """Return what the new trials say of the candidates."""
    found = _decision(ledger, study, asked, seeds)
    assert found.again is not None
    (answer,) = found.race.answers
    sign = 1 if study.spec.study.direction == "minimize" else -1
    candidates = []
    for number, trial in found.trials.items():
        own = sorted((r, value) for (one, r), value in found.race.values.items() if one == number)
        values = tuple(None if value is None else sign * value for r, value in own if r < seeds)
        assert trial.value is not None
        candidates.append(
            Candidate(trial=number, params=trial.params or {}, found=trial.value, values=values)
        )
    first = candidates[0]
    name = asked.labels[first.trial]
    if answer.rounds == 0:
        verdict = REFUTED if first.values and not first.completed else UNDECIDED
    elif first.trial not in answer.bounds:
        verdict = REFUTED
    else:
        verdict = CONFIRMED if answer.decided and first.trial in answer.good else UNDECIDED
    begins = {CONFIRMED: "Yes", REFUTED: "No", UNDECIDED: "Undecided"}[verdict]
    mean = "no value" if first.mean is None else f"mean {first.mean:.4g}"
    seeds_in_words = f"{len(first.completed)} of {len(first.values)}"
    about = f"{name}, the best of the search with {first.found:.4g}, has {mean}"
    return Confirmation(
        study=study,
        trials=found.again,
        candidates=tuple(candidates),
        winner=found.race.winner if found.race.winner is not None else first.trial,
        verdict=verdict,
        sentence=f"{begins}: {about} under {seeds_in_words} new seeds.",
        answer=deciding.answer_in_words(answer),
        unfinished=found.running,
    )
