"""Repeat one trial from its stored parameters and seed, and compare every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tuner.core.curves import Chunk
from tuner.core.environment import describe
from tuner.core.errors import NotFoundError, UsageError
from tuner.core.failures import workload_code
from tuner.ledger import OUT_OF_MEMORY, Reader, StudyRecord, TrialRecord
from tuner.ledger.records import SEED
from tuner.training import trainer_choice
from tuner.training.device import use_threads
from tuner.training.trainer import ENDED, Event, Task, seed_of
from tuner.worker.loading import load_workload

BLOCK = 1000
"""Steps per call of the trainer; it changes no curve."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where two curves differ."""

    step: int
    column: str
    stored: float | None  # None: missing
    again: float | None

    @property
    def by(self) -> float | None:
        """Repeated minus stored value; None if one of them is missing."""
        if self.stored is None or self.again is None:
            return None
        return self.again - self.stored


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """The result of repeating a trial."""

    study: str
    trial: int
    steps: int  # that were compared
    values: int  # that were compared
    difference: Difference | None  # None: equal to the last bit
    environment: Mapping[str, tuple[Any, Any]]  # differences: (then, now)

    @property
    def equal(self) -> bool:
        """Whether every value is the same."""
        return self.difference is None

    @property
    def sentence(self) -> str:
        """The result as a sentence."""
        what = f"trial {self.trial} of {self.study!r}"
        if self.difference is None:
            return f"Equal: {what}, {self.values} values of {self.steps} steps, to the last bit."
        one = self.difference
        amount = "" if one.by is None else f", a difference of {one.by:.3g}"
        sentence = (
            f"Different: {what}: the first one is {one.column} at step {one.step}: stored "
            f"{_shown(one.stored)}, now {_shown(one.again)}{amount}."
        )
        if self.environment:
            pairs = [f"{key} {was} then, {now} now" for key, (was, now) in self.environment.items()]
            sentence += f" The environment differs: {'; '.join(pairs)}."
        return sentence

    def as_json(self) -> dict[str, Any]:
        """Return what `tuner rerun --json` prints; numbers unknown to JSON are strings."""
        found = None
        if self.difference is not None:
            raw = asdict(self.difference) | {"by": self.difference.by}
            found = {key: _plain(value) for key, value in raw.items()}
        return {
            "study": self.study,
            "trial": self.trial,
            "equal": self.equal,
            "steps": self.steps,
            "values": self.values,
            "difference": found,
            "environment": {key: list(pair) for key, pair in self.environment.items()},
            "sentence": self.sentence,
        }


def rerun(ledger: Reader, study: StudyRecord, number: int, prefixes: Sequence[str]) -> Rerun:
    """Repeat a trial up to its last step and compare. Write nothing.

    Raise `NotFoundError` if there is no such trial, `UsageError` if it has no curve yet, and
    `WorkloadCodeError` if its code raises.
    """
    trial = next((one for one in ledger.trials(study.id) if one.number == number), None)
    if trial is None:
        raise NotFoundError(f"study {study.name!r} has no trial {number}")
    stored = ledger.curve(trial.id)
    if trial.params is None or not (len(stored.times) or len(stored.eval_steps)):
        raise UsageError(f"trial {number} of {study.name!r} has no curve to compare with")
    use_threads(study.threads)
    environment = describe(study.spec.training.device) | {"settled": study.settled}
    attempts = [one for one in ledger.attempts(study.id) if one.trial_id == trial.id]
    halvings = sum(one.ending == OUT_OF_MEMORY for one in attempts)
    events = _train(study, trial, prefixes, halvings)
    measured = _values(
        (event.first_step, event.columns, [(e.step, e.metrics) for e in event.evaluations])
        for event in events
    )
    known = _of_chunk(stored)
    wanted = {key: value for key, value in measured.items() if _within(key, trial)}
    then = attempts[-1].environment if attempts else {}
    return Rerun(
        study=study.name,
        trial=number,
        steps=trial.steps,
        values=len(known),
        difference=_first_difference(known, wanted),
        environment=_changes(then, environment),
    )


def _train(
    study: StudyRecord, trial: TrialRecord, prefixes: Sequence[str], halvings: int
) -> list[Event]:
    choice = trainer_choice.settled(study.settled) if study.settled else None
    trainer = trainer_choice.trainer_for(load_workload(study, prefixes), study.spec, choice)
    assert trial.params is not None
    seed = seed_of(study.spec, trial.number, trial.attrs.get(SEED))
    task = Task(number=trial.number, seed=seed, params=trial.params, halvings=halvings)
    with workload_code():
        trainer.admit(task)
    events: list[Event] = []
    try:
        while not events or events[-1].next_step < trial.steps:
            left = trial.steps - (events[-1].next_step if events else 0)
            with workload_code():
                events += trainer.advance(min(BLOCK, max(1, left)))
                if (
                    events[-1].error is not None
                ):  # the trainer returns it, since others may be trained
                    raise events[-1].error
            if events[-1].status in ENDED:
                break
    finally:
        trainer.evict(trial.number)
    return events


Key = tuple[int, int, str]  # step, 0 for an evaluation and 1 for a row, column


def _values(parts: Any) -> dict[Key, float]:
    values: dict[Key, float] = {}
    for first_step, columns, evaluations in parts:
        for name, column in columns.items():
            values |= {(first_step + i, 1, name): float(v) for i, v in enumerate(column)}
        for step, metrics in evaluations:
            values |= {(step, 0, name): float(value) for name, value in metrics.items()}
    return values


def _of_chunk(chunk: Chunk) -> dict[Key, float]:
    evaluations = [
        (int(step), {name: values[i] for name, values in chunk.metrics.items()})
        for i, step in enumerate(chunk.eval_steps)
    ]
    return _values([(chunk.first_step, chunk.columns, evaluations)])


def _within(key: Key, trial: TrialRecord) -> bool:
    """Return whether a trial with so many steps has such a value."""
    step, is_row, _ = key
    return step < trial.steps if is_row else step <= trial.steps


def _first_difference(stored: Mapping[Key, float], again: Mapping[Key, float]) -> Difference | None:
    for key in sorted({*stored, *again}):
        old, new = stored.get(key), again.get(key)
        if old is None or new is None or not _same(old, new):
            return Difference(step=key[0], column=key[2], stored=old, again=new)
    return None


def _same(one: float, other: float) -> bool:
    """Return whether two numbers have the same bits; nan equals nan, and 0 differs from -0."""
    if np.isnan(one) or np.isnan(other):
        return bool(np.isnan(one) and np.isnan(other))
    return one == other and bool(np.signbit(one) == np.signbit(other))


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the differences that may change numbers: packages, machine, device, settings."""
    old = {**then, **then.get("packages", {}), "packages": None}
    new = {**now, **now.get("packages", {}), "packages": None}
    keys = ("device", "machine", "python", "settled", "tuner", "torch", "numpy", "scikit-learn")
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _shown(value: float | None) -> str:
    return "nothing" if value is None else repr(value)


def _plain(value: Any) -> Any:
    is_odd = isinstance(value, float) and not np.isfinite(value)
    return str(value) if is_odd else value
