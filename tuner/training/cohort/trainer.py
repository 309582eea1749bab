"""The cohort trainer: many trials of one study in one step, each with its own rate and optimizer.

Members are computed in *blocks* of a fixed size: their parameters are stacked as rows, and one
forward and backward pass computes a whole block. In double precision it agrees with the reference
trainer to 1e-9 wherever training is stable.

Losses are read and judged at the next evaluation, not at each step. A member that the guard stops
has trained until then with the others; what it measured after its stop is discarded.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuner.config import ParameterValue, StudySpec, settings_of
from tuner.core.errors import WorkloadError
from tuner.training import checkpoint, objective, out_of_memory, random_state
from tuner.training.batches import BatchOrder, open_stream
from tuner.training.branches import (
    Branch,
    BranchPlan,
    BranchRates,
    FiniteMonitor,
    seed_of_branch,
)
from tuner.training.cohort import eligibility, optimizers
from tuner.training.cohort.data import FromLoader, InMemory, Source
from tuner.training.cohort.eligibility import NOTHING, NotStackableError, Plan
from tuner.training.cohort.layout import Block, Own
from tuner.training.cohort.members import Group, Member, averages_in, buffers_of
from tuner.training.cohort.slots import SlotAllocator
from tuner.training.device import without_subnormals
from tuner.training.guard.monitor import GuardMonitor
from tuner.training.objective import Progress
from tuner.training.precision import Precision
from tuner.training.rate_source import rate_source
from tuner.training.trainer import ENDED, Evaluation, Event, Segment, Status, Task
from tuner.training.workloads import Workload

TOGETHER = 64
"""Maximum number of steps before losses are judged, to find diverged members soon."""


class CohortTrainer:
    """A `Trainer` of up to `slots` trials at a time.

    A call of `advance` moves every member that does not end by the same number of steps, and
    returns as soon as one of them needs a decision. Invariant, beyond the contract: a member's
    curve is bitwise the same in any slot of a cohort of any size.

    A `Task`'s halvings are ignored: a cohort has no micro-batches, and is rebuilt with fewer slots
    if memory is short.
    """

    def __init__(
        self,
        workload: Workload,
        spec: StudySpec,
        slots: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        common: Mapping[str, ParameterValue] = NOTHING,
        plan: Plan | None = None,
    ) -> None:
        """Move the data to the device and plan how to stack the model; `clock` returns seconds.

        `common` has the searched arguments and settings that all members share (see
        `eligibility.shared`), of which `workload` is. With the `plan` of an earlier cohort, memory
        is allocated for the members that come instead of for all slots. If it has an example,
        `workload` has that of each member.

        Raise `WorkloadError` if the workload does not measure the study's metric or cannot be
        stacked; `eligibility.reason_not_stackable` checks the latter in advance.
        """
        objective.check_metric(spec, workload)
        try:
            self._plan = plan or eligibility.plan(workload, spec, common)
        except NotStackableError as error:
            raise WorkloadError(f'{error}; set trainer = "reference"') from error
        assert slots >= 1, slots
        self.capacity = slots
        self._trained = workload
        if self._plan.example is not None:
            workload = self._plan.example.workload
        self._workload = workload
        self._spec = spec
        self._clock = clock
        self._device = torch.device(spec.training.device)
        self._dtype: torch.dtype = getattr(torch, spec.training.dtype)
        self._common = dict(common)
        # of every trial, but for the norm at which gradients are clipped
        self._settings = settings_of(spec, common, workload.rows)
        self._precision = Precision(self._settings.precision, self._device)
        self._stream = open_stream(workload, self._settings.batch_size, self._on_device)
        self._source: Source
        if self._stream is None:
            data = workload.train_inputs, workload.train_targets
            self._source = InMemory(*(self._on_device(part) for part in data))
        else:
            self._source = FromLoader(self._stream)
        self._validation = (
            self._on_device(workload.validation_inputs),
            self._on_device(workload.validation_targets),
        )
        self._evaluation_steps = self._settings.evaluation_steps
        at_once = 0 if plan else slots
        self._allocator = SlotAllocator(self._plan, at_once, self._dtype, self._device)
        self._slots: list[Member | None] = [None] * slots

    def admit(self, task: Task) -> None:
        """Put a trial in a free slot. Raise `ValueError` if its snapshot does not match.

        Raise `UnlikeError` if it has a workload of its own that does not fit the plan's example.
        """
        if any(member.task.number == task.number for member in self._members()):
            raise ValueError(f"trial {task.number} has a slot already; evict it first")
        if None not in self._slots:
            raise ValueError(
                f"expected a free slot for trial {task.number}, got {self.capacity} taken ones; "
                "evict a trial first"
            )
        assert self._common.items() <= task.params.items(), (self._common, task.params)
        state = None
        if task.snapshot is not None:
            state = checkpoint.matching(task.snapshot, self._fingerprint(task), task.number)
        place = self._allocator.free(self._members())
        member = self._new_member(task, *place, fresh=state is None)
        if state is not None:
            self._restore(member, state)
        self._slots[self._slots.index(None)] = member

    def advance(self, max_steps: int) -> list[Event]:
        """Train by up to `max_steps` updates, until a rung, the horizon or the end of a member.

        Members that have ended produce no events.
        """
        assert max_steps >= 1, max_steps
        members = [member for member in self._members() if member.status not in ENDED]
        for member in members:
            member.status, member.segment = Status.TRAINING, Segment(member.step)
        self._allocator.compact(self._members())
        if self._stream is not None:
            self._stream.keep({member.step for member in members})
        with without_subnormals():
            self._evaluate(member for member in members if member.step == 0)
            running, left = _training(members), max_steps
            while left and running:
                count = min(left, TOGETHER, *(self._until_evaluation(m) for m in running))
                self._update(running, count, self._source)
                left -= count
                self._evaluate(m for m in _training(running) if m.step in self._evaluation_steps)
                self._set_statuses(running)
                if any(member.status is not Status.TRAINING for member in members):
                    break
        return [self._event(member) for member in members]

    def evict(self, number: int) -> None:
        """Free the slot of a trial, whatever its status."""
        member = self._member_of(number)
        member.block.rows[member.place] = 0.0
        self._slots[self._slots.index(member)] = None

    def step_of(self, number: int) -> int:
        """Return the current step of a member."""
        return self._member_of(number).step

    def snapshot(self, number: int) -> bytes:
        """Return the state needed to resume exactly at the current step.

        A diverged or failed trial has no parameters in it: they may have changed after its stop.
        """
        member = self._member_of(number)
        return checkpoint.to_bytes(
            {"fingerprint": self._fingerprint(member.task), **_state(member)}
        )

    def branch(
        self, numbers: Sequence[int], plan: BranchPlan, goes_on: Callable[[], bool]
    ) -> list[Branch] | None:
        """Train and evaluate copies of members together, in slots of their own.

        See `Trainer.branch`. Raise if memory is short; nothing has changed then.
        """
        members = [self._member_of(number) for number in numbers]
        branches = self._copies(members, plan)
        source = self._source if self._stream is None else FromLoader(self._stream.fork())
        averages = [torch.zeros_like(branch.block.rows[branch.place]) for branch in branches]
        left = plan.steps
        with without_subnormals():
            while left and (running := _training(branches)):
                if not goes_on():
                    return None
                count = 1 if plan.averaged else min(left, TOGETHER)
                self._update(running, count, source)
                left -= count
                if plan.averaged:
                    for average, branch in zip(averages, branches, strict=True):
                        average.add_(branch.block.rows[branch.place], alpha=1.0 / plan.steps)
            if plan.averaged:
                for average, branch in zip(averages, branches, strict=True):
                    # an optimizer that averages by itself has the better average
                    if optimizers.averaged(branch.optimizer) is None:
                        branch.block.rows[branch.place] = average
            self._evaluate(_training(branches))
        return [
            self._branch(member, branch) for member, branch in zip(members, branches, strict=True)
        ]

    # --- branches ---------------------------------------------------------------------------

    def _copies(self, members: list[Member], plan: BranchPlan) -> list[Member]:
        """Return copies of members with other rates and their own random states."""
        allocator = SlotAllocator(self._plan, len(members), self._dtype, self._device)
        branches: list[Member] = []
        for member in members:
            branch = self._new_member(member.task, *allocator.free(branches), fresh=False)
            self._restore(branch, _state(member))
            later = self._evaluation_steps[bisect_right(self._evaluation_steps, member.step) :]
            rates = plan.schedule(member.rate_source.ahead(member.step, later), plan.steps)
            branch.rate_source = BranchRates(member.step, rates)
            branch.monitor = FiniteMonitor()
            if plan.averaged:
                branch.average = None
            branch.random.manual_seed(seed_of_branch(member.task.seed, member.step))
            branch.status, branch.segment = Status.TRAINING, Segment(member.step)
            branches.append(branch)
        return branches

    def _branch(self, member: Member, branch: Member) -> Branch:
        """Return what a trained copy of a member has measured."""
        segment = branch.segment
        metrics = dict.fromkeys(self._workload.metric_names, math.nan)
        if segment.evaluations:
            metrics = dict(segment.evaluations[-1].metrics)
        return Branch(
            number=member.task.number,
            step=member.step,
            losses=np.array(segment.losses, dtype=np.float64),
            rates=np.array(segment.rates, dtype=np.float64),
            time=self._clock(),
            metrics=metrics,
            error=segment.error,
        )

    # --- all members ------------------------------------------------------------------------

    def _update(self, members: list[Member], count: int, source: Source) -> None:
        """Make `count` updates of members in training, then judge the losses."""
        groups = [
            Group(block, own, count, self._plan.frozen, self._spec.training.ema)
            for block, own in _by_block(members)
        ]
        feeds = [source.feed(g.members, len(g.losses[0]), count) for g in groups]
        turns = list(zip(groups, feeds, strict=True))
        # if possible, all steps of one block before the next, so that its rows stay cached
        if source.block_by_block:
            order = ((turn, index) for turn in turns for index in range(count))
        else:
            order = ((turn, index) for index in range(count) for turn in turns)
        for (group, feed), index in order:
            if group.error is None:
                try:
                    group.update(index, *feed(index))
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    if out_of_memory.is_out_of_memory(error):
                        raise
                    group.error = error
                else:
                    group.times.append(self._clock())
        for group in groups:
            done = len(group.times)
            losses, norms = group.losses[:done].T.tolist(), group.norms[:done].T.tolist()
            for member in group.members:
                self._judge(member, losses[member.place], norms[member.place], group.times)
                if group.error is not None and member.status is Status.TRAINING:
                    _fail(member, group.error)

    def _evaluate(self, due: Iterable[Member]) -> None:
        """Evaluate members at their current parameters; non-finite values end them as diverged."""
        for block, members in _by_block(due):
            try:
                with averages_in(block, members):
                    losses, outputs = block.evaluate(*self._validation)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if out_of_memory.is_out_of_memory(error):
                    raise
                for member in members:
                    _fail(member, error)
                continue
            finite, values = _finite(block.rows), losses.tolist()
            for member in members:
                try:
                    metrics = self._measured(member, outputs[member.place])
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    if out_of_memory.is_out_of_memory(error):
                        raise
                    _fail(member, error)
                else:
                    metrics = {"val_loss": values[member.place], **metrics}
                    self._record_evaluation(member, metrics, finite[member.place])

    def _measured(self, member: Member, outputs: Tensor) -> dict[str, float]:
        """Return the metrics of one member from its outputs [row, ...]."""
        targets = self._validation[1]
        with torch.no_grad(), self._precision.forward():
            measures = member.metrics.items()
            return {name: measure(outputs, targets).item() for name, measure in measures}

    # --- one member -------------------------------------------------------------------------

    def _judge(
        self, member: Member, losses: list[float], norms: list[float], times: list[float]
    ) -> None:
        """Record rows up to the one at which the guard stops the member."""
        if not losses:
            return
        seen, segment = 0, member.segment
        while seen < len(losses):
            if member.monitor.observe_if_calm(losses[seen:], norms[seen:]):
                seen = len(losses)
                break
            segment.reason = member.monitor.observe(losses[seen], norms[seen])
            seen += 1
            if segment.reason:
                segment.stopped_step = member.step + seen - 1
                member.status = Status.DIVERGED
                break
        segment.losses += losses[:seen]
        segment.grad_norms += norms[:seen]
        segment.rates += member.rate_source.rates(member.step, seen)
        segment.times += times[:seen]
        # the update after the row at which the guard stops does not count
        member.step += seen - 1 if segment.reason else seen

    def _record_evaluation(self, member: Member, metrics: dict[str, float], finite: bool) -> None:
        """Record an evaluation, and end the member if it requires that."""
        segment, step = member.segment, member.step
        segment.evaluations.append(Evaluation(step=step, time=self._clock(), metrics=metrics))
        wrong = objective.non_finite(self._spec, metrics)
        if not finite:
            wrong.append("a parameter was not finite")
        if wrong:
            member.status = Status.DIVERGED
            segment.stopped_step = step
            segment.reason = f"{' and '.join(wrong)} at step {step}"
            return
        if step == 0:
            member.monitor.set_initial_loss(metrics["val_loss"])
        value = metrics[self._spec.study.metric]
        member.rate_source.evaluated(step, value)
        member.progress = objective.with_evaluation(self._spec, member.progress, step, value)
        steps = self._settings.steps
        segment.reason = objective.early_stop_reason(self._spec, member.progress, steps)
        if segment.reason:
            member.status = Status.FINISHED

    def _set_statuses(self, members: list[Member]) -> None:
        """Set the status of members at the horizon or a rung; copy the buffers of ended members."""
        for member in members:
            if member.status is Status.TRAINING and member.step == self._settings.steps:
                member.status = Status.FINISHED
            elif member.status is Status.TRAINING and member.step in self._settings.rungs:
                member.status = Status.AT_RUNG
            if member.status in ENDED:
                member.buffers = buffers_of(member)

    def _event(self, member: Member) -> Event:
        member.monitor.absorb_calm()
        value = objective.value_of(self._spec, member.progress)
        rungs = self._settings.rungs
        return member.segment.event(member.task.number, member.status, value, rungs)

    def _until_evaluation(self, member: Member) -> int:
        """Return the steps to a member's next evaluation; the horizon and rungs have one."""
        steps = self._evaluation_steps
        return steps[bisect_right(steps, member.step)] - member.step

    def _new_member(self, task: Task, block: Block, place: int, *, fresh: bool) -> Member:
        """Return a new member at step 0 in a free place, with initial parameters if `fresh`.

        Raise `UnlikeError` if its model or loss does not fit the plan.
        """
        settings, workload = self._settings, self._trained.of(task.params)
        generator = torch.Generator(self._device)
        own = Own(numbers={}, loss=workload.loss)
        if fresh or self._plan.example is not None:
            random = random_state.seeded_torch(task.seed, self._device)
            with random_state.swapped(random):
                model = workload.model(task.seed, self._dtype).to(self._dtype)
            generator.set_state(random[str(self._device)])
            own = self._plan.own(workload, model)
            if fresh:
                eligibility.write_model(block, place, model, self._plan.stack.layout)
        block.assign(place, own)
        row, gradient = block.rows[place], block.gradients[place]
        optimizer = optimizers.make(task.params, row, gradient, self._plan.parts)
        averages = self._spec.training.ema is not None and optimizers.averaged(optimizer) is None
        rates = rate_source(task.params, settings.steps, self._spec.study.direction)
        baseline = workload.baseline_loss
        guard = GuardMonitor(self._spec, settings, task.params, rates, baseline)
        return Member(
            task=task,
            block=block,
            place=place,
            optimizer=optimizer,
            order=BatchOrder(task.seed, len(self._workload.train_inputs), settings.batch_size),
            rate_source=rates,
            guard=guard,
            monitor=guard,
            random=generator,
            clip_norm=_clip_norm(task, self._settings.clip_norm),
            own=own,
            metrics=workload.metrics,
            average=row.clone() if averages else None,
        )

    def _restore(self, member: Member, state: dict[str, Any]) -> None:
        """Set a member to the state of a snapshot."""
        trained = state["trained"]
        if trained is not None:
            member.block.rows[member.place] = trained["parameters"]
            for name, buffer in trained["buffers"].items():
                member.block.buffers[name][member.place] = buffer
            optimizers.restore(member.optimizer, trained["optimizer"])
            if member.average is not None:
                member.average.copy_(trained["average"])
            member.rate_source.restore(trained["pace"])
        member.guard.restore(state["guard"])
        member.random.set_state(state["random"])
        member.progress = Progress(**state["progress"])
        member.step, member.status = state["step"], Status(state["status"])
        if member.status is Status.FINISHED:
            member.buffers = buffers_of(member)

    # --- helpers ----------------------------------------------------------

    def _members(self) -> list[Member]:
        return [member for member in self._slots if member is not None]

    def _member_of(self, number: int) -> Member:
        """Return the member of a trial. Raise `ValueError` if it has no slot."""
        for member in self._members():
            if member.task.number == number:
                return member
        raise ValueError(f"trial {number} has no slot; admit it first")

    def _on_device(self, data: Tensor) -> Tensor:
        """Return data [row, ...] on the device, floating-point data in the study's dtype."""
        return data.to(self._device, self._dtype if data.is_floating_point() else data.dtype)

    def _fingerprint(self, task: Task) -> dict[str, Any]:
        """Return what a snapshot depends on; another kind of stack would round differently."""
        return {
            "trainer": "cohort",
            "stack": self._plan.stack.name,
            "device": self._device.type,
            "dtype": self._spec.training.dtype,
            "precision": self._settings.precision or "float32",
            "steps": self._settings.steps,
            "seed": task.seed,
            **{f"params {key}": value for key, value in sorted(task.params.items())},
        }


def _state(member: Member) -> dict[str, Any]:
    """Return a copy of the state of a member.

    A diverged or failed member's has no parameters: they may have changed after its stop.
    """
    trained = None
    if member.status not in {Status.DIVERGED, Status.FAILED}:
        trained = {
            "parameters": member.block.rows[member.place].clone(),
            "buffers": member.buffers or buffers_of(member),
            "average": None if member.average is None else member.average.clone(),
            "optimizer": {key: t.clone() for key, t in member.optimizer.state().items()},
            "pace": member.rate_source.state(),
        }
    return {
        "step": member.step,
        "status": member.status.value,
        "trained": trained,
        "guard": member.guard.state(),
        "progress": asdict(member.progress),
        "random": member.random.get_state(),
    }


def _by_block(members: Iterable[Member]) -> list[tuple[Block, list[Member]]]:
    """Return the members of each block."""
    found: dict[int, tuple[Block, list[Member]]] = {}
    for member in members:
        found.setdefault(id(member.block), (member.block, []))[1].append(member)
    return list(found.values())


def _fail(member: Member, error: BaseException) -> None:
    """Mark a member as failed by an exception of the workload."""
    member.status = Status.FAILED
    member.segment.error, member.segment.reason = error, f"{type(error).__name__}: {error}"


def _finite(rows: Tensor) -> list[bool]:  # rows: [place, parameter]
    """Return which rows are finite, bool [place]."""
    finite = torch.isfinite(rows.sum(dim=1))
    if not finite.all():  # or finite numbers whose sum is not
        finite = torch.isfinite(rows).all(dim=1)
    return [bool(each) for each in finite.tolist()]


def _clip_norm(task: Task, of_study: float | None) -> float | None:
    """Return the norm at which a trial's gradients are clipped: its own, or the study's."""
    own = task.params.get("clip_norm", of_study)
    return None if own is None else float(own)


def _training(members: list[Member]) -> list[Member]:
    return [member for member in members if member.status is Status.TRAINING]
