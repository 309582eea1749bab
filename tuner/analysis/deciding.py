"""The decision of a study: which candidates are in question, what is known of them, and in words.

The candidates are trained again in a study of their own, `NAME confirm`, see
`tuner.ledger.deciding`. What is said follows from its trials alone, so it is never stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuner.analysis import racing, ranking
from tuner.analysis.racing import Answer, Cell, Limits, Question, Race
from tuner.analysis.statistics import t_interval
from tuner.config import ParameterValue, StudySpec
from tuner.core.errors import NotFoundError
from tuner.core.outcome import CANCELLED, COMPLETED, RUNNING
from tuner.core.text import derived
from tuner.ledger import Reader, StudyRecord, TrialRecord
from tuner.ledger.deciding import cell_of
from tuner.ledger.records import FIXED

TOP = 3
"""How many of the best trials are candidates where they share schedule and optimizer."""
SIMPLEST = ("constant", "linear", "cosine")
"""Schedules to prefer among those that are alike, in this order."""
QUESTIONS = ("schedule", "optimizer")
TRIAL = "trial"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the races of a study decided so far."""

    study: StudyRecord
    again: StudyRecord | None  # the study of the new trials; None: not begun
    trials: Mapping[int, TrialRecord]  # the candidates, by number, the best of the search first
    questions: tuple[Question, ...]
    limits: Limits
    race: Race
    running: int  # new trials that have not ended

    @property
    def decided(self) -> bool:
        """Whether every question has an answer that is sure."""
        return bool(self.race.answers) and all(one.decided for one in self.race.answers)


def decision(ledger: Reader, study: StudyRecord) -> Decision | None:
    """Return the decision that a study's budget reserves trials for; None if it reserves none.

    It is also None as long as there is nothing to decide between.
    """
    reserved = study.deciding_trials
    most = racing.candidates_within(reserved)
    if not most:
        return None
    best = contenders(study, ledger.best_first(study))
    asked = questions(best, most)
    return decision_on(ledger, study, best, asked, within(reserved)) if asked else None


def within(trainings: int) -> Limits:
    """Return the limits of a race within so many trainings."""
    return Limits(trainings=trainings, fresh=racing.fresh_within(trainings))


def decision_on(
    ledger: Reader,
    study: StudyRecord,
    trials: Sequence[TrialRecord],
    asked: Sequence[Question],
    limits: Limits,
) -> Decision:
    """Return what the new trials of a study decide of these questions about its `trials`."""
    wanted = dict.fromkeys(number for one in asked for number in one.candidates)
    found = {one.number: one for one in trials if one.number in wanted}
    again = existing(ledger, study)
    sign = 1 if study.spec.study.direction == "minimize" else -1
    ended: dict[Cell, float | None] = {}
    begun: set[Cell] = set()
    elsewhere = running = 0
    for trial in () if again is None else ledger.trials(again.id):
        title, number, round_ = cell_of(trial.attrs) or ("", -1, -1)
        running += trial.state == RUNNING
        same = number in wanted and trial.attrs.get(FIXED) == found[number].params
        if title != study.title or not same:  # its study may have been deleted and made again
            elsewhere += 1
        elif trial.state == RUNNING:
            begun.add((number, round_))
        elif trial.state != CANCELLED:
            # one that violates a constraint under a new seed is no answer
            done = trial.state == COMPLETED and trial.value is not None and not trial.infeasible
            ended[number, round_] = sign * trial.value if done else None  # type: ignore[operator]
    race = racing.race(asked, ended, limits, begun, elsewhere)
    winner = None if race.winner is None else found[race.winner]
    answers = tuple(_agreeing(one, winner) for one in race.answers)
    return Decision(
        study=study,
        again=again,
        trials={number: found[number] for number in wanted},
        questions=tuple(asked),
        limits=limits,
        race=replace(race, answers=answers),
        running=running,
    )


def _agreeing(answer: Answer, winner: TrialRecord | None) -> Answer:
    """Return an answer that, of what is alike and no simpler, takes what the winner has."""
    question = answer.question
    own = str(((winner and winner.params) or {}).get(question.name))
    same = tuple(one for one, label in question.labels.items() if label == own)
    return replace(answer, question=replace(question, preferred=(*question.preferred, *same)))


def chosen(ledger: Reader, study: StudyRecord) -> TrialRecord | None:
    """Return the trial to use: the winner of the study's decision, else its best trial."""
    found = decision(ledger, study)
    if found is None or found.race.winner is None or not found.race.over:
        return ledger.best(study)
    return found.trials[found.race.winner]


# --- candidates


def candidates(study: StudyRecord, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the best of the completed trials with each combination of parameters, best first.

    Those that violate constraints are left out.
    """
    completed = [one for one in trials if one.state == COMPLETED]
    return list(_distinct(ranking.ranked(study, completed)))


def contenders(study: StudyRecord, best_first: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the candidates among which there may be a question, the best first.

    No more are read than are needed: the best ones, down to the last schedule and optimizer of the
    space.
    """
    space = study.spec.space
    values: set[tuple[str, object]] = {("schedule", one.name) for one in space.schedule}
    values |= {("optimizer", one.name) for one in space.optimizer}
    found: list[TrialRecord] = []
    for trial in _distinct(best_first):
        found.append(trial)
        values -= {(name, (trial.params or {}).get(name)) for name in QUESTIONS}
        if not values and len(found) >= TOP:
            break
    return found


def _distinct(best_first: Iterable[TrialRecord]) -> Iterator[TrialRecord]:
    """Yield the first trial with each combination of parameters, without infeasible ones."""
    seen: set[str] = set()
    for trial in best_first:
        combination = repr(sorted((trial.params or {}).items()))
        if not trial.infeasible and combination not in seen:
            seen.add(combination)
            yield trial


def questions(best: Sequence[TrialRecord], most: int) -> tuple[Question, ...]:
    """Return what is worth deciding between `contenders`, with at most so many of them in all.

    Where neither the schedule nor the optimizer is in question, it is which trial is the best.
    Second candidates of each question come before third ones.
    """
    if len(best) < 2:
        return ()
    rows = {name: best_of_each(best, name) for name in QUESTIONS}
    rows = {name: row for name, row in rows.items() if len(row) > 1} or {TRIAL: list(best[:TOP])}
    pool = {best[0].number: best[0]}
    for index in range(1, max(map(len, rows.values()))):
        for row in rows.values():
            if index < len(row) and len(pool) < most:
                pool.setdefault(row[index].number, row[index])
    asked = [
        question(name, [one for one in row if one.number in pool]) for name, row in rows.items()
    ]
    return tuple(one for one in asked if len(one.candidates) > 1)


def best_of_each(best: Sequence[TrialRecord], name: str) -> list[TrialRecord]:
    """Return the best trial with each value of a parameter, the best first."""
    found: dict[ParameterValue, TrialRecord] = {}
    for trial in best:
        if trial.params and name in trial.params:
            found.setdefault(trial.params[name], trial)
    return list(found.values())


def question(name: str, trials: Sequence[TrialRecord]) -> Question:
    """Return the question which value of a parameter, or which trial, is the best."""
    if name == TRIAL:
        return Question(name=name, labels={one.number: f"trial {one.number}" for one in trials})
    labels = {one.number: str((one.params or {})[name]) for one in trials}
    plain = [number for value in SIMPLEST for number, label in labels.items() if label == value]
    return Question(name=name, labels=labels, preferred=tuple(plain))


# --- the study of the new trials


def again_spec(study: StudyRecord, name: str) -> StudySpec:
    """Return the study that trains trials of `study` again; it does not depend on which."""
    spec = study.spec
    off = ("wall_seconds", "compute_seconds", "no_improvement", "regret_below", "improvement_below")
    budget = {"trials": 1, "decide": 0.0, **dict.fromkeys(off)}
    plain = StudySpec.model_validate(
        {
            "study": {"name": name},
            "workload": spec.workload,
            "training": {"steps": 1},
            "search": {"sampler": "random", "pruner": "none"},
            "budget": {"trials": 1},
        }
    )
    about = {"name": name, "description": f"The best trials of {study.name} with new seeds."}
    own = {"evaluate_every": spec.training.evaluation_interval, "threads": study.threads}
    return plain.model_copy(
        update={
            "study": spec.study.model_copy(update=about),
            "training": spec.training.model_copy(update=own),
            "space": spec.space,
            "guard": spec.guard,
            "budget": spec.budget.model_copy(update=budget),
        }
    )


def names(study: StudyRecord) -> Iterator[str]:
    """Yield the names that the study of the new trials may have."""
    yield derived(study.name, "confirm")
    for count in range(2, 1000):
        yield derived(study.name, f"confirm {count}")


def existing(ledger: Reader, study: StudyRecord) -> StudyRecord | None:
    """Return the study of the new trials; None if there is none yet."""
    return place(ledger, study)[1]


def place(ledger: Reader, study: StudyRecord) -> tuple[str, StudyRecord | None]:
    """Return the name of the study of the new trials, and the study if it exists."""
    for name in names(study):
        try:
            found = ledger.study(name)
        except NotFoundError:
            return name, None
        if found.digest == again_spec(study, name).digest():
            return name, found
    raise AssertionError("one of the names is free")


# --- in words


def as_json(found: Decision) -> dict[str, Any]:
    """Return what commands print of a decision with `--json`."""
    values, _ = winner_values(found)
    return {
        "study": None if found.again is None else found.again.name,
        "trials": {"reserved": found.limits.trainings, "ended": len(found.race.values)},
        "over": found.race.over,
        "decided": found.decided,
        "winner": found.race.winner,
        "values": values,
        "answers": [
            {
                "question": one.question.name,
                "take": one.question.labels[one.take],
                "trial": one.take,
                "decided": one.decided,
                "seeds": one.rounds,
                "answer": answer_in_words(one),
            }
            for one in found.race.answers
        ],
    }


def in_words(found: Decision) -> list[str]:
    """Return the sentences of a decision: the answer to each question, and the winner's value."""
    if found.race.winner is None:
        if found.running:
            return [f"Deciding between {len(found.trials)} trials: {found.running} are left."]
        return []
    lines = [answer_in_words(one) for one in found.race.answers]
    lines.append(winner_in_words(found))
    if not found.race.over and found.running:
        lines.append(f"Results may change: {found.running} trials that decide have not ended.")
    return lines


def answer_in_words(answer: Answer) -> str:
    """Return the answer to one question."""
    labels = answer.question.labels
    take = labels[answer.take]
    beats = "; ".join(_beats(answer))
    rest = [label for one, label in labels.items() if one in answer.bounds and label != take]
    if answer.decided and not rest:
        return f"{_capital(beats)}: take {take}."
    bound, margin = answer.bounds[answer.take], answer.margin
    what = f"{answer.question.name} "
    noise = "" if margin is None else f" (the same trial with two seeds: {margin:.2g})"
    if answer.decided:
        said = f"no {what}is better than {take} by more than {bound:.2g}{noise}: take {take}."
    elif answer.rounds < 2:
        said = f"too few seeds to compare {', '.join([take, *rest])}: take {take}."
    else:
        said = (
            f"{', '.join(rest)} may be better than {take} by up to {bound:.2g}{noise}, after "
            f"{answer.rounds} seeds: take {take}, or add seeds."
        )
    return _capital(f"{beats}; {said}" if beats else said)


def _beats(answer: Answer) -> Iterator[str]:
    """Yield a clause for each winner of a question."""
    labels = answer.question.labels
    for winner in dict.fromkeys(one.winner for one in answer.beaten if one.by is not None):
        own = [one for one in answer.beaten if one.winner == winner and one.by is not None]
        losers = ", ".join(
            f"{labels[one.loser]} by {one.by.mean:.2g} ± {(one.by.high - one.by.low) / 2:.2g}"
            for one in own
            if one.by is not None
        )
        yield f"{labels[winner]} beats {losers}"
    for one in answer.beaten:
        if one.by is None:
            yield f"{labels[one.loser]} did not complete under all seeds"


def winner_in_words(found: Decision) -> str:
    """Return the value of the winner, from seeds that did not choose it where there are any."""
    race, metric = found.race, found.study.spec.study.metric
    assert race.winner is not None
    trial = found.trials[race.winner]
    values, seeds = winner_values(found)
    name = f"trial {trial.number} ({ranking.in_short(trial.params)})"
    if not values:
        return f"{_capital(name)} completed under no new seed."
    interval = t_interval(values)
    about = "" if len(values) == 1 else f" ± {(interval.high - interval.low) / 2:.2g}"
    return (
        f"{_capital(name)} has {metric} {interval.mean:.4g}{about} under {len(values)} {seeds}, "
        f"{trial.value:.4g} in the search."
    )


def winner_values(found: Decision) -> tuple[list[float], str]:
    """Return values of the winner, and under which seeds."""
    race = found.race
    sign = 1 if found.study.spec.study.direction == "minimize" else -1
    seeds = "new seeds that did not choose it"
    values = race.fresh
    if not values:
        seeds = "new seeds"
        own = sorted((r, value) for (one, r), value in race.values.items() if one == race.winner)
        values = tuple(value for _, value in own if value is not None)
    return [sign * value for value in values], seeds if len(values) > 1 else seeds.replace(
        "seeds", "seed"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
