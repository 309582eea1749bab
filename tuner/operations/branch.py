"""Scan horizons: decays at several horizons, branched from one stem at a constant rate.

A trial with schedule `wsd` is a stem at a constant rate and a decay. Its checkpoint of the step
where its decay begins is kept, and the trial with the next longer horizon goes on from there. So
the stem is trained once, to where the longest trial's decay begins, and each trial is bit by bit
the one that would have been trained alone. Each belongs to a study of its own, as a horizon is its
study's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from tuner.config import ParameterValue, Space, StudySpec, options, own
from tuner.config.schedules import WSD
from tuner.config.trial_settings import horizon_of
from tuner.core.errors import UsageError
from tuner.core.outcome import COMPLETED, PRUNED
from tuner.core.text import derived
from tuner.ledger import Ledger, StudyRecord, TrialRecord, adding
from tuner.ledger.database import Addresses
from tuner.ledger.records import CONTINUED, PARENT, SEED, sizes_of
from tuner.operations import run
from tuner.operations.context import acting
from tuner.operations.extend import chosen_trial, longer_spec
from tuner.operations.run import Ended
from tuner.training.longer import STEMS, shared_steps, warmup_steps
from tuner.training.trainer import seed_of


@dataclass(frozen=True, kw_only=True)
class Branched:
    """A trial with its own horizon, which is a branch of the stem."""

    study: StudyRecord
    trial: TrialRecord
    length: int  # of the horizon, in the unit of the study
    steps: int  # of the horizon

    @property
    def parent(self) -> Mapping[str, Any] | None:
        """The study and the number of the trial that it branches from."""
        parent: Mapping[str, Any] | None = self.trial.attrs.get(PARENT)
        return parent

    @property
    def continued(self) -> int:
        """The step that it began at."""
        return int(self.trial.attrs.get(CONTINUED, 0))

    @property
    def sentence(self) -> str:
        """How it ended and where it began."""
        value = "" if self.trial.value is None else f" with {self.trial.value:.4g}"
        where = "from its first step"
        if self.continued and self.parent is not None:
            whose = f"trial {self.parent['trial']} of {self.parent['study']!r}"
            where = f"from step {self.continued} of {whose}"
        unit = self.study.spec.unit
        return (
            f"At {self.length} {unit}: {self.trial.state}{value}, trial {self.trial.number} of "
            f"{self.study.name!r}, trained {where}."
        )


@dataclass(frozen=True, kw_only=True)
class Branches:
    """The branches of one stem by their horizons, and how the last training ended."""

    study: StudyRecord  # of the stem
    stem: TrialRecord
    branches: tuple[Branched, ...]
    ended: Ended

    @property
    def trained_steps(self) -> int:
        """The steps that were trained for them."""
        return sum(one.trial.steps - one.continued for one in self.branches)

    @property
    def whole_steps(self) -> int:
        """The steps of as many separate trials."""
        return sum(one.trial.steps for one in self.branches)

    @property
    def sentence(self) -> str:
        """What the branches have saved."""
        share = 100 * self.trained_steps / max(1, self.whole_steps)
        return (
            f"They took {self.trained_steps} steps, {share:.0f} % of the {self.whole_steps} of "
            "separate trials."
        )

    def as_json(self) -> dict[str, Any]:
        """Return what `tuner branch --json` prints."""
        return {
            "study": self.study.name,
            "trial": self.stem.number,
            "branches": [
                {
                    "study": one.study.name,
                    "trial": one.trial.number,
                    one.study.spec.unit: one.length,
                    "parent": one.parent,
                    "continued": one.continued,
                    "state": one.trial.state,
                    "value": one.trial.value,
                    "sentence": one.sentence,
                }
                for one in self.branches
            ],
            "trained_steps": self.trained_steps,
            "whole_steps": self.whole_steps,
            "sentence": self.sentence,
        }


def branch(
    ledger: Ledger,
    places: Addresses,
    study: StudyRecord,
    number: int,
    *,
    at: Sequence[int],
    decay: float | None = None,
    shape: str | None = None,
    prefixes: Sequence[str],
    console: Console | None = None,
    reason: str = "",
) -> Branches:
    """Train a trial with a decay at each horizon in `at`, in the unit of the study's budget.

    The trial has schedule `constant` or `wsd`; `decay` and `shape` are those of `wsd`, by default
    the trial's own. The same call again resumes. Raise `UsageError` and `NotFoundError`.
    """
    stem = chosen_trial(ledger, study, number)
    plans = [_plan(study, stem, length, decay, shape) for length in sorted(set(at))]
    if not plans:
        raise UsageError("--at: expected one horizon or more")
    found: list[Branched] = []
    for plan in plans:
        made = _submit(ledger, study, stem, plan, found, reason)
        ended = run.train_study(ledger, places, made, prefixes, console=console)
        (trial,) = ledger.trials(made.id)
        found.append(
            Branched(
                study=ledger.study(made.name), trial=trial, length=plan.length, steps=plan.steps
            )
        )
        if ended.interrupted or trial.state not in (COMPLETED, PRUNED):
            break  # the stem of the longer ones would end so too
    return Branches(study=study, stem=stem, branches=tuple(found), ended=ended)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A trial to train."""

    length: int  # in the unit of the study
    steps: int
    params: Mapping[str, ParameterValue]
    space: Space


def _plan(
    study: StudyRecord, stem: TrialRecord, length: int, decay: float | None, shape: str | None
) -> _Plan:
    """Return the trial with a decay at a horizon. Raise `UsageError`."""
    params = dict(stem.params or {})
    name = str(params["schedule"])
    if name not in STEMS:
        raise UsageError(
            f"trial {stem.number} of {study.name!r} has schedule {name}, expected one that begins "
            f"with a constant rate: {' or '.join(STEMS)}"
        )
    spec = study.spec
    conditions = {one.name for one in spec.space.parameters() if "schedule" in one.when}
    conditions = {one for one in conditions if "." not in one}
    if conditions:
        raise UsageError(
            f"study {study.name!r} has {', '.join(sorted(conditions))} for some schedules only, so "
            "its trials cannot have another one"
        )
    training = spec.training.model_copy(update={spec.unit: length})
    longer = spec.model_copy(update={"training": training})
    steps = horizon_of(longer, params, *sizes_of(study.workload))
    warmup = warmup_steps(params, study.horizon(params))
    if length < 1 or warmup >= steps - 1:
        raise UsageError(
            f"--at: expected horizons of more than the {warmup} steps of warm-up, got {length} "
            f"{spec.unit}"
        )
    asked = {"decay": decay, "shape": shape}
    schedule = WSD.model_validate(
        {
            "name": "wsd",
            **(own(params, name) if name == "wsd" else {}),
            **{key: value for key, value in asked.items() if value is not None},
            "warmup": warmup / steps,
        }
    )
    chosen = {key: options(entry)[0] for key, entry in schedule.entries()}
    others = {
        key: value
        for key, value in params.items()
        if key != "schedule" and not key.startswith(f"{name}.")
    }
    return _Plan(
        length=length,
        steps=steps,
        params={**others, "schedule": "wsd", **chosen},
        space=spec.space.model_copy(update={"schedule": (schedule,), "constraints": ()}),
    )


def _submit(
    ledger: Ledger,
    study: StudyRecord,
    stem: TrialRecord,
    plan: _Plan,
    branches: Sequence[Branched],
    reason: str,
) -> StudyRecord:
    """Return the study of a branch with its trial; both are created if they do not exist."""
    known = {one.name: one for one in ledger.studies()}
    for spec in _specs(study, stem, plan, len(known)):
        made, act = known.get(spec.study.name), acting(reason)
        if made is None:
            made, _ = ledger.submit(spec, limit=0, workload=study.workload, act=act)
        if made.digest != spec.digest():
            continue
        if not ledger.trials(made.id):
            seed = seed_of(study.spec, stem.number, stem.attrs.get(SEED))
            of, parent = _source(ledger, study, stem, plan, branches)
            adding.extend(ledger, made, of, [(parent, seed)], act, plan.params)
        return ledger.study(made.name)
    raise AssertionError("one of the names is free")


def _specs(study: StudyRecord, stem: TrialRecord, plan: _Plan, taken: int) -> Iterator[StudySpec]:
    """Yield the specification of a branch's study, under one name after another."""
    what = f"trial {stem.number} to {plan.length} {study.spec.unit}"
    for count in range(1, taken + 2):
        name = derived(study.name, what + (f" {count}" if count > 1 else ""))
        spec = longer_spec(study, name, plan.length, plan.space)
        training = spec.training.model_copy(update={"keep_checkpoint": True})
        yield spec.model_copy(update={"training": training})


def _source(
    ledger: Ledger,
    study: StudyRecord,
    stem: TrialRecord,
    plan: _Plan,
    branches: Sequence[Branched],
) -> tuple[StudyRecord, TrialRecord]:
    """Return the trial with the last checkpoint that a branch can go on from; else the stem."""
    best, last = (study, stem), 0
    for of, trial in [(study, stem), *((one.study, one.trial) for one in branches)]:
        kept, params = ledger.last_checkpoint(trial.id), trial.params or {}
        shared = shared_steps(params, of.horizon(params), plan.steps, plan.params)
        if kept is not None and last < kept.step <= shared:
            best, last = (of, trial), kept.step
    return best
