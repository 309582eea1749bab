"""Trials of different shapes: those of equal shapes train together, and cohorts take turns.

Trials whose searched arguments and settings are equal form a *group*, with a cohort of its own.
Arguments that only change numbers of the model or the loss, such as the probability of dropout, may
differ within a group. The groups share the slots of the study. A group is built when its first
trial is admitted and released once it is empty.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tuner.config import ParameterValue, StudySpec, written
from tuner.core.errors import WorkloadError
from tuner.training import objective, out_of_memory
from tuner.training.branches import Branch, BranchPlan
from tuner.training.cohort import eligibility
from tuner.training.cohort.eligibility import NotStackableError, Pair, Plan
from tuner.training.cohort.structure import UnlikeError
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.out_of_memory import TooManyTogetherError
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import ENDED, Event, Segment, Status, Task
from tuner.training.workloads import Workload

KEPT_PLANS = 128
"""Number of plans that are kept for groups that come back."""

Common = tuple[tuple[str, ParameterValue], ...]
"""Searched arguments and settings of a trial, by name."""


@dataclass(frozen=True)
class Key:
    """What identifies a group."""

    common: Common  # what its trials have in common
    own: tuple[str, ...] = ()  # the arguments that may differ, which all of them have

    def __str__(self) -> str:
        return ", ".join(f"{name} {written(value)}" for name, value in self.common) or "this study"


def common_of(spec: StudySpec, params: Mapping[str, ParameterValue]) -> Common:
    """Return all that the trials of a group may have in common."""
    return tuple((name, params[name]) for name in eligibility.shared(spec) if name in params)


def key_without(common: Common, own: Iterable[str] = ()) -> Key:
    """Return the group of trials that may differ in their `own` arguments."""
    names = tuple(own)
    return Key(tuple((name, value) for name, value in common if name not in names), names)


def reason_not_stackable(
    workload: Workload, spec: StudySpec, some: Iterable[Mapping[str, ParameterValue]]
) -> str:
    """Return why none of `some` trials could be trained with its equals; empty if one can."""
    first = ""
    for common, params in {common_of(spec, params): params for params in some}.items():
        reason = eligibility.reason_not_stackable(workload.of(params), spec, dict(common))
        if not reason:
            return ""
        first = first or reason
    return first


@dataclass(eq=False)
class _Group:
    """The trials that train together."""

    key: Key
    trainer: CohortTrainer | ReferenceTrainer
    members: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)  # members that produce no more events
    broken: bool = False  # after an exception that concerns all members

    @property
    def stacked(self) -> bool:
        return isinstance(self.trainer, CohortTrainer)

    @property
    def is_free(self) -> bool:
        return not self.broken and len(self.members) < self.trainer.capacity


class GroupedTrainer:
    """A `Trainer` of up to `slots` trials at a time, with a cohort for each group.

    A call of `advance` moves each group in turn. A trial that cannot be stacked, whose settings
    only the reference trainer supports, or that ran out of memory by itself, is trained by the
    reference trainer.

    Beyond the contract:
    - a member's curve is bitwise the same as in a cohort of its own;
    - an exception, also running out of memory, concerns the members of one group. A cohort that
      runs out of memory has a `TooManyTogetherError`; the next ones of its group are half as large,
      and below one trial the reference trainer takes over.
    """

    def __init__(
        self,
        workload: Workload,
        spec: StudySpec,
        slots: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Build nothing yet; `clock` returns seconds.

        Raise `WorkloadError` if the workload does not measure the study's metric.
        """
        objective.check_metric(spec, workload)
        assert slots >= 1, slots
        self.capacity = slots
        self._workload = workload
        self._spec = spec
        self._clock = clock
        self._groups: list[_Group] = []
        self._plans: dict[Key, Plan | None] = {}  # None: not stackable
        self._separable: dict[Key, tuple[str, ...]] = {}  # the arguments that may differ, by all
        self._limits: dict[Key, int] = {}  # of the size of a cohort, after it ran out of memory

    def admit(self, task: Task) -> None:
        """Put a trial in a free slot of its group. Raise `ValueError` as a cohort does."""
        if any(task.number in group.members for group in self._groups):
            raise ValueError(f"trial {task.number} has a slot already; evict it first")
        if sum(len(group.members) for group in self._groups) >= self.capacity:
            raise ValueError(
                f"expected a free slot for trial {task.number}, got {self.capacity} taken ones; "
                "evict a trial first"
            )
        alone = Key(common_of(self._spec, task.params))
        try:
            # what ran out of memory is not tried together again
            self._admit(alone if task.halvings else self.key_of(task.params), task)
        except UnlikeError:  # with these values, an argument changes more than numbers
            self._admit(alone, task)

    def _admit(self, key: Key, task: Task) -> None:
        plan = self._plan(key, task)
        equals = [g for g in self._groups if g.key == key and g.stacked == (plan is not None)]
        group = next((group for group in equals if group.is_free), None)
        try:
            group = group or self._new_group(key, task, plan)
            group.trainer.admit(task)
        except Exception as error:
            if plan is None or not out_of_memory.is_out_of_memory(error):
                raise
            raise self._too_many(key, sum(len(group.members) for group in equals)) from error
        group.members.add(task.number)

    def advance(self, max_steps: int) -> list[Event]:
        """Train the members of each group in turn, by up to `max_steps` updates."""
        self._groups = [group for group in self._groups if group.members]
        return [event for group in self._groups for event in self._advance(group, max_steps)]

    def evict(self, number: int) -> None:
        """Free the slot of a trial, whatever its status.

        A group that is empty is released by the next `advance`, unless a trial comes into it.
        """
        group = self._group_of(number)
        group.trainer.evict(number)
        group.members.discard(number)
        group.ended.discard(number)
        if group.broken and not group.members:
            self._groups.remove(group)

    def snapshot(self, number: int) -> bytes:
        """Return the state needed to resume exactly at the member's current step."""
        return self._group_of(number).trainer.snapshot(number)

    def branch(
        self, numbers: Sequence[int], plan: BranchPlan, goes_on: Callable[[], bool]
    ) -> list[Branch] | None:
        """Train and evaluate copies of members, those of a group together; see `Trainer.branch`."""
        found: dict[int, Branch] = {}
        for group in self._groups:
            own = [number for number in numbers if number in group.members]
            branches = group.trainer.branch(own, plan, goes_on) if own else []
            if branches is None:
                return None
            found |= {branch.number: branch for branch in branches}
        return [found[number] for number in numbers]

    # --- groups -----------------------------------------------------------------------------

    def key_of(self, params: Mapping[str, ParameterValue]) -> Key:
        """Return the group of a trial, by training a step with other values of its arguments."""
        several = eligibility.separable(self._spec, params)
        common = common_of(self._spec, params)
        loose = key_without(common, several)
        if loose not in self._separable:
            self._separable[loose] = self._found_separable(loose, params, several)
        key = key_without(common, self._separable[loose])
        return key if not key.own or self._planned(key, params) else key_without(common)

    def _found_separable(
        self, loose: Key, params: Mapping[str, ParameterValue], several: Mapping[str, Pair]
    ) -> tuple[str, ...]:
        """Return the arguments that may differ within a group: all, or those that may alone."""
        if len(several) < 2 or self._planned(loose, params):
            return tuple(several)
        lowest = {**params, **{name: first for name, (first, _) in several.items()}}
        common = common_of(self._spec, lowest)
        return tuple(
            name for name in several if self._planned(key_without(common, (name,)), lowest)
        )

    def _new_group(self, key: Key, task: Task, plan: Plan | None) -> _Group:
        workload = self._workload
        if plan is None or plan.example is None:
            workload = workload.of(task.params)
        trainer: CohortTrainer | ReferenceTrainer
        if plan is None:
            trainer = ReferenceTrainer(workload, self._spec, self._clock)
        else:
            size = self._limits.get(key, self.capacity)
            trainer = CohortTrainer(
                workload, self._spec, size, self._clock, common=dict(key.common), plan=plan
            )
        group = _Group(key, trainer)
        self._groups.append(group)
        return group

    def _plan(self, key: Key, task: Task) -> Plan | None:
        """Return how to stack a trial with others, or None for the reference trainer."""
        if task.halvings or self._limits.get(key) == 0:
            return None
        return self._planned(key, task.params)

    def _planned(self, key: Key, params: Mapping[str, ParameterValue]) -> Plan | None:
        """Return how to train a group together, or None if it cannot be; recent plans are kept."""
        plan = self._plans.pop(key) if key in self._plans else self._new_plan(key, params)
        self._plans[key] = plan  # the latest is last
        if len(self._plans) > KEPT_PLANS:
            del self._plans[next(iter(self._plans))]
        return plan

    def _new_plan(self, key: Key, params: Mapping[str, ParameterValue]) -> Plan | None:
        several = eligibility.separable(self._spec, params)
        pairs = [{name: several[name][index] for name in key.own} for index in (0, 1)]
        try:
            one, other = (self._workload.of({**params, **own}) for own in pairs)
            common = dict(key.common)
            return eligibility.plan(one, self._spec, common, other=other if key.own else None)
        except NotStackableError:
            return None
        except WorkloadError:
            if not key.own:
                raise
            return None  # a combination that the factory refuses

    def _advance(self, group: _Group, max_steps: int) -> list[Event]:
        """Return the events of a group; after an exception, its members have failed."""
        first_steps = {n: group.trainer.step_of(n) for n in group.members - group.ended}
        try:
            events = group.trainer.advance(max_steps) if first_steps else []
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            group.broken = True
            if group.stacked and out_of_memory.is_out_of_memory(error):
                error = self._too_many(group.key, len(group.members))
            events = [_failed(number, first, error) for number, first in first_steps.items()]
        group.ended |= {event.number for event in events if event.status in ENDED}
        return events

    def _too_many(self, key: Key, members: int) -> TooManyTogetherError:
        """Halve the size of cohorts of a group that ran out of memory; return the error."""
        size = min(members, self._limits.get(key, self.capacity)) // 2
        self._limits[key] = size
        now = f"at most {size} at a time" if size else "by the reference trainer"
        return TooManyTogetherError(f"trials of {key} ran out of memory; from now on {now}")

    def _group_of(self, number: int) -> _Group:
        """Return the group of a trial. Raise `ValueError` if it has no slot."""
        for group in self._groups:
            if number in group.members:
                return group
        raise ValueError(f"trial {number} has no slot; admit it first")


def _failed(number: int, first_step: int, error: BaseException) -> Event:
    """Return the event of a member that measured nothing, since its group failed."""
    segment = Segment(first_step, error=error, reason=f"{type(error).__name__}: {error}")
    return segment.event(number, Status.FAILED, None, {})
