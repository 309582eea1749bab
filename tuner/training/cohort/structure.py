"""Whether workloads of different arguments are alike but for numbers, so that they train together.

Models are alike if their modules are of the same types, with parameters and buffers of the same
shapes, and if their attributes are equal other than numbers. What differs is then a *number* of a
member, such as the probability of a dropout layer.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tuner.training.workloads import Measure, Workload

BY_MEMBER = frozenset({"_parameters", "_buffers", "_modules"})
"""Attributes of modules whose values are a member's, or compared by themselves."""

BY_VALUE = (
    int,
    float,
    complex,
    str,
    bytes,
    frozenset,
    set,
    range,
    torch.dtype,
    torch.device,
    types.CodeType,
)
"""Types that are compared by `==`."""


class UnlikeError(ValueError):
    """Workloads cannot be trained together, as more than numbers differ; the message is where."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A workload that others are compared with, and what may differ from it."""

    workload: Workload
    model: nn.Module
    numbers: frozenset[str]  # paths of attributes of modules, such as "2.p"
    loss: bool  # whether members have a loss each

    def check(self, workload: Workload, model: nn.Module) -> None:
        """Raise `UnlikeError` if another workload cannot be trained beside this one."""
        found = differences(self.workload, self.model, workload, model)
        unexpected = found.numbers - self.numbers
        if unexpected:
            raise UnlikeError(f"the number {min(unexpected)}")
        if found.loss and not self.loss:
            raise UnlikeError("the loss")


def differences(
    one: Workload, its_model: nn.Module, other: Workload, other_model: nn.Module
) -> Example:
    """Return `one` as an example with all that differs. Raise `UnlikeError` if they are unlike."""
    for name in ("train_inputs", "train_targets", "validation_inputs", "validation_targets"):
        if not same(getattr(one, name), getattr(other, name)):
            raise UnlikeError(name)
    if not same(one.batches, other.batches):
        raise UnlikeError("the batches")
    if one.metrics.keys() != other.metrics.keys():
        raise UnlikeError("the metrics")
    if one.rate_multipliers != other.rate_multipliers:
        raise UnlikeError("the multipliers of rates")
    loss = not same(one.loss, other.loss)
    if loss and (smoothing_of(one.loss) is None) != (smoothing_of(other.loss) is None):
        raise UnlikeError("the loss")
    return Example(
        workload=one,
        model=its_model,
        numbers=frozenset(_numbers_apart(its_model, other_model)),
        loss=loss,
    )


def numbers_of(model: nn.Module, names: frozenset[str]) -> dict[str, float]:
    """Return the values of numbers of a model's modules, by name."""
    found = {}
    for name in sorted(names):
        path, _, attribute = name.rpartition(".")
        found[name] = float(getattr(model.get_submodule(path), attribute))
    return found


def smoothing_of(loss: Measure) -> float | None:
    """Return the label smoothing of a loss that is torch's cross-entropy with nothing else set."""
    function = nn.functional.cross_entropy
    if loss is function:
        return 0.0
    if isinstance(loss, functools.partial):
        plain = (
            loss.func is function and not loss.args and loss.keywords.keys() <= {"label_smoothing"}
        )
        return float(loss.keywords.get("label_smoothing", 0.0)) if plain else None
    if type(loss) is nn.CrossEntropyLoss:
        plain = loss.weight is None and loss.ignore_index < 0 and loss.reduction == "mean"
        return float(loss.label_smoothing) if plain else None
    return None


def _numbers_apart(one: nn.Module, other: nn.Module) -> Iterator[str]:
    """Yield the names of the numbers that differ. Raise `UnlikeError` if anything else does."""
    modules, others = (dict(model.named_modules()) for model in (one, other))
    if modules.keys() != others.keys():
        raise UnlikeError(f"the modules {sorted(modules.keys() ^ others.keys())}")
    for path, module in modules.items():
        theirs = others[path]
        where = f"the module {path or type(module).__name__}"
        if type(module) is not type(theirs) or _tensors(module) != _tensors(theirs):
            raise UnlikeError(where)
        if vars(module).keys() != vars(theirs).keys():
            raise UnlikeError(where)
        for name in vars(module).keys() - BY_MEMBER:
            value, their_value = vars(module)[name], vars(theirs)[name]
            if same(value, their_value):
                continue
            if not _are_numbers(value, their_value):
                raise UnlikeError(f"{name} of {where}")
            yield f"{path}.{name}".lstrip(".")


def _tensors(module: nn.Module) -> list[tuple[object, ...]]:
    """Return the names and shapes of a module's own parameters and buffers, in any precision."""
    return [
        (name, None if t is None else (t.shape, t.is_floating_point(), t.requires_grad))
        for owned in (module._parameters, module._buffers)
        for name, t in owned.items()
    ]


def _are_numbers(one: object, other: object) -> bool:
    """Return whether values are numbers that a member can have for itself: not both whole."""
    kinds = {type(one), type(other)}
    return float in kinds and kinds <= {int, float}


def same(one: object, other: object) -> bool:
    """Return whether values cannot be told apart, by what can be seen of them."""
    try:
        return _same(one, other)
    except (RecursionError, ValueError):  # a function that refers to itself, or to nothing yet
        return False


def _same(one: object, other: object) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, BY_VALUE):
        return bool(one == other)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        return alike and torch.equal(one, other)
    parts, others = _parts(one), _parts(other)
    if parts is None or others is None or len(parts) != len(others):
        return False
    return all(_same(left, right) for left, right in zip(parts, others, strict=True))


def _parts(value: object) -> list[object] | None:
    """Return all that makes up a value, or None if that is not known."""
    match value:
        case list() | tuple():
            parts = list(value)
        case dict():
            parts = [*value, *value.values()]
        case np.ndarray():
            parts = [value.dtype.str, value.shape, value.tobytes()]
        case functools.partial():
            parts = [value.func, value.args, value.keywords]
        case types.MethodType():
            parts = [value.__func__, value.__self__]
        case types.FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            parts = [value.__module__, value.__code__, value.__defaults__, value.__kwdefaults__]
            parts += cells
        case nn.Module():
            parts = [vars(value)]
        case _:
            return None
    return parts
