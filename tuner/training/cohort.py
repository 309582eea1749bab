"""The cohort trainer: many trials of one study in one step, each with its own rate and optimiser.

Members are computed in *blocks* of a fixed size: their parameters lie in rows, and one forward and
backward pass goes through all of a block (`tuner.training.stacked`). What it must agree with is the
reference trainer: in double precision to 1e-9 wherever training is stable.

Losses are read and judged not at each step but at the next evaluation. A member that the guard
stops has gone on until then, beside the others; what it measured after its stop is cut off.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from tuner.errors import WorkloadError
from tuner.spec import StudySpec
from tuner.training import checkpoint, objective, randomness
from tuner.training.batches import BatchOrder
from tuner.training.device import without_subnormals
from tuner.training.objective import Progress
from tuner.training.pace import pace
from tuner.training.segment import Segment
from tuner.training.stacked import fitness, updates
from tuner.training.stacked.fitness import NotStackableError
from tuner.training.stacked.members import Group, Member, buffers_of
from tuner.training.trainer import ENDED, Evaluation, Event, Status, Task
from tuner.training.watch import Watch
from tuner.training.workloads import Workload

TOGETHER = 64
"""Steps before losses are judged, at most: a member that diverged is soon found."""


class CohortTrainer:
    """Trains up to `slots` trials at a time; a `Trainer`.

    A call of `advance` moves every member by the same number of steps, but for those that end, and
    returns as soon as one of them needs a decision. Invariant, beyond the contract: a member's
    curve is bitwise the same in any slot of a cohort of any size.
    """

    def __init__(
        self,
        workload: Workload,
        spec: StudySpec,
        slots: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Place the data, and find out how to stack the model; `clock` gives seconds.

        Raises `WorkloadError` when the workload does not measure the study's metric, or cannot be
        trained like this: `fitness.obstacle` says so beforehand.
        """
        objective.refuse_unmeasured(spec, workload)
        try:
            self._plan = fitness.plan(workload, spec)
        except NotStackableError as error:
            raise WorkloadError(f'{error}; set trainer = "reference"') from error
        assert slots >= 1, slots
        self.capacity = slots
        self._workload = workload
        self._spec = spec
        self._clock = clock
        self._dtype: torch.dtype = getattr(torch, spec.training.dtype)
        self._train = self._placed(workload.train_inputs), self._placed(workload.train_targets)
        self._validation = (
            self._placed(workload.validation_inputs),
            self._placed(workload.validation_targets),
        )
        self._rungs = frozenset(spec.rungs())
        self._evaluation_steps = spec.evaluation_steps()
        self._blocks = self._plan.blocks(slots, self._dtype)
        self._places = [
            (block, place) for block in self._blocks for place in range(len(block.rows))
        ]
        self._slots: list[Member | None] = [None] * slots

    def admit(self, task: Task) -> None:
        """Give a trial a free slot. Raises `ValueError` when a snapshot does not fit the task."""
        if any(member.task.number == task.number for member in self._members()):
            raise ValueError(f"trial {task.number} has a slot here already; evict it first")
        if None not in self._slots:
            raise ValueError(
                f"expected a free slot for trial {task.number}, got {self.capacity} taken ones; "
                "evict a trial first"
            )
        if task.halvings:
            raise ValueError(
                f"trial {task.number}: expected no halvings, as a cohort has no micro-batches, got "
                f'{task.halvings}; set trainer = "reference"'
            )
        state = None
        if task.snapshot is not None:
            state = checkpoint.matching(task.snapshot, self._fingerprint(task), task.number)
        slot = self._slots.index(None)
        member = self._built(task, slot, state is None)
        if state is not None:
            self._restore(member, state)
        self._slots[slot] = member

    def advance(self, max_steps: int) -> list[Event]:
        """Train by up to `max_steps` updates, until a rung, the horizon or the end of a member.

        Members that have ended make no events.
        """
        assert max_steps >= 1, max_steps
        members = [member for member in self._members() if member.status not in ENDED]
        for member in members:
            member.status, member.segment = Status.TRAINING, Segment(member.step)
        with without_subnormals():
            self._evaluate(member for member in members if member.step == 0)
            running, left = _training(members), max_steps
            while left and running:
                count = min(left, TOGETHER, *(self._until_evaluation(m) for m in running))
                self._update(running, count)
                left -= count
                self._evaluate(m for m in _training(running) if m.step in self._evaluation_steps)
                self._mark(running)
                if any(member.status is not Status.TRAINING for member in members):
                    break
        return [self._event(member) for member in members]

    def evict(self, number: int) -> None:
        """Free the slot of a trial, whatever its status."""
        member = self._of(number)
        member.block.rows[member.place] = 0.0
        self._slots[self._slots.index(member)] = None

    def snapshot(self, number: int) -> bytes:
        """Give all that is needed to go on exactly, at the step where the trial is now.

        A diverged trial's parameters are of no use: it may have moved after its stop.
        """
        member = self._of(number)
        return checkpoint.to_bytes(
            {
                "fingerprint": self._fingerprint(member.task),
                "step": member.step,
                "status": member.status.value,
                "parameters": member.block.rows[member.place].clone(),
                "buffers": member.buffers or buffers_of(member),
                "optimizer": {key: t.clone() for key, t in member.update.state().items()},
                "guard": member.watch.state(),
                "progress": asdict(member.progress),
                "random": member.random.get_state(),
            }
        )

    # --- all members ------------------------------------------------------------------------

    def _update(self, members: list[Member], count: int) -> None:
        """Make some updates of members that are in training, then judge what they measured."""
        groups = [
            Group(block, own, count, self._spec.training.clip_norm)
            for block in self._blocks
            if (own := [member for member in members if member.block is block])
        ]
        for group in groups:  # all steps of one before the next: its rows stay in the cache
            times = []
            for index in range(count):
                group.update(index, *self._train)
                times.append(self._clock())
            losses, norms = group.losses.T.tolist(), group.norms.T.tolist()
            for member in group.members:
                self._judge(member, losses[member.place], norms[member.place], times)

    def _evaluate(self, due: Iterable[Member]) -> None:
        """Measure members at their parameters of now; numbers that are not finite end them."""
        waiting = list(due)
        for block in self._blocks:
            members = [member for member in waiting if member.block is block]
            if not members:
                continue
            losses, outputs = block.evaluate(*self._validation)
            low, high = block.rows.aminmax(dim=1)  # [place]
            finite = (torch.isfinite(low) & torch.isfinite(high)).tolist()
            values = losses.tolist()
            for member in members:
                metrics = {"val_loss": values[member.place]}
                with torch.no_grad():
                    for name, measure in self._workload.metrics.items():
                        measured = measure(outputs[member.place], self._validation[1])
                        metrics[name] = measured.item()
                self._take_in(member, metrics, finite[member.place])

    # --- one member -------------------------------------------------------------------------

    def _judge(
        self, member: Member, losses: list[float], norms: list[float], times: list[float]
    ) -> None:
        """Take in rows, up to the one where the guard stops the member."""
        seen, segment = 0, member.segment
        for seen, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
            segment.reason = member.watch.see(loss, norm)
            if segment.reason:
                segment.stopped_step = member.step + seen - 1
                member.status = Status.DIVERGED
                break
        segment.losses += losses[:seen]
        segment.grad_norms += norms[:seen]
        segment.rates += [member.pace.rate(member.step + index) for index in range(seen)]
        segment.times += times[:seen]
        # the update of a row where the guard stops does not count
        member.step += seen - 1 if segment.reason else seen

    def _take_in(self, member: Member, metrics: dict[str, float], finite: bool) -> None:
        """Record an evaluation, and end the member where it says so."""
        segment, step = member.segment, member.step
        segment.evaluations.append(Evaluation(step=step, time=self._clock(), metrics=metrics))
        wrong = objective.not_finite(self._spec, metrics)
        if not finite:
            wrong.append("a parameter was not finite")
        if wrong:
            member.status = Status.DIVERGED
            segment.stopped_step = step
            segment.reason = f"{' and '.join(wrong)} at step {step}"
            return
        if step == 0:
            member.watch.began(metrics["val_loss"])
        value = metrics[self._spec.study.metric]
        member.pace.evaluated(step, value)
        member.progress = objective.observed(self._spec, member.progress, step, value)
        segment.reason = objective.out_of_patience(self._spec, member.progress)
        if segment.reason:
            member.status = Status.FINISHED

    def _mark(self, members: list[Member]) -> None:
        """Say who is at the horizon or at a rung, and keep what is lost when a block goes on."""
        for member in members:
            if member.status is Status.TRAINING and member.step == self._spec.training.steps:
                member.status = Status.FINISHED
            elif member.status is Status.TRAINING and member.step in self._rungs:
                member.status = Status.AT_RUNG
            if member.status in ENDED:
                member.buffers = buffers_of(member)

    def _event(self, member: Member) -> Event:
        member.watch.catch_up()
        value = objective.value_of(self._spec, member.progress)
        return member.segment.event(member.task.number, member.status, value)

    def _until_evaluation(self, member: Member) -> int:
        """Count the steps to a member's next evaluation; the horizon and rungs have one."""
        steps = self._evaluation_steps
        return steps[bisect_right(steps, member.step)] - member.step

    def _built(self, task: Task, slot: int, fresh: bool) -> Member:
        """Build a trial at step 0 in a slot; without parameters unless it is to start afresh."""
        training, (own, place) = self._spec.training, self._places[slot]
        generator = torch.Generator()
        if fresh:
            random = randomness.of_torch(task.seed, torch.device("cpu"))
            with randomness.swapped(random):
                model = self._workload.model(task.seed, self._dtype).to(self._dtype)
            generator.set_state(random["cpu"])
            fitness.put(own, place, model, self._plan.stack.layout)
        planned = pace(task.params, training.steps, self._spec.study.direction)
        return Member(
            task=task,
            block=own,
            place=place,
            update=updates.make(task.params, own.rows[place], own.gradients[place]),
            order=BatchOrder(task.seed, len(self._train[0]), training.batch_size),
            pace=planned,
            watch=Watch(self._spec, planned, self._workload.baseline_loss),
            random=generator,
        )

    def _restore(self, member: Member, state: dict[str, Any]) -> None:
        """Go on from a snapshot."""
        member.block.rows[member.place] = state["parameters"]
        for name, buffer in state["buffers"].items():
            member.block.buffers[name][member.place] = buffer
        updates.restore(member.update, state["optimizer"])
        member.watch.restore(state["guard"])
        member.random.set_state(state["random"])
        member.progress = Progress(**state["progress"])
        member.step, member.status = state["step"], Status(state["status"])
        member.buffers = state["buffers"] if member.status in ENDED else None

    # --- what belongs to the trainer ----------------------------------------------------------

    def _members(self) -> list[Member]:
        return [member for member in self._slots if member is not None]

    def _of(self, number: int) -> Member:
        """Give the member with a trial's number."""
        for member in self._members():
            if member.task.number == number:
                return member
        raise ValueError(f"trial {number} has no slot here; admit it first")

    def _placed(self, data: Tensor) -> Tensor:
        """Put data where it is trained on, floating-point numbers in the study's dtype."""
        return data.to(self._dtype) if data.is_floating_point() else data

    def _fingerprint(self, task: Task) -> dict[str, Any]:
        """Tell what a snapshot depends on; another way to stack would round differently."""
        return {
            "trainer": "cohort",
            "stack": self._plan.stack.name,
            "device": "cpu",
            "dtype": self._spec.training.dtype,
            "steps": self._spec.training.steps,
            "seed": task.seed,
            **{f"params {key}": value for key, value in sorted(task.params.items())},
        }


def _training(members: list[Member]) -> list[Member]:
    return [member for member in members if member.status is Status.TRAINING]
