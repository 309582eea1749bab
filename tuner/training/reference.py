"""The reference trainer: one trial at a time, in a plain loop with torch's optimizer.

It is the baseline that faster trainers are tested against.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from tuner.config import StudySpec, TrialSettings, settings_of
from tuner.training import (
    averaging,
    checkpoint,
    loaders,
    objective,
    optimizers,
    out_of_memory,
    random_state,
)
from tuner.training.batches import BatchOrder, BatchStream, open_stream
from tuner.training.branches import (
    Branch,
    BranchPlan,
    BranchRates,
    FiniteMonitor,
    LossMonitor,
    seed_of_branch,
)
from tuner.training.guard.monitor import GuardMonitor
from tuner.training.loaders import LoaderStream, SeededLoader
from tuner.training.objective import NO_EVALUATIONS, Progress
from tuner.training.precision import Precision
from tuner.training.rate_source import RateSource, rate_source
from tuner.training.trainer import ENDED, Evaluation, Event, Segment, Status, Task
from tuner.training.workloads import Workload

MULTIPLIER = "multiplier"
"""Of the rate of a parameter group."""


@dataclass(eq=False)
class _Member:
    """The trial that is being trained."""

    task: Task
    model: nn.Module
    parameters: list[nn.Parameter]  # of the model
    optimizer: torch.optim.Optimizer
    order: BatchOrder
    stream: BatchStream | LoaderStream | None  # of batches that are not rows in memory
    rate_source: RateSource
    guard: GuardMonitor
    monitor: LossMonitor  # the guard, but for a branch
    precision: Precision
    random: dict[str, Any]  # the trial's own global random state
    accumulate: int  # micro-batches per batch, whose gradients are added
    averages: list[Tensor] | None  # of the parameters, at which it is evaluated
    progress: Progress = NO_EVALUATIONS
    skipped: int = 0  # consecutive steps skipped by mixed precision
    seconds: float = 0.0  # in training, before this call of `advance`
    step: int = 0  # updates so far; everything up to here has been reported in events
    status: Status = Status.TRAINING
    raised: BaseException | None = None  # by the workload, in the last call of `advance`


class ReferenceTrainer:
    """A `Trainer` of one trial at a time.

    During each call torch's global random state (for dropout and the like) is the trial's own. A
    workload that draws from Python's or numpy's global state is not reproducible.
    """

    capacity = 1

    def __init__(
        self, workload: Workload, spec: StudySpec, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Move the data to the training device; `clock` returns seconds.

        Raise `WorkloadError` if the workload does not measure the study's metric.
        """
        objective.check_metric(spec, workload)
        self._trained = workload
        self._spec = spec
        self._clock = clock
        self._device = torch.device(spec.training.device)
        self._dtype: torch.dtype = getattr(torch, spec.training.dtype)
        self._member: _Member | None = None
        self._train_loader: SeededLoader | None = None
        self._validation_loader: SeededLoader | None = None
        self._loaded_size: int | str = 0  # of the batches of the training loader
        self._use(workload, settings_of(spec, {}, workload.rows, workload.keeps_last))

    def _use(self, workload: Workload, settings: TrialSettings) -> None:
        """Move the data of a trial's workload to the training device, unless they are there."""
        if getattr(self, "_workload", None) is not workload:
            self._workload = workload
            self._train = (
                self._on_device(workload.train_inputs),
                self._on_device(workload.train_targets),
            )
            self._validation = (
                self._on_device(workload.validation_inputs),
                self._on_device(workload.validation_targets),
            )
            self._stream = open_stream(workload, settings.batch_size, self._on_device)
            self._train_loader = self._validation_loader = None
            if workload.validation is not None:
                self._validation_loader = SeededLoader(workload.validation, "validation")
        size = settings.batch_size
        if workload.train is not None and (self._train_loader is None or size != self._loaded_size):
            loader = loaders.of_size(workload.train, size)
            self._train_loader, self._loaded_size = SeededLoader(loader, "train"), size
        self._settings = settings
        self._evaluation_steps = frozenset(settings.evaluation_steps)

    def admit(self, task: Task) -> None:
        """Put a trial in the slot. Raise `ValueError` if its snapshot does not match the task."""
        if self._member is not None:
            raise ValueError(
                f"expected a free slot for trial {task.number}, got trial "
                f"{self._member.task.number} in the only one; evict it first"
            )
        workload = self._trained.of(task.params)
        rows, keeps_last = workload.rows, workload.keeps_last
        self._use(workload, settings_of(self._spec, task.params, rows, keeps_last))
        state = None
        if task.snapshot is not None:
            fingerprint = self._fingerprint(task)
            state = checkpoint.matching(task.snapshot, fingerprint, task.number)
        member = self._new_member(task)
        if state is not None:
            _restore(member, state)
        self._member = member

    def advance(self, max_steps: int) -> list[Event]:
        """Train by up to `max_steps` updates, but not past a rung, divergence or the horizon.

        A trial that has ended produces no event. An exception of the workload is raised at once if
        nothing was measured in this call, else from the next call.
        """
        member = self._member
        if member is None or member.status in ENDED:
            return []
        if member.raised is not None:
            raise member.raised
        segment, began = Segment(member.step), self._clock()
        last = self._next_stop(member.step, max_steps)
        member.status = Status.TRAINING
        try:
            self._train_to(member, last, segment, began)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not segment.measured:
                raise
            member.raised = error  # report what was measured before it first
        member.monitor.absorb_calm()
        member.seconds += self._clock() - began
        if member.raised is None and member.status is Status.TRAINING:
            if member.step == self._settings.steps:
                member.status = Status.FINISHED
            elif member.step in self._settings.rungs:
                member.status = Status.AT_RUNG
        value = objective.value_of(self._spec, member.progress)
        rungs = self._settings.rungs
        return [segment.event(member.task.number, member.status, value, rungs)]

    def evict(self, number: int) -> None:
        """Free the slot, whatever the trial's status."""
        self._member_of(number)
        self._member = None

    def step_of(self, number: int) -> int:
        """Return the current step of the member."""
        return self._member_of(number).step

    def snapshot(self, number: int) -> bytes:
        """Return the state needed to resume exactly at the current step."""
        member = self._member_of(number)
        return checkpoint.to_bytes(
            {"fingerprint": self._fingerprint(member.task), **_state(member)}
        )

    def branch(
        self, numbers: Sequence[int], plan: BranchPlan, goes_on: Callable[[], bool]
    ) -> list[Branch] | None:
        """Train and evaluate a copy of the member; see `Trainer.branch`."""
        branches = []
        for number in numbers:
            branch = self._branch(self._member_of(number), plan, goes_on)
            if branch is None:
                return None
            branches.append(branch)
        return branches

    def averages(self, number: int) -> list[Tensor] | None:
        """Return the averages of the parameters, at which a trial is evaluated; None: it is not."""
        return _averages(self._member_of(number))

    # --- branches ---------------------------------------------------------------------------

    def _branch(
        self, member: _Member, plan: BranchPlan, goes_on: Callable[[], bool]
    ) -> Branch | None:
        segment, error = Segment(member.step), None
        metrics = dict.fromkeys(self._workload.metric_names, math.nan)
        rates = self._branch_rates(member, plan)
        try:
            branch = self._copy(member, rates)
            # an optimizer that averages by itself has the better average
            averaged = plan.averaged and optimizers.averages(branch.optimizer, []) is None
            if averaged:
                branch.averages = None
            with random_state.swapped(branch.random):
                parameters = branch.parameters if averaged else []
                averages = [torch.zeros_like(parameter) for parameter in parameters]
                while branch.step < member.step + plan.steps:
                    if not goes_on():
                        return None
                    self._update(branch, segment)
                    if branch.status is not Status.TRAINING:
                        break
                    for average, parameter in zip(averages, parameters, strict=True):
                        average.add_(parameter.detach(), alpha=1.0 / plan.steps)
                else:
                    for average, parameter in zip(averages, parameters, strict=True):
                        parameter.data.copy_(average)
                    self._evaluate(branch, segment)
                    metrics = dict(segment.evaluations[-1].metrics)
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            if out_of_memory.is_out_of_memory(raised):
                raise
            error = raised
        return Branch(
            number=member.task.number,
            step=member.step,
            losses=np.array(segment.losses, dtype=np.float64),
            rates=np.array(segment.rates, dtype=np.float64),
            time=self._clock(),
            metrics=metrics,
            error=error,
        )

    def _branch_rates(self, member: _Member, plan: BranchPlan) -> list[float]:
        later = [step for step in sorted(self._evaluation_steps) if step > member.step]
        return plan.schedule(member.rate_source.ahead(member.step, later), plan.steps)

    def _copy(self, member: _Member, rates: list[float]) -> _Member:
        """Return a copy of a member with other rates and its own random state."""
        branch = self._new_member(member.task)
        _restore(branch, copy.deepcopy(_state(member)))
        branch.status = Status.TRAINING
        branch.rate_source, branch.monitor = BranchRates(member.step, rates), FiniteMonitor()
        seed = seed_of_branch(member.task.seed, member.step)
        branch.random = random_state.seeded_torch(seed, self._device)
        if self._stream is not None:
            branch.stream = self._stream.fork()
        return branch

    # --- one trial --------------------------------------------------------------------------

    def _train_to(self, member: _Member, last: int, segment: Segment, began: float) -> None:
        """Make updates and evaluations until step `last` or the end of the trial."""
        with random_state.swapped(member.random):
            if member.step == 0:
                self._evaluate(member, segment)
            while member.step < last and member.status is Status.TRAINING:
                self._update(member, segment)
                if member.status is Status.TRAINING and member.step in self._evaluation_steps:
                    self._evaluate(member, segment)
                if member.status is Status.TRAINING:
                    self._check_time(member, segment, began)

    def _update(self, member: _Member, segment: Segment) -> None:
        """Make the update from `member.step` to the next, unless the guard stops the trial."""
        step = member.step
        batch = self._batch(member)
        rate = member.rate_source.rate(step)
        for group in member.optimizer.param_groups:
            group["lr"] = rate * group.get(MULTIPLIER, 1.0)
        member.optimizer.zero_grad()
        loss = self._accumulate_gradients(member, batch)
        member.precision.unscale(member.optimizer)
        gradients = [p.grad.reshape(-1) for p in member.parameters if p.grad is not None]
        # one norm of one concatenated vector: fastest for the few layers of a small model
        norm = torch.linalg.vector_norm(torch.cat(gradients))
        grad_norm = norm.item()
        segment.losses.append(loss)
        segment.rates.append(rate)
        segment.grad_norms.append(grad_norm)
        segment.times.append(self._clock())
        skips = member.precision.may_skip and math.isfinite(loss) and not math.isfinite(grad_norm)
        member.skipped = member.skipped + 1 if skips else 0
        reason = member.monitor.observe(loss, 0.0 if skips else grad_norm)
        if member.skipped >= self._spec.guard.skipped_steps:
            reason = (
                f"{member.skipped} steps in a row up to step {step} were skipped, as gradients "
                f"were not finite in {self._settings.precision} however small their scale"
            )
        if reason:
            member.status = Status.DIVERGED
            segment.stopped_step, segment.reason = step, reason
            return
        if self._settings.clip_norm is not None and not skips:
            clip_grads_with_norm_(member.parameters, self._settings.clip_norm, norm)
        member.precision.step(member.optimizer)
        member.step += 1
        if member.averages is not None:
            assert self._spec.training.ema is not None
            weight = averaging.weight_of(self._spec.training.ema, member.step)
            for average, parameter in zip(member.averages, member.parameters, strict=True):
                average.lerp_(parameter.detach(), weight)

    def _batch(self, member: _Member) -> Any:
        """Return the batch of the next step: inputs and targets [row, ...], or a loader's."""
        if member.stream is not None:
            began = self._clock()
            if isinstance(member.stream, LoaderStream):
                batch = loaders.mapped(member.stream.batch(), self._on_device)
            else:
                batch = member.stream.batch(member.step)
            member.seconds -= self._clock() - began  # loading does not count as training time
            return batch
        rows = member.order.rows(member.step)
        inputs, targets = self._train
        return (inputs, targets) if rows is None else (inputs[rows], targets[rows])

    def _accumulate_gradients(self, member: _Member, batch: Any) -> float:
        """Accumulate the gradients of a batch, in micro-batches if asked, and return its loss."""
        if member.accumulate == 1:
            with member.precision.forward():
                loss, _ = self._workload.forwarded(member.model, batch)
            member.precision.backward(loss)
            return loss.item()
        total = 0.0
        for own, share in loaders.micro_batches(batch, member.accumulate):
            with member.precision.forward():
                part = self._workload.forwarded(member.model, own)[0] * share
            member.precision.backward(part)
            total += part.item()
        return total

    def _check_time(self, member: _Member, segment: Segment, began: float) -> None:
        """Evaluate and finish the trial once its time limit is reached."""
        limit, steps = self._spec.training.seconds, self._settings.steps
        if limit is None or member.step >= steps:
            return
        if member.seconds + self._clock() - began < limit:
            return
        if member.step not in self._evaluation_steps:
            self._evaluate(member, segment)
        if member.status is not Status.DIVERGED:
            member.status = Status.FINISHED
            segment.reason = (
                f"its {limit:g} seconds were up at step {member.step} of {steps}; "
                f"{objective.TIME_HINT}"
            )

    def _evaluate(self, member: _Member, segment: Segment) -> None:
        """Evaluate at the current parameters; non-finite values end the trial as diverged."""
        member.model.eval()
        averages = averaging.averages_in(member.parameters, _averages(member))
        with torch.no_grad(), member.precision.forward(), averages:
            metrics = self._measure(member.model)
        member.model.train()
        segment.evaluations.append(
            Evaluation(step=member.step, time=self._clock(), metrics=metrics)
        )
        wrong = objective.non_finite(self._spec, metrics)
        if not all(bool(torch.isfinite(p).all()) for p in member.parameters):
            wrong.append("a parameter was not finite")
        if wrong:
            member.status = Status.DIVERGED
            segment.stopped_step = member.step
            segment.reason = f"{' and '.join(wrong)} at step {member.step}"
            return
        if member.step == 0:
            member.monitor.set_initial_loss(metrics["val_loss"])
        value = metrics[self._spec.study.metric]
        member.rate_source.evaluated(member.step, value)
        member.progress = objective.with_evaluation(self._spec, member.progress, member.step, value)
        steps = self._settings.steps
        segment.reason = objective.early_stop_reason(self._spec, member.progress, steps)
        if segment.reason:
            member.status = Status.FINISHED

    def _measure(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of a model: of a loader's batches, the means weighted by rows."""
        if self._validation_loader is None:
            return self._workload.measured(model, self._validation)
        found, weights = [], []
        # the same batches at every evaluation of every trial
        for batch in LoaderStream(self._validation_loader, 0).epoch_batches():
            found.append(self._workload.measured(model, loaders.mapped(batch, self._on_device)))
            weights.append(loaders.rows_of(batch))
        return {
            name: float(np.average([metrics[name] for metrics in found], weights=weights))
            for name in found[0]
        }

    def _new_member(self, task: Task) -> _Member:
        """Return a new member at step 0."""
        settings = self._settings
        random = random_state.seeded_torch(task.seed, self._device)
        with random_state.swapped(random):
            model = self._workload.model(task.seed, self._dtype).to(self._device, self._dtype)
        model.train()
        parameters = list(model.parameters())
        rates = rate_source(task.params, settings.steps, self._spec.study.direction)
        baseline = self._workload.baseline_loss
        guard = GuardMonitor(self._spec, settings, task.params, rates, baseline)
        stream: BatchStream | LoaderStream | None = self._stream
        if self._train_loader is not None:
            stream = LoaderStream(self._train_loader, task.seed)
        optimizer = optimizers.make(task.params, _groups(self._workload, model))
        averages = None
        by_itself = optimizers.averages(optimizer, []) is not None
        if self._spec.training.ema is not None and not by_itself:
            averages = [parameter.detach().clone() for parameter in parameters]
        return _Member(
            task=task,
            model=model,
            parameters=parameters,
            optimizer=optimizer,
            order=BatchOrder(task.seed, len(self._train[0]), settings.batch_size),
            stream=stream,
            rate_source=rates,
            guard=guard,
            monitor=guard,
            precision=Precision(settings.precision, self._device),
            random=random,
            accumulate=settings.accumulate * 2**task.halvings,
            averages=averages,
        )

    # --- helpers ----------------------------------------------------------

    def _next_stop(self, step: int, max_steps: int) -> int:
        """Return the step where `advance` returns unless the trial ends earlier."""
        assert max_steps >= 1, max_steps
        last = min(step + max_steps, self._settings.steps)
        return min((rung for rung in self._settings.rungs if step < rung < last), default=last)

    def _member_of(self, number: int) -> _Member:
        """Return the member of a trial. Raise `ValueError` if it has no slot."""
        if self._member is None or self._member.task.number != number:
            raise ValueError(f"trial {number} has no slot; admit it first")
        return self._member

    def _on_device(self, data: Tensor) -> Tensor:
        """Return data [row, ...] on the device, floating-point data in the study's dtype."""
        dtype = self._dtype if data.is_floating_point() else data.dtype
        return data.to(self._device, dtype)

    def _fingerprint(self, task: Task) -> dict[str, Any]:
        """Return what a snapshot depends on; another trainer or device would round differently.

        Micro-batches are not included: a trial that ran out of memory continues with smaller ones.
        """
        return {
            "trainer": "reference",
            "device": self._device.type,
            "dtype": self._spec.training.dtype,
            "precision": self._settings.precision or "float32",
            "steps": self._settings.steps,
            "seed": task.seed,
            **{f"params {key}": value for key, value in sorted(task.params.items())},
        }


def _averages(member: _Member) -> list[Tensor] | None:
    """Return the averages at which a member is evaluated: its optimizer's, or its own; or None."""
    return optimizers.averages(member.optimizer, member.parameters) or member.averages


def _groups(workload: Workload, model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer: one, or one for each multiplier of the rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(workload.multiplier_of(name), []).append(parameter)
    return [{"params": own, MULTIPLIER: multiplier} for multiplier, own in groups.items()]


def _state(member: _Member) -> dict[str, Any]:
    """Return the state of a member, which shares its tensors."""
    return {
        "step": member.step,
        "status": member.status.value,
        "model": member.model.state_dict(),
        "optimizer": member.optimizer.state_dict(),
        "pace": member.rate_source.state(),
        "guard": member.guard.state(),
        "precision": member.precision.state(),
        "progress": asdict(member.progress),
        "skipped": member.skipped,
        "seconds": member.seconds,
        "random": member.random,
        "averages": member.averages,
        "data": member.stream.position if isinstance(member.stream, LoaderStream) else None,
    }


def _restore(member: _Member, state: dict[str, Any]) -> None:
    """Set a new member to a state that `_state` returned."""
    member.model.load_state_dict(state["model"])
    optimizers.restore(member.optimizer, state["optimizer"])
    member.rate_source.restore(state["pace"])
    member.guard.restore(state["guard"])
    member.precision.restore(state["precision"])
    member.progress = Progress(**state["progress"])
    member.skipped, member.seconds = state["skipped"], state["seconds"]
    member.random = state["random"]
    if isinstance(member.stream, LoaderStream):
        member.stream.seek(state["data"])
    for average, saved in zip(member.averages or (), state.get("averages") or (), strict=True):
        average.copy_(saved)
    member.step = state["step"]
    member.status = Status(state["status"])
