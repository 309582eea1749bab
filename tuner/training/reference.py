"""The reference trainer: one trial, torch's own optimiser, a plain loop; slow, obviously right.

What faster trainers do is tested against this one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tuner.errors import WorkloadError
from tuner.spec import StudySpec
from tuner.training import checkpoint, guard, optimizers
from tuner.training.guard import GuardState, Verdict
from tuner.training.pace import Pace, pace
from tuner.training.trainer import TRAIN_COLUMNS, Evaluation, Event, Status, Task
from tuner.training.workloads import Workload


class BatchOrder:
    """Which rows each step trains on, derived from the step alone, so that nothing is to be saved.

    Every epoch is a permutation of its own, seeded by (seed, epoch), cut into whole batches; the
    ragged rest is left out of that epoch. A batch as large as the data is all rows, in order.
    """

    def __init__(self, seed: int, rows: int, batch_size: int | str) -> None:
        self._seed = seed
        self._rows = rows
        self._size = min(int(batch_size), rows) if batch_size != "full" else rows
        self._epoch = -1
        self._permutation = torch.arange(rows)

    def rows(self, step: int) -> Tensor | None:  # int64 [batch]; None stands for all rows
        """Give the rows of the batch of a step."""
        if self._size == self._rows:
            return None
        epoch, batch = divmod(step, self._rows // self._size)
        if epoch != self._epoch:
            mixed = np.random.SeedSequence([self._seed, epoch]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(mixed[0]))
            self._permutation = torch.randperm(self._rows, generator=generator)
            self._epoch = epoch
        return self._permutation[batch * self._size : (batch + 1) * self._size]


@dataclass(eq=False)
class _Member:
    """The trial that is being trained."""

    task: Task
    model: nn.Module
    parameters: list[nn.Parameter]  # the model's
    optimizer: torch.optim.Optimizer
    order: BatchOrder
    pace: Pace
    guard: GuardState  # of one trial
    random: dict[str, Tensor]  # the trial's own global random state [byte] by device
    step: int = 0  # updates so far; everything measured before and at it has been given out
    status: Status = Status.TRAINING
    calm: float = -math.inf  # losses from 0 to here need no judging
    unseen: list[float] = field(default_factory=list)  # [step], calm losses the guard has not seen


@dataclass(eq=False)
class _Segment:
    """What one call of `advance` measures."""

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    reason: str = ""
    stopped_step: int | None = None


class ReferenceTrainer:
    """Trains one trial at a time; a `Trainer`.

    The trial's global random state (torch's, for dropout and the like) is swapped in for each
    call and out after it. A workload that draws from Python's or numpy's global state would not
    be reproducible.
    """

    capacity = 1

    def __init__(self, workload: Workload, spec: StudySpec) -> None:
        """Put the data where it is trained on.

        Raises `WorkloadError` when the workload does not measure the study's metric.
        """
        if spec.study.metric not in workload.metric_names:
            raise WorkloadError(
                f"[study] metric: expected one of {', '.join(workload.metric_names)}, which "
                f"{spec.workload.factory} measures, got {spec.study.metric}"
            )
        self._workload = workload
        self._spec = spec
        self._device = torch.device(spec.training.device)
        self._dtype: torch.dtype = getattr(torch, spec.training.dtype)
        self._train = self._placed(workload.train_inputs), self._placed(workload.train_targets)
        self._validation = (
            self._placed(workload.validation_inputs),
            self._placed(workload.validation_targets),
        )
        self._rungs = frozenset(spec.rungs())
        self._evaluation_steps = frozenset(spec.evaluation_steps())
        self._member: _Member | None = None

    def admit(self, task: Task) -> None:
        """Give a trial the slot. Raises `ValueError` when a snapshot does not fit the task."""
        if self._member is not None:
            raise ValueError(
                f"expected a free slot for trial {task.number}, got trial "
                f"{self._member.task.number} in the only one; evict it first"
            )
        state = None if task.snapshot is None else self._checked(task)
        member = self._built(task)
        if state is not None:
            member.model.load_state_dict(state["model"])
            optimizers.restore(member.optimizer, state["optimizer"])
            member.pace.restore(state["pace"])
            member.guard = GuardState.of({k: v.numpy() for k, v in state["guard"].items()})
            member.random = state["random"]
            member.step = state["step"]
            member.status = Status(state["status"])
        self._member = member

    def advance(self, max_steps: int) -> list[Event]:
        """Train by up to `max_steps` updates, and not past a rung, divergence or the horizon.

        A trial that is finished or diverged makes no event.
        """
        member = self._member
        if member is None or member.status in {Status.FINISHED, Status.DIVERGED}:
            return []
        segment, first = _Segment(), member.step
        last = self._next_stop(member.step, max_steps)
        member.status = Status.TRAINING
        with _randomness(member.random):
            if member.step == 0:
                self._evaluate(member, segment)
            while member.step < last and member.status is Status.TRAINING:
                self._update(member, segment)
                if member.status is Status.TRAINING and member.step in self._evaluation_steps:
                    self._evaluate(member, segment)
        self._catch_up(member)
        if member.status is Status.TRAINING and member.step == self._spec.training.steps:
            member.status = Status.FINISHED
        elif member.status is Status.TRAINING and member.step in self._rungs:
            member.status = Status.AT_RUNG
        columns = (segment.losses, segment.rates, segment.grad_norms)
        return [
            Event(
                number=member.task.number,
                first_step=first,
                columns=dict(zip(TRAIN_COLUMNS, map(np.array, columns), strict=True)),
                times=np.array(segment.times),
                evaluations=tuple(segment.evaluations),
                status=member.status,
                reason=segment.reason,
                stopped_step=segment.stopped_step,
            )
        ]

    def evict(self, number: int) -> None:
        """Free the slot, whatever the trial's status."""
        self._of(number)
        self._member = None

    def snapshot(self, number: int) -> bytes:
        """Give all that is needed to go on exactly, at the step where the trial is now."""
        member = self._of(number)
        return checkpoint.to_bytes(
            {
                "fingerprint": self._fingerprint(member.task),
                "step": member.step,
                "status": member.status.value,
                "model": member.model.state_dict(),
                "optimizer": member.optimizer.state_dict(),
                "pace": member.pace.state(),
                "guard": {k: torch.from_numpy(v) for k, v in member.guard.arrays().items()},
                "random": member.random,
            }
        )

    # --- one trial --------------------------------------------------------------------------

    def _update(self, member: _Member, segment: _Segment) -> None:
        """Make the update from `member.step` to the next, unless the guard stops the trial."""
        step, (inputs, targets) = member.step, self._train
        rows = member.order.rows(step)
        if rows is not None:
            inputs, targets = inputs[rows], targets[rows]
        rate = member.pace.rate(step)
        for group in member.optimizer.param_groups:
            group["lr"] = rate
        member.optimizer.zero_grad()
        loss = self._workload.loss(member.model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad.reshape(-1) for p in member.parameters if p.grad is not None]
        # one norm of one vector: for the few layers of a small model, a copy is the least work
        grad_norm = torch.linalg.vector_norm(torch.cat(gradients)).item()
        segment.losses.append(loss.item())
        segment.rates.append(rate)
        segment.grad_norms.append(grad_norm)
        segment.times.append(time.monotonic())
        if 0.0 <= segment.losses[-1] <= member.calm and math.isfinite(grad_norm):
            member.unseen.append(segment.losses[-1])
        else:
            self._guard(member, segment, segment.losses[-1], grad_norm)
        if member.status is Status.TRAINING:
            member.optimizer.step()
            member.step += 1

    def _catch_up(self, member: _Member) -> None:
        """Let the guard see the calm losses that it has not seen."""
        member.guard = guard.absorb(member.guard, np.array([member.unseen]))
        member.unseen = []

    def _guard(self, member: _Member, segment: _Segment, loss: float, grad_norm: float) -> None:
        """Let the guard judge the step."""
        self._catch_up(member)
        horizon, settings = self._spec.training.steps, self._spec.guard
        baseline = self._workload.baseline_loss
        member.guard, verdicts = guard.observe(
            member.guard,
            np.array([loss]),
            np.array([grad_norm]),
            horizon=horizon,
            warmup=member.pace.warmup,
            baseline=baseline,
            settings=settings,
        )
        member.calm = float(guard.calm_below(member.guard, settings)[0])
        verdict = int(verdicts[0])
        if verdict == Verdict.GO:
            return
        member.status = Status.DIVERGED
        segment.stopped_step = member.step
        segment.reason = guard.sentence(
            verdict,
            member.guard,
            loss=loss,
            grad_norm=grad_norm,
            horizon=horizon,
            baseline=baseline,
            settings=settings,
        )

    def _evaluate(self, member: _Member, segment: _Segment) -> None:
        """Measure at the parameters of now; numbers that are not finite end the trial."""
        inputs, targets = self._validation
        member.model.eval()
        with torch.no_grad():
            outputs = member.model(inputs)
            measures = {"val_loss": self._workload.loss, **self._workload.metrics}
            metrics = {name: measure(outputs, targets).item() for name, measure in measures.items()}
        member.model.train()
        segment.evaluations.append(
            Evaluation(step=member.step, time=time.monotonic(), metrics=metrics)
        )
        watched = {name: metrics[name] for name in ("val_loss", self._spec.study.metric)}
        wrong = [f"{name} was {value}" for name, value in watched.items() if not np.isfinite(value)]
        if not all(bool(torch.isfinite(p).all()) for p in member.parameters):
            wrong.append("a parameter was not finite")
        if wrong:
            member.status = Status.DIVERGED
            segment.stopped_step = member.step
            segment.reason = f"{' and '.join(wrong)} at step {member.step}"
        else:
            member.pace.evaluated(member.step, metrics[self._spec.study.metric])

    def _built(self, task: Task) -> _Member:
        """Build a trial at step 0."""
        training = self._spec.training
        # the device's generator beside the CPU's, since layers draw from the one where they are
        generators = {"cpu": torch.Generator(), str(self._device): torch.Generator(self._device)}
        random = {key: made.manual_seed(task.seed).get_state() for key, made in generators.items()}
        with _randomness(random):
            model = self._workload.model(task.seed, self._dtype).to(self._device, self._dtype)
        model.train()
        parameters = list(model.parameters())
        return _Member(
            task=task,
            model=model,
            parameters=parameters,
            optimizer=optimizers.make(task.params, parameters),
            order=BatchOrder(task.seed, len(self._train[0]), training.batch_size),
            pace=pace(task.params, training.steps, self._spec.study.direction),
            guard=guard.start(1, self._spec.guard),
            random=random,
        )

    # --- what belongs to the trainer ----------------------------------------------------------

    def _next_stop(self, step: int, max_steps: int) -> int:
        """Give the step where `advance` returns, if nothing stops it earlier."""
        assert max_steps >= 1, max_steps
        last = min(step + max_steps, self._spec.training.steps)
        return min((rung for rung in self._rungs if step < rung < last), default=last)

    def _of(self, number: int) -> _Member:
        """Give the member with a trial's number."""
        if self._member is None or self._member.task.number != number:
            raise ValueError(f"trial {number} has no slot here; admit it first")
        return self._member

    def _placed(self, data: Tensor) -> Tensor:
        """Put data on the device, floating-point numbers in the study's dtype."""
        dtype = self._dtype if data.is_floating_point() else data.dtype
        return data.to(self._device, dtype)

    def _fingerprint(self, task: Task) -> dict[str, Any]:
        """Tell what a snapshot depends on; another trainer or device would round differently."""
        return {
            "trainer": "reference",
            "device": self._device.type,
            "dtype": self._spec.training.dtype,
            "steps": self._spec.training.steps,
            "seed": task.seed,
            **{f"params {key}": value for key, value in sorted(task.params.items())},
        }

    def _checked(self, task: Task) -> dict[str, Any]:
        """Read a task's snapshot and compare its fingerprint. Raises `ValueError`."""
        assert task.snapshot is not None
        state = checkpoint.from_bytes(task.snapshot)
        found, expected = state.get("fingerprint", {}), self._fingerprint(task)
        differences = [
            f"{key}: expected {expected.get(key)!r}, got {found.get(key)!r}"
            for key in sorted({*expected, *found})
            if found.get(key) != expected.get(key)
        ]
        if differences:
            raise ValueError(
                f"the snapshot does not fit trial {task.number} ({'; '.join(differences)}); start "
                "the trial from step 0, or where the snapshot was made"
            )
        return state


@contextmanager
def _randomness(own: dict[str, Tensor]) -> Iterator[None]:
    """Swap a trial's random state [byte] of each device for the process's, and back after."""
    before = {device: _random_state(device) for device in own}
    for device, state in own.items():
        _set_random_state(device, state)
    try:
        yield
    finally:
        own.update({device: _random_state(device) for device in own})
        for device, state in before.items():
            _set_random_state(device, state)


def _random_state(device: str) -> Tensor:
    return torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state(device)


def _set_random_state(device: str, state: Tensor) -> None:
    if device == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)
