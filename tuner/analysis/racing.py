"""Racing: decide between candidates by training them in rounds of one common seed each.

Candidates of one round share a seed, so the effect of a seed on all of them cancels. After the
rounds of `LOOKS`, a candidate that another one of the same question beats is dropped. A question is
closed once no candidate can be better than a certain one by more than the margin: the difference
cannot matter. Budget that is left goes to the others.

Intervals hold together for all pairs of all questions at all looks, so all statements of a race are
true with probability `LEVEL` (Bonferroni over pairs and looks; Maron and Moore, The Racing
Algorithm, 1997; Hsu, Constrained simultaneous confidence intervals for multiple comparisons with
the best, 1984). The variance of a paired difference is pooled over the candidates of a look, or
that of the pair alone, with fewer degrees of freedom, if it is larger.

Pure functions of values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from tuner.analysis.statistics import Interval

LEVEL = 0.95
LOOKS = (3, 6, 12, 24, 48, 96, 192, 384)
"""Numbers of rounds after which a race decides. Each look costs confidence, so there are few."""
FIRST_LOOK = LOOKS[0]
FRESH = 3
"""Further trainings of the winner, with seeds that did not choose it, if the budget allows."""

Cell: TypeAlias = tuple[int, int]
"""A candidate, as the number of its trial, and a round."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which of some candidates is the best, such as the best trial of each schedule."""

    name: str  # "schedule", "optimizer", any other parameter, or "trial"
    labels: Mapping[int, str]  # of each candidate; the best one of the search first
    preferred: tuple[int, ...] = ()  # to prefer among those that are alike, in this order

    @property
    def candidates(self) -> tuple[int, ...]:
        """The candidates, the best one of the search first."""
        return tuple(self.labels)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a race may train."""

    trainings: int | None = None  # in all; None: as many as the rounds need
    rounds: int = LOOKS[-1]
    fresh: int = 0  # of the winner, at the end, within `trainings`
    # differences below it do not matter; None: what two trainings of one candidate differ by
    margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class Beaten:
    """A candidate that another one beats."""

    loser: int
    winner: int
    by: Interval | None  # None: the loser did not complete under all seeds


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a race found of one question."""

    question: Question
    # how much better than it any other may be; candidates that nothing beats, the best mean first
    bounds: Mapping[int, float]
    beaten: tuple[Beaten, ...]
    margin: float | None  # differences below it do not matter; None: the noise is unknown
    rounds: int  # common seeds of the candidates that are left

    @property
    def good(self) -> tuple[int, ...]:
        """The candidates than which no other one is better by more than the margin."""
        margin = 0.0 if self.margin is None else self.margin
        return tuple(one for one, bound in self.bounds.items() if bound <= margin)

    @property
    def decided(self) -> bool:
        """Whether there is a candidate to take, for sure."""
        return bool(self.good) and self.rounds > 0

    @property
    def take(self) -> int:
        """The candidate to take: the preferred good one, else the one with the best mean."""
        good = self.good if self.decided else ()
        wanted = (one for one in self.question.preferred if one in good)
        return next(wanted, next(iter(self.bounds)))


@dataclass(frozen=True, kw_only=True)
class Race:
    """The state of a race: what to train next, and what is known."""

    todo: tuple[Cell, ...]  # to train next, not begun yet
    over: bool  # nothing is left to train, and nothing is being trained
    answers: tuple[Answer, ...]
    winner: int | None  # the best candidate; None before the first round
    judged: int  # rounds of the winner that chose it
    fresh: tuple[float, ...]  # values of the winner under other seeds
    values: Mapping[Cell, float | None]  # None: not completed


def looks(rounds: int) -> tuple[int, ...]:
    """Return the rounds after which a race of at most so many rounds decides."""
    return (*(one for one in LOOKS if one < rounds), rounds)


def candidates_within(trainings: int) -> int:
    """Return how many candidates a budget allows to compare; 0: too few for a decision."""
    most = (trainings - fresh_within(trainings)) // FIRST_LOOK
    return most if most >= 2 else 0


def fresh_within(trainings: int) -> int:
    """Return how many trainings of a budget measure the winner."""
    return max(0, min(FRESH, trainings - 2 * FIRST_LOOK))


def race(
    questions: Sequence[Question],
    ended: Mapping[Cell, float | None],  # lower is better; None: not completed
    limits: Limits,
    begun: Collection[Cell] = (),
    elsewhere: int = 0,
) -> Race:
    """Return what follows from the trainings that have ended, and what to train next.

    The result is a function of the ended trainings in the order of rounds, so it is the same for
    every worker, and after an interruption. `elsewhere` counts trainings of other candidates.
    """
    return _Racing(questions, ended, limits, frozenset(begun) - set(ended), elsewhere).run()


@dataclass
class _Open:
    """The state of a question during a race."""

    question: Question
    bounds: dict[int, float]
    beaten: list[Beaten] = field(default_factory=list)
    margin: float | None = None
    rounds: int = 0  # that some candidate completed
    until: int = 0  # rounds, with those that none completed
    closed: bool = False

    def answer(self) -> Answer:
        """Return what is known."""
        return Answer(
            question=self.question,
            bounds=dict(self.bounds),
            beaten=tuple(self.beaten),
            margin=self.margin,
            rounds=self.rounds,
        )


class _Racing:
    def __init__(
        self,
        questions: Sequence[Question],
        ended: Mapping[Cell, float | None],
        limits: Limits,
        begun: frozenset[Cell],
        elsewhere: int,
    ) -> None:
        self._ended, self._begun, self._limits = ended, begun, limits
        self._elsewhere = elsewhere
        self._open = [_Open(one, dict.fromkeys(one.candidates, math.inf)) for one in questions]
        self._pool = list(dict.fromkeys(c for one in questions for c in one.candidates))
        pairs = {
            frozenset(pair)
            for one in questions
            for pair in itertools.combinations(one.candidates, 2)
        }
        self._looks = looks(self._most_rounds())
        self._error = (1 - LEVEL) / (max(1, len(pairs)) * len(self._looks))  # of one interval

    def _most_rounds(self) -> int:
        """Return the most rounds that any two candidates may be trained for."""
        limits = self._limits
        if limits.trainings is None:
            return limits.rounds
        left = limits.trainings - limits.fresh - FIRST_LOOK * len(self._pool)
        return max(1, min(limits.rounds, FIRST_LOOK + max(0, left) // 2))

    def run(self) -> Race:
        rounds = 0
        for look in self._looks:
            active = self._active()
            if not active:
                break
            until = self._affordable(active, rounds, look)
            if until is None:
                break
            if any(cell not in self._ended for cell in _cells(active, until)):
                return self._state(todo=self._lacking(active, until), over=False)
            rounds = until
            self._judge(active, rounds)
            if until < look:  # the budget is spent
                break
        return self._finish()

    def _active(self) -> list[int]:
        """Return the candidates of questions that are open."""
        wanted = {one for state in self._open if not state.closed for one in state.bounds}
        return [one for one in self._pool if one in wanted]

    def _lacking(self, active: Sequence[int], until: int) -> list[Cell]:
        known = self._ended.keys() | self._begun
        return [cell for cell in _cells(active, until) if cell not in known]

    def _left(self) -> int | None:
        """Return the trainings that are left for the race; None: any number."""
        if self._limits.trainings is None:
            return None
        return max(0, self._limits.trainings - self._limits.fresh - self._spent(()))

    def _spent(self, more: Collection[Cell]) -> int:
        """Return all trainings that have begun, and `more`."""
        return len({*self._ended, *self._begun, *more}) + self._elsewhere

    def _affordable(self, active: Sequence[int], rounds: int, look: int) -> int | None:
        """Return the last round until `look` that the budget allows for all; None if none."""
        left = self._left()
        for until in range(look, rounds, -1):
            if left is None or len(self._lacking(active, until)) <= left:
                return until
        return None

    def _judge(self, active: Sequence[int], rounds: int) -> None:
        """Drop candidates and close questions after so many rounds of the active candidates."""
        values = np.array(
            [[_number(self._ended[one, r]) for r in range(rounds)] for one in active]
        )  # [candidate, round]
        known = ~np.isnan(values)
        kept = known.any(axis=0)  # without rounds that nobody completed
        whole = known[:, kept].all(axis=1) & kept.any()
        table = {one: values[i, kept] for i, one in enumerate(active) if whole[i]}
        spread = _Spread(list(table.values()), self._error)
        for state in self._open:
            if state.closed:
                continue
            own = [one for one in state.bounds if one in table]
            if not own:
                continue
            own.sort(key=lambda one: table[one].mean())
            state.rounds, state.until = int(kept.sum()), rounds
            state.beaten += [
                Beaten(loser=one, winner=own[0], by=None)
                for one in state.bounds
                if one not in table
            ]
            self._compare(state, own, table, spread)

    def _compare(
        self,
        state: _Open,
        own: Sequence[int],  # the best mean first
        table: Mapping[int, np.ndarray],
        spread: _Spread,
    ) -> None:
        """Drop the candidates that are beaten, and bound how much better others may be."""
        worse = {
            (one, other): spread.interval(table[one] - table[other])
            for one, other in itertools.permutations(own, 2)
        }
        left = []
        for one in own:
            by = next((other for other in own if other != one and worse[one, other].above), None)
            if by is None:
                left.append(one)
            else:
                state.beaten.append(Beaten(loser=one, winner=by, by=worse[one, by]))
        state.bounds = {
            one: max((worse[one, other].high for other in left if other != one), default=0.0)
            for one in left
        }
        given = self._limits.margin
        state.margin = spread.noise if given is None else given
        state.closed = state.answer().decided

    def _finish(self) -> Race:
        """Return the end of the race, or the last trainings of the winner."""
        winner, judged = self._winner()
        if winner is None:
            return self._state(todo=(), over=not self._begun)
        more = [(winner, judged + index) for index in range(self._limits.fresh)]
        lacking = [cell for cell in more if cell not in self._ended]
        room = self._limits.trainings is None or self._spent(lacking) <= self._limits.trainings
        if lacking and room:
            todo = [cell for cell in lacking if cell not in self._begun]
            return self._state(todo=todo, over=False)
        return self._state(todo=(), over=not self._begun)

    def _winner(self) -> tuple[int | None, int]:
        """Return the best candidate that nothing beats, and the rounds that chose it."""
        beaten = {one.loser for state in self._open for one in state.beaten}
        own = [one for one in self._pool if one not in beaten and (one, 0) in self._ended]
        judged = {
            one: max((state.until for state in self._open if one in state.bounds), default=0)
            for one in own
        }
        own = [one for one in own if judged[one]]
        if not own:
            return None, 0
        common = min(judged[one] for one in own)
        means = {one: _mean([self._ended[one, r] for r in range(common)]) for one in own}
        winner = min(own, key=lambda one: means[one])
        return winner, judged[winner]

    def _state(self, *, todo: Sequence[Cell], over: bool) -> Race:
        winner, judged = self._winner()
        fresh: list[float] = []
        if winner is not None:
            own = [self._ended.get((winner, judged + i)) for i in range(self._limits.fresh)]
            fresh = [one for one in own if one is not None]
        return Race(
            todo=tuple(todo),
            over=over,
            answers=tuple(state.answer() for state in self._open),
            winner=winner,
            judged=judged,
            fresh=tuple(fresh),
            values=self._ended,
        )


class _Spread:
    """The noise of the candidates of one look, and intervals of their paired differences."""

    def __init__(self, rows: Sequence[np.ndarray], error: float) -> None:
        self._error = error
        # standard deviation of the difference of two trainings of one candidate
        self.noise: float | None = None
        self._pooled, self._freedom = 0.0, 0
        many, rounds = len(rows), len(rows[0]) if rows else 0
        if rounds < 2:
            return
        table = np.array(rows)  # [candidate, round]
        self.noise = float(np.sqrt(2 * table.var(axis=1, ddof=1).mean()))
        self._freedom = (many - 1) * (rounds - 1)
        if many > 1:
            residual = table - table.mean(axis=1, keepdims=True)
            residual = residual - residual.mean(axis=0)
            self._pooled = 2 * float((residual**2).sum()) / self._freedom

    def interval(self, differences: np.ndarray) -> Interval:  # [round]
        """Return the interval of a mean paired difference, which holds with all the others."""
        n, mean, level = len(differences), float(differences.mean()), 1 - self._error
        if n < 2:
            return Interval(mean=mean, low=-np.inf, high=np.inf, level=level, n=n)
        own = float(differences.var(ddof=1))
        variance, freedom = self._pooled, float(self._freedom)
        if own > variance:  # the noisier this pair is than the others, the less they say of it
            freedom = n - 1 + (freedom - (n - 1)) * variance / own
            variance = own
        from scipy.special import stdtrit

        half = float(stdtrit(freedom, (1 + level) / 2) * np.sqrt(variance / n))
        return Interval(mean=mean, low=mean - half, high=mean + half, level=level, n=n)


def _cells(active: Sequence[int], until: int) -> Iterator[Cell]:
    """Yield the cells of the first rounds, round by round."""
    for round_ in range(until):
        for one in active:
            yield one, round_


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _mean(values: Sequence[float | None]) -> float:
    known = [one for one in values if one is not None]
    return float(np.mean(known)) if known else float("inf")
