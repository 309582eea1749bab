"""Whether and how the trials of a study can be trained together, found by experiment."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tuner.config import ParameterValue, StudySpec, TrialSettings, settings_of
from tuner.config.space import SETTINGS
from tuner.config.values import Range, WholeRange
from tuner.training import out_of_memory, random_state
from tuner.training.cohort import dropout
from tuner.training.cohort.layers import FILLED, DenseStack, chain_of
from tuner.training.cohort.layout import Block, Layout, Own, Part, Stack
from tuner.training.cohort.losses import loss_of
from tuner.training.cohort.optimizers import OF_WHOLE_ROWS
from tuner.training.cohort.structure import Example, UnlikeError, differences, numbers_of
from tuner.training.cohort.vmapped import VmapStack
from tuner.training.workloads import Workload, seeded

SMALL = 20_000
"""Up to this many parameters, a step costs more in calls than in arithmetic."""

WIDE = 32
"""Maximum places of a block of small models."""

CALLS = 18_000
"""The calls of a block's step cost as much as places with this many parameters together."""

CLOSE = 1e-7
"""Relative tolerance between stacked and single results in double precision."""


Pair: TypeAlias = tuple[float, float]
"""Two values of an argument."""

NOTHING: Mapping[str, ParameterValue] = MappingProxyType({})


class NotStackableError(ValueError):
    """The trials of a study cannot be trained together; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train the trials of a study together."""

    stack: Stack
    sizes: tuple[int, ...]  # possible block sizes in places, ascending
    parameters: int = CALLS // 2  # of a member
    example: Example | None = None  # if members have workloads of their own, which are like it
    parts: tuple[Part, ...] = ()  # of a row, by how they are trained; none: all alike

    @property
    def frozen(self) -> tuple[slice, ...]:
        """The parts of a row that are not trained."""
        return tuple(part.place for part in self.parts if part.multiplier is None)

    def own(self, workload: Workload, model: nn.Module) -> Own:
        """Return what a member has of its own. Raise `UnlikeError` if it does not fit the plan."""
        if self.example is None:
            return Own(numbers={}, loss=workload.loss)
        self.example.check(workload, model)
        return Own(numbers=numbers_of(model, self.example.numbers), loss=workload.loss)

    def sizes_for(self, members: int) -> list[int]:
        """Return the cheapest block sizes for `members`; only the last may be partly empty."""
        return list(_cheapest(self.sizes, members, self.calls))

    def cost(self, sizes: Iterable[int]) -> float:
        """Return what a step of blocks costs, in places."""
        return sum(size + self.calls for size in sizes)

    @property
    def calls(self) -> float:
        """The calls of a block's step, in places that cost as much."""
        return CALLS / max(1, self.parameters)


@functools.cache
def _cheapest(sizes: tuple[int, ...], members: int, calls: float) -> tuple[int, ...]:
    """Return the sizes, descending, whose sum with `calls` for each is least."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for count in range(1, members + 1):
        best.append(
            min(
                (cost + size + calls, (*others, size))
                for size in sizes
                for cost, others in [best[max(0, count - size)]]
            )
        )
    return tuple(sorted(best[members][1], reverse=True))


def shared(spec: StudySpec) -> list[str]:
    """Return the names of the searched parameters that may have to be equal in a cohort.

    These are the arguments, which may decide shapes (but see `separable`), and the settings,
    without the norm at which gradients are clipped, which a member has of its own.
    """
    settings = [name for name in SETTINGS if name != "clip_norm" and getattr(spec.space, name)]
    return [*settings, *spec.space.function_arguments]


def separable(spec: StudySpec, params: Mapping[str, ParameterValue]) -> dict[str, Pair]:
    """Return the arguments of a trial that may only change numbers, with two values to try.

    They are those with values that are not whole numbers, such as a probability. The values are
    inside of a range, and the highest of a list: at its ends a model often has another form.
    """
    found: dict[str, Pair] = {}
    for one in spec.space.parameters():
        if one.name not in spec.space.function_arguments or one.name not in params:
            continue
        entry = one.entry
        if isinstance(entry, Range) and not isinstance(entry, WholeRange):
            low, high = (math.log(e) if entry.log else e for e in (entry.low, entry.high))
            inside = [low + (high - low) * share for share in (1 / 3, 2 / 3)]
            first, second = (math.exp(e) if entry.log else e for e in inside)
            found[one.name] = first, second
        elif one.varies and one.ordered and any(value % 1 for value in one.ordered):
            found[one.name] = one.ordered[-2], one.ordered[-1]
    return found


def reason_not_stackable(
    workload: Workload, spec: StudySpec, common: Mapping[str, ParameterValue] = NOTHING
) -> str:
    """Return why trials cannot be trained together; an empty string if they can; see `plan`."""
    try:
        plan(workload, spec, common)
    except NotStackableError as error:
        return str(error)
    except Exception as error:
        if out_of_memory.is_out_of_memory(error):
            return "there is not enough memory to train trials together"
        raise
    return ""


def plan(
    workload: Workload,
    spec: StudySpec,
    common: Mapping[str, ParameterValue] = NOTHING,
    *,
    other: Workload | None = None,
) -> Plan:
    """Return how to train trials of a study together. Raise `NotStackableError`.

    `common` has the searched parameters that they share (see `shared`), of which `workload` is.
    An `other` workload has other values of the arguments that they do not share: numbers in which
    the two differ may differ between members.
    """
    if workload.has_loaders:
        raise NotStackableError(
            "trials cannot be trained together with a loader or a forward function: each trial "
            "reads its own batches, and only Workload.batches are the same for all"
        )
    settings = settings_of(spec, common, workload.rows)
    refused = _refused(spec, settings)
    if refused:
        raise NotStackableError(f"trials cannot be trained together with {refused}")
    rows = len(workload.train_inputs)
    batch = settings.batch_size
    rows = rows if batch == "full" else min(batch, rows)
    try:
        with seeded(0), warnings.catch_warnings():
            # vmap falls back to a loop over members
            warnings.filterwarnings("error", "There is a performance drop", UserWarning)
            example = _example(workload, other)
            *faster, last = _stacks(workload, rows, settings.precision, example)
            parts = last.layout.parts(_multipliers(workload))
            _refuse_parts(parts, spec)
            _check_metrics(workload)

            def planned(stack: Stack) -> Plan:
                parameters = stack.layout.size
                made = Plan(
                    stack=stack, sizes=(), parameters=parameters, example=example, parts=parts
                )
                _compare(made, (workload, other or workload), rows)
                return replace(made, sizes=_sizes(stack, workload, rows, spec))

            for stack in faster:
                with contextlib.suppress(NotStackableError):  # its places may round differently
                    return planned(stack)
            return planned(last)
    except (NotStackableError, KeyboardInterrupt):
        raise
    except BaseException as error:  # user code may raise anything on stacked tensors
        if out_of_memory.is_out_of_memory(error):
            raise
        message = str(error).strip().split("\n")[0][:200]
        raise NotStackableError(
            f"trials cannot be trained together: the model or the loss of "
            f"{spec.workload.function} cannot be mapped over members ({type(error).__name__}: "
            f"{message})"
        ) from error


def _refused(spec: StudySpec, settings: TrialSettings) -> str:
    """Return a setting that only the reference trainer supports, or empty."""
    refused = {
        f"a train function ({spec.workload.train}), whose loop is its own": spec.workload.train,
        'precision = "float16", whose scale is a trial\'s own': settings.precision == "float16",
        f"accumulate = {settings.accumulate}": settings.accumulate > 1,
        "muon, which rounds to bfloat16": any(one.name == "muon" for one in spec.space.optimizer),
        "[training] seconds, which would depend on the other trials": (
            spec.training.seconds is not None
        ),
    }
    return next((name for name, holds in refused.items() if holds), "")


def _example(workload: Workload, other: Workload | None) -> Example | None:
    """Return what may differ between members. Raise `NotStackableError` if that is too much."""
    if other is None:
        return None
    try:
        return differences(workload, _model(workload, 0), other, _model(other, 0))
    except UnlikeError as error:
        raise NotStackableError(
            f"trials cannot be trained together: their arguments change {error}"
        ) from error


def _stacks(
    workload: Workload, rows: int, precision: str | None, example: Example | None
) -> list[Stack]:
    """Return the stacks for a workload, the fastest first: chains of layers, else `vmap`."""
    model = _model(workload, 0)
    names = frozenset() if example is None else example.numbers
    own = Own(numbers=numbers_of(model, names), loss=workload.loss)
    losses = example is not None and example.loss
    inputs = _double(workload.train_inputs[:rows])
    dropouts = dropout.find_layers(model, inputs, names)
    twice = {use.path for use in dropouts if [d.path for d in dropouts].count(use.path) > 1}
    if twice:
        raise NotStackableError(
            f"trials cannot be trained together: the dropout {min(twice)} is used more than once "
            "in a forward pass; make a layer for each use"
        )
    layers = chain_of(model, inputs)
    mixed = precision not in {None, "float32"}  # autocast is autograd's
    general = VmapStack(model, own, dropouts, precision, losses=losses)
    if layers is None or mixed:
        return [general]
    with torch.no_grad():
        outputs = copy.deepcopy(model).eval()(inputs[:2])
    loss = loss_of(own, _double(workload.train_targets), outputs, losses=losses)
    chain = DenseStack(model, layers, loss, own, dropouts)
    # long products of few channels round differently by address, unless rows fill registers
    return [chain, general] if any(type(layer) is nn.Conv2d for layer in layers) else [chain]


def _multipliers(workload: Workload) -> list[float | None]:
    """Return the multiplier of the rate of each parameter, None for frozen ones."""
    return [
        workload.multiplier_of(name) if parameter.requires_grad else None
        for name, parameter in _model(workload, 0).named_parameters()
    ]


def _refuse_parts(parts: Sequence[Part], spec: StudySpec) -> None:
    """Raise `NotStackableError` if an optimizer of the study does not train parts of a row."""
    whole = {one.name for one in spec.space.optimizer} & OF_WHOLE_ROWS
    if whole and any(part.multiplier != 1.0 for part in parts):
        raise NotStackableError(
            f"trials cannot be trained together with {min(whole)} and frozen parameters or "
            "multipliers of the rate: its steps depend on all parameters"
        )


def _compare(plan: Plan, workloads: Sequence[Workload], rows: int) -> None:
    """Compare one step of a member of each workload, stacked and alone, in double precision.

    Raise `NotStackableError` if losses, gradients or buffers differ.
    """
    stack, workload = plan.stack, workloads[0]
    block = stack.block(2, torch.float64, torch.device("cpu"))
    models = [_model(own, seed) for seed, own in enumerate(workloads)]
    for place, (model, own) in enumerate(zip(models, workloads, strict=True)):
        write_model(block, place, model, stack.layout)
        block.assign(place, plan.own(own, model))
        block.draw(place, torch.Generator().manual_seed(place))
    inputs, targets = _double(workload.train_inputs), _double(workload.train_targets)
    # different rows for each, if there are enough
    later = min(7, len(inputs) - rows)
    chosen = torch.stack([torch.arange(rows), torch.arange(later, later + rows)])
    alone = [
        _alone(own, model, place, inputs[chosen[place]], targets[chosen[place]])
        for place, (own, model) in enumerate(zip(workloads, models, strict=True))
    ]
    losses = block.train(inputs, targets, chosen)
    for part in stack.layout.parts(_multipliers(workload)):
        if part.multiplier is None:
            block.gradients[:, part.place] = 0.0
    for place, (model, (loss, gradient)) in enumerate(zip(models, alone, strict=True)):
        pairs = [("loss", losses[place], loss), ("gradient", block.gradients[place], gradient)]
        pairs += [(name, block.buffers[name][place], own) for name, own in model.named_buffers()]
        for name, found, expected in pairs:
            if not _close(found, expected):
                raise NotStackableError(
                    f"trials cannot be trained together: after one step the {name} of a member is "
                    "not what it is alone"
                )


def _alone(
    workload: Workload, model: nn.Module, seed: int, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss and the gradient [parameter] of one member by plain autograd."""
    with random_state.swapped({"cpu": torch.Generator().manual_seed(seed).get_state()}):
        loss = workload.loss(model.train()(inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            raise NotStackableError(
                f"trials cannot be trained together: the parameter {name} has no gradient"
            )
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return loss.detach(), torch.cat([gradient.reshape(-1) for gradient in gradients])


def _check_metrics(workload: Workload) -> None:
    """Raise `NotStackableError` for random metrics: members share the global random state."""
    model = _model(workload, 0).eval()
    with torch.no_grad():
        outputs = model(_double(workload.validation_inputs[:2]))
        for name, measure in workload.metrics.items():
            before = torch.get_rng_state()
            measure(outputs, _double(workload.validation_targets[:2]))
            if not torch.equal(torch.get_rng_state(), before):
                raise NotStackableError(
                    f"trials cannot be trained together: the metric {name} draws random numbers"
                )


def _close(found: Tensor, expected: Tensor) -> bool:
    expected = expected.detach().reshape(found.shape).double()
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(found.double(), expected, CLOSE, CLOSE * scale, equal_nan=True)


def _sizes(stack: Stack, workload: Workload, rows: int, spec: StudySpec) -> tuple[int, ...]:
    """Return the possible sizes of a block: a largest one, parts of it, and halves.

    A block should fit into the CPU cache, so larger models get fewer places; for small models the
    overhead of calls favors more. All places must round alike: the numbers of a block should fill
    whole vector registers. Sizes for which equal members differ bitwise are rejected.
    """

    def fills(size: int) -> bool:
        return (size * rows) % FILLED == 0 and (size * judged) % FILLED == 0

    parameters = stack.layout.size
    size = 16 if parameters <= SMALL else 8 if parameters <= 10 * SMALL else 4
    judged = FILLED if stack.fills_rows else len(workload.validation_inputs)
    while size < FILLED and not fills(size):
        size *= 2
    expected = _copies(stack, workload, rows, size, spec)
    largest = WIDE if parameters <= SMALL else size
    apart = max(1, largest // (16 if stack.fills_rows else 8))  # to try a size takes a step
    smaller = {largest >> times for times in range(largest.bit_length())}
    smaller |= set(range(apart, largest, apart))
    fitting = [
        each
        for each in sorted({size, *(each for each in smaller if fills(each))})
        if _alike(_copies(stack, workload, rows, each, spec), expected)
    ]
    stack.release()
    if not fitting:
        raise NotStackableError(
            "trials cannot be trained together: equal members at other places of a block are "
            "rounded differently"
        )
    return tuple(fitting)


def _copies(
    stack: Stack, workload: Workload, rows: int, size: int, spec: StudySpec
) -> list[Tensor]:  # each [place, ...]
    """Return all results of a step of a block of equal members, in the study's precision."""
    dtype, device = getattr(torch, spec.training.dtype), torch.device(spec.training.device)
    block = stack.block(size, dtype, device)
    write_model(block, slice(None), _model(workload, 0).to(dtype), stack.layout)
    for place in range(size):
        block.draw(place, torch.Generator(device).manual_seed(0))
    inputs, targets, *validation = (
        data.to(device, dtype if data.is_floating_point() else data.dtype)
        for data in (
            workload.train_inputs,
            workload.train_targets,
            workload.validation_inputs,
            workload.validation_targets,
        )
    )
    whole = rows == len(inputs) and workload.batches is None
    chosen = None if whole else torch.arange(rows, device=device).expand(size, -1).contiguous()
    losses = block.train(inputs, targets, chosen)
    norms = torch.linalg.vector_norm(block.gradients, dim=1)
    judged = block.evaluate(*validation)
    return [losses, norms, block.gradients, *judged, *block.buffers.values()]


def _alike(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Return whether all members are bitwise equal to the first expected one."""
    return all(
        torch.equal(ours.nan_to_num(), theirs[:1].expand(ours.shape).nan_to_num())
        for ours, theirs in zip(found, expected, strict=True)
    )


def write_model(block: Block, place: int | slice, model: nn.Module, layout: Layout) -> None:
    """Write a model's parameters and buffers to places of a block."""
    block.rows[place] = layout.row(model).to(block.rows.device)
    buffers: dict[str, Any] = dict(model.named_buffers())
    assert buffers.keys() == block.buffers.keys(), (list(buffers), list(block.buffers))
    for name, buffer in buffers.items():
        block.buffers[name][place] = buffer


def _model(workload: Workload, seed: int) -> nn.Module:
    with seeded(seed):
        return workload.model(seed, torch.float64).double()


def _double(data: Tensor) -> Tensor:
    return data.double() if data.is_floating_point() else data
