"""Train chosen trials further, to a longer horizon.

A trial ends once, and its horizon is its study's, so the longer trials belong to a study of their
own, with the parameters and the seeds of the chosen ones. Where the schedule does not depend on the
horizon, a longer trial goes on from the shorter one's checkpoint, if that is kept, or else repeats
its steps bit by bit; with other schedules it starts anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from tuner.config import Space, StudySpec
from tuner.core.errors import NotFoundError, UsageError
from tuner.core.outcome import COMPLETED, PRUNED
from tuner.core.text import derived
from tuner.ledger import Ledger, StudyRecord, TrialRecord, adding
from tuner.ledger.database import Addresses
from tuner.ledger.events import Act
from tuner.ledger.records import CONTINUED, SEED
from tuner.operations import run
from tuner.operations.context import acting
from tuner.operations.run import Ended
from tuner.training.longer import shared_steps
from tuner.training.trainer import seed_of


@dataclass(frozen=True, kw_only=True)
class Extended:
    """A trial, and the longer one that extends it."""

    parent: TrialRecord
    trial: TrialRecord
    shared_steps: int  # steps that both have, with the same rates: all of the parent's, or fewer
    horizon: int  # of the parent, in steps
    continued: int  # the step of its parent's checkpoint that it went on from; 0: none

    @property
    def continues(self) -> bool:
        """Whether its curve goes on where its parent's ended."""
        return self.shared_steps >= min(self.horizon, self.parent.steps)

    @property
    def sentence(self) -> str:
        """What was done, and how it ended."""
        schedule = (self.parent.params or {})["schedule"]
        what = f"Trial {self.parent.number} is trial {self.trial.number}"
        if self.continued:
            how = f"it goes on from the checkpoint of step {self.continued}"
        elif self.continues:
            how = f"it has no checkpoint to go on from, so it repeats {self.parent.steps} steps"
        else:
            how = f"it starts anew, as {schedule} depends on the horizon"
        value = "" if self.trial.value is None else f", {self.trial.value:.4g}"
        before = "" if self.parent.value is None else f" (was {self.parent.value:.4g})"
        return f"{what}: {how}; {self.trial.state}{value}{before}."


@dataclass(frozen=True, kw_only=True)
class Extension:
    """The study of the longer trials, and how its training ended."""

    study: StudyRecord
    parent: StudyRecord
    trials: tuple[Extended, ...]
    ended: Ended

    def as_json(self) -> dict[str, Any]:
        """Return what `tuner extend --json` prints."""
        spec = self.study.spec
        return {
            "study": self.parent.name,
            "extension": self.study.name,
            spec.unit: spec.length,
            "trials": [
                {
                    "parent": one.parent.number,
                    "trial": one.trial.number,
                    "continues": one.continues,
                    "shared_steps": one.shared_steps,
                    "continued": one.continued,
                    "state": one.trial.state,
                    "value": one.trial.value,
                    "sentence": one.sentence,
                }
                for one in self.trials
            ],
        }


def extend(
    ledger: Ledger,
    places: Addresses,
    study: StudyRecord,
    numbers: Sequence[int],
    *,
    more: Mapping[str, int | None],
    prefixes: Sequence[str],
    console: Console | None = None,
    reason: str = "",
) -> Extension:
    """Train trials further, as trials of another study; call again to resume.

    `more` is by how much, such as `{"steps": 1000}`, in the unit of the study's budget of a trial.
    Raise `UsageError` for another unit and for trials that are not completed or pruned, and
    `NotFoundError` for unknown ones.
    """
    chosen = [chosen_trial(ledger, study, number) for number in dict.fromkeys(numbers)]
    if not chosen:
        raise UsageError("expected the number of at least one trial")
    longer, added = submit(ledger, study, chosen, _more(study, more), act=acting(reason))
    ended = run.train_study(ledger, places, longer, prefixes, console=console)
    trials = {trial.number: trial for trial in ledger.trials(longer.id)}
    found = tuple(
        Extended(
            parent=one,
            trial=trials[added[one.number]],
            shared_steps=shared_steps(
                one.params or {}, study.horizon(one.params), longer.horizon(one.params)
            ),
            horizon=study.horizon(one.params),
            continued=trials[added[one.number]].attrs.get(CONTINUED, 0),
        )
        for one in chosen
    )
    return Extension(study=ledger.study(longer.name), parent=study, trials=found, ended=ended)


def submit(
    ledger: Ledger,
    study: StudyRecord,
    chosen: Sequence[TrialRecord],
    more: int,
    act: Act | None = None,
) -> tuple[StudyRecord, dict[int, int]]:
    """Add the longer trials to their study, which is created if there is none.

    They are longer by `more`, in the unit of the study. Return it, and the numbers of its trials by
    those of the trials that they extend.
    """
    spec = study.spec
    seeds = [seed_of(spec, one.number, one.attrs.get(SEED)) for one in chosen]
    known = {one.name: one for one in ledger.studies()}
    length = spec.length + more
    for count in range(1, len(known) + 2):
        what = f"to {length} {spec.unit}" + (f" {count}" if count > 1 else "")
        longer = longer_spec(study, derived(study.name, what), length)
        existing = known.get(longer.study.name)
        if existing is None:  # without a budget, until its trials are added
            existing, _ = ledger.submit(longer, limit=0, workload=study.workload, act=act)
        if existing.digest == longer.digest():
            parents = list(zip(chosen, seeds, strict=True))
            added = adding.extend(ledger, existing, study, parents, act)
            return ledger.study(existing.name), added
    raise AssertionError("one of the names is free")


def _more(study: StudyRecord, more: Mapping[str, int | None]) -> int:
    """Return by how much trials are extended, in the unit of their study."""
    unit = study.spec.unit
    given = {name: count for name, count in more.items() if count is not None}
    if list(given) != [unit]:
        raise UsageError(
            f"study {study.name!r} counts in {unit}: expected the number of {unit} beyond the "
            f"{study.spec.length} of its trials, got {' and '.join(given) or 'nothing'}"
        )
    if given[unit] < 1:
        raise UsageError(f"{unit}: expected a whole number above 0, got {given[unit]}")
    return given[unit]


def chosen_trial(ledger: Ledger, study: StudyRecord, number: int) -> TrialRecord:
    """Return a trial that can be trained further. Raise `UsageError` or `NotFoundError`."""
    trial = ledger.trial(study.id, number)
    if trial is None:
        raise NotFoundError(f"study {study.name!r} has no trial {number}")
    if study.spec.workload.ask_and_tell:
        raise UsageError(f"study {study.name!r} has no function to train; its caller trains")
    if trial.imported:
        raise UsageError(
            f"trial {number} of {study.name!r} was imported, and only its own version can extend it"
        )
    if trial.state not in (COMPLETED, PRUNED):
        advice = f"; `tuner retry {study.name} {number}` trains it again"
        raise UsageError(
            f"trial {number} of {study.name!r} is {trial.state}, expected a completed or a pruned "
            f"one{advice if trial.state == 'failed' else ''}"
        )
    return trial


def longer_spec(
    study: StudyRecord, name: str, length: int, space: Space | None = None
) -> StudySpec:
    """Return the study of the longer trials, which trains them to the end.

    It has the space of the shorter ones' study, unless another one is given.
    """
    spec = study.spec
    interval = spec.training.evaluation_interval
    longer = {spec.unit: length, "threads": study.threads, "evaluate_every": interval}
    trainer = (study.settled or {}).get("trainer")
    if trainer in ("cohort", "reference"):  # another one rounds differently
        longer["trainer"] = trainer
    budget = spec.budget.model_copy(
        update={
            "trials": 1,
            "wall_seconds": None,
            "compute_seconds": None,
            "no_improvement": None,
            "regret_below": None,
            "improvement_below": None,
        }
    )
    plain = StudySpec.model_validate(
        {
            "study": {"name": name},
            "workload": spec.workload,
            "training": {"steps": 1},
            "search": {"sampler": "random", "pruner": "none"},
            "budget": {"trials": 1},
        }
    )
    about = {"name": name, "description": f"Trials of {study.name}, to {length} {spec.unit}."}
    return plain.model_copy(
        update={
            "study": spec.study.model_copy(update=about),
            "training": spec.training.model_copy(update=longer),
            "space": spec.space if space is None else space,
            "guard": spec.guard,
            "budget": budget,
        }
    )
