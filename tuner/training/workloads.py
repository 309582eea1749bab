"""Workloads: what is trained, and how to find one by its name, `module:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import itertools
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tuner.config import ParameterValue, Space
from tuner.core.errors import WorkloadCodeError, WorkloadError
from tuner.core.importing import allow_from_current_folder
from tuner.core.text import is_metric_name
from tuner.training import registration
from tuner.training.registration import ALLOWED_PREFIXES, Kind

Measure: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Map outputs [row, ...] and targets [row, ...] to a scalar tensor."""

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs [row, ...] and targets [row, ...]."""

Batches: TypeAlias = Callable[[int], Iterable[Batch]]
"""Map the number of an epoch to its batches; the same epoch has the same batches at every call."""

KEPT = 4
"""Number of workloads with different arguments that a worker keeps."""

RESERVED = ("train_loss", "lr", "grad_norm", "val_loss")
"""Metrics that every trial has; a workload's own metrics need other names."""

_DIGESTS: dict[str, str] = {}
"""Of the source of each module at the time of its import, by its name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """A model, its data and its loss: everything that trials of a study have in common.

    Rows are examples. Floating-point tensors are converted to the study's dtype by the trainer;
    integer targets (classes) stay as they are.

    Training data that do not fit in memory come from `batches`, such as those of a `DataLoader`.
    The batch of a step is then the same for all trials, whatever their seeds, and `train_inputs`
    and `train_targets` are an example, such as the first batch.
    """

    model: Callable[[int, torch.dtype], nn.Module]  # of seed and dtype; same seed, same parameters
    train_inputs: Tensor  # [row, ...]
    train_targets: Tensor  # [row, ...]
    validation_inputs: Tensor  # [row, ...]
    validation_targets: Tensor  # [row, ...]
    loss: Measure  # mean over rows; also computes val_loss
    data_name: str  # for display
    data_digest: str  # of the data alone, by `digest_of`
    metrics: Mapping[str, Measure] = field(default_factory=lambda: MappingProxyType({}))
    baseline_loss: float | None = None  # the training loss of the best constant predictor
    batches: Batches | None = (
        None  # of `[training] batch_size` rows; an incomplete last one is left out
    )
    # for retraining: inputs and targets [row, ...] unseen by training and search, on which champion
    # and challenger are compared; default: the validation rows
    holdout: tuple[Tensor, Tensor] | None = None
    slices: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    # named subsets of those rows, as masks: bool [row]

    def of(self, params: Mapping[str, ParameterValue]) -> Workload:
        """Return the workload of a trial: this one, unless arguments of its factory are searched.

        Raise as `load` does.
        """
        return self

    @property
    def rows(self) -> int | None:
        """The number of training examples; None if they come in batches of unknown number."""
        return len(self.train_inputs) if self.batches is None else None

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets [row, ...] on which champion and challenger are compared."""
        return self.holdout or (self.validation_inputs, self.validation_targets)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the metrics of an evaluation; one of them is the study's metric."""
        return ("val_loss", *self.metrics)


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchedWorkload(Workload):
    """A workload whose factory has searched arguments, with the lowest or first value of each."""

    build: Callable[[Mapping[str, ParameterValue]], Workload]  # from the searched arguments
    searched: tuple[str, ...]  # their names
    built: dict[tuple[tuple[str, ParameterValue], ...], Workload] = field(default_factory=dict)
    kept: int = KEPT

    def of(self, params: Mapping[str, ParameterValue]) -> Workload:
        """Return the workload of a trial; the last few are kept."""
        own = {name: params[name] for name in self.searched if name in params}
        key = tuple(own.items())
        found = self.built.pop(key, None)
        if found is None:
            found = self.build(own)
            for oldest in list(self.built)[: max(0, len(self.built) - self.kept + 1)]:
                del self.built[oldest]
        self.built[key] = found  # the latest is last
        return found


def digest_of(*tensors: Tensor) -> str:
    """Return 16 hexadecimal digits of a SHA-256 over dtypes, shapes and bytes of tensors.

    Pass the data before any arithmetic that may round differently on another machine.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        whole = tensor.detach().cpu().contiguous()
        digest.update(f"{whole.dtype} {tuple(whole.shape)}\n".encode())
        digest.update(whole.numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's random numbers on the CPU within the context, and restore their state after.

    For the `model` of a workload, since torch's layers draw their parameters from global state.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def load(
    factory: str,
    arguments: Mapping[str, Any],
    allowed_prefixes: Sequence[str] = ALLOWED_PREFIXES,
    space: Space | None = None,
) -> Workload:
    """Import and call a factory `module:function`, and check the workload that it returns.

    Modules of the current folder can be imported too. If a space searches arguments, it is a
    `SearchedWorkload`. Raises `WorkloadError` if the module is not allowed, the factory cannot be
    found or called, or its workload cannot be trained.
    """
    function = find(factory, allowed_prefixes, "workload")
    check_searched(factory, function, (), arguments, space)
    if space is None or not space.function_arguments:
        return _called(factory, function, arguments)
    names = space.function_arguments
    example = space.example()
    own = {name: example[name] for name in names if name in example}
    first = _called(factory, function, {**arguments, **own})
    return SearchedWorkload(
        **{one.name: getattr(first, one.name) for one in fields(first)},
        build=lambda own: _called(factory, function, {**arguments, **own}),
        searched=names,
        built={tuple(own.items()): first},
    )


def _called(
    factory: str, function: Callable[..., object], arguments: Mapping[str, Any]
) -> Workload:
    """Return the checked workload of a factory. Raise `WorkloadError`."""
    try:
        workload = function(**arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise WorkloadCodeError(
            f"workload {factory} raised {_described(error)}; call it by itself with the same "
            f"arguments to see where{_list_hint(arguments)}"
        ) from error
    if not isinstance(workload, Workload):
        raise WorkloadError(
            f"workload {factory}: expected a tuner.training.workloads.Workload, got "
            f"{type(workload).__name__}; return one from the function"
        )
    lines = [f"workload {factory} cannot be trained:"]
    try:
        for problem in _problems(workload):
            lines.append(problem)  # noqa: PERF402 - keep the lines before an exception
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise WorkloadCodeError("\n".join(lines)) from error
    if len(lines) > 1:
        raise WorkloadError("\n".join(lines))
    return workload


def _list_hint(arguments: Mapping[str, Any]) -> str:
    """Return a hint that a list argument is not a choice to search, if there is one."""
    names = [key for key, value in arguments.items() if isinstance(value, list | tuple)]
    if not names:
        return ""
    return (
        f". {names[0]} in [workload] arguments is a list, and is passed as a list; put choices to "
        "search in [space]"
    )


def code_digest(name: str, allowed_prefixes: Sequence[str] = ALLOWED_PREFIXES) -> str:
    """Return 16 hexadecimal digits of a SHA-256 of the source file of a function's module.

    It is the source as of when this process imported the module, which is the code that runs.
    Nothing is imported here: a module that was not imported yet is found by its path.
    """
    module = registration.module_of(name, allowed_prefixes)
    if module in sys.modules and module in _DIGESTS:
        return _DIGESTS[module]
    allow_from_current_folder(allowed_prefixes)
    return _digest(_source(name, module))


def _digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16]


def check_arguments(
    name: str,
    function: Callable[..., object],
    before: Sequence[object],
    arguments: Mapping[str, Any],
) -> None:
    """Raise `WorkloadError` unless a function accepts the arguments of a study."""
    try:
        inspect.signature(function).bind(*before, **arguments)
    except TypeError as error:
        given = ", ".join(f"{key} = {value!r}" for key, value in arguments.items()) or "none"
        raise WorkloadError(
            f"workload {name}: {error}; expected arguments {inspect.signature(function)}, "
            f"got {given}; fix the arguments in [workload] of the study file"
        ) from error


def check_searched(
    name: str,
    function: Callable[..., object],
    before: Sequence[object],
    arguments: Mapping[str, Any],
    space: Space | None,
) -> None:
    """Raise `WorkloadError` unless a function accepts the arguments of a study and its space.

    Arguments with a condition need a default, for trials that do not have them.
    """
    given = dict(arguments)
    if space is None or not space.function_arguments:
        check_arguments(name, function, before, given)
        return
    own = [one for one in space.parameters() if one.name in space.function_arguments]
    check_arguments(name, function, before, given | {one.name: one.lowest for one in own})
    always = {one.name: one.lowest for one in own if space.always(one)}
    try:
        inspect.signature(function).bind(*before, **given, **always)
    except TypeError as error:
        raise WorkloadError(
            f"workload {name}: {error} where the condition of a parameter does not hold; give the "
            "argument a default in the function"
        ) from error


def find(name: str, allowed_prefixes: Sequence[str], kind: Kind) -> Callable[..., object]:
    """Return a function, importing its module if that is allowed. Raise `WorkloadError`."""
    module_name = registration.module_of(name, allowed_prefixes)
    digest = code_digest(name, allowed_prefixes)
    source = _source(name, module_name)
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise WorkloadCodeError(
            f"workload {name}: importing {module_name} raised {_described(error)}; "
            f"`python -c 'import {module_name}'` shows where"
        ) from error
    if module.__file__ is None or Path(module.__file__).resolve() != source.resolve():
        raise WorkloadError(
            f"workload {name}: expected {module_name} to be {source}, but its import loaded "
            f"{module.__file__}; a package of a workload must not change where its modules are"
        )
    _DIGESTS[module_name] = digest
    return registration.function_of(name, module, kind)


def _source(name: str, module: str) -> Path:
    """Return the source file of a module; nothing is imported. Raise `WorkloadError`."""
    places: Sequence[str] | None = None  # None: the current folder, if allowed, then sys.path
    file = None
    for package in itertools.accumulate(module.split("."), lambda above, part: f"{above}.{part}"):
        loaded = sys.modules.get(package)
        if loaded is not None:
            file, places = getattr(loaded, "__file__", None), getattr(loaded, "__path__", ())
            continue
        # of a name without dots, `importlib.util.find_spec` imports nothing
        spec = importlib.util.find_spec(package) if places is None else _spec(package, places)
        if spec is None:
            raise WorkloadError(
                f"workload {name}: there is no module {package}; expected it to be installed or in "
                f"the current folder, {Path.cwd()}"
            )
        file = spec.origin if spec.has_location else None
        places = spec.submodule_search_locations or ()
    if file is None:  # a namespace package, or a part of the interpreter
        raise WorkloadError(
            f"workload {name}: expected a module with a source file, got {module}, which has none"
        )
    return Path(file)


def _spec(module: str, places: Sequence[str]) -> ModuleSpec | None:
    """Return where a module of a package is, whose folders are `places`, without importing it.

    `importlib.util.find_spec` would import the package.
    """
    portions = ModuleSpec(module, None, is_package=True)  # of a namespace package
    found = portions.submodule_search_locations
    assert found is not None
    for place in places:
        finder = pkgutil.get_importer(place)
        spec = finder.find_spec(module) if finder is not None else None
        if spec is not None and spec.loader is not None:
            return spec
        if spec is not None:
            found.extend(spec.submodule_search_locations or ())
    return portions if found else None


def _problems(workload: Workload) -> Iterator[str]:
    """Yield a line for each mistake that would make training fail or its results wrong."""
    fine = True
    parts = {
        "train": (workload.train_inputs, workload.train_targets),
        "validation": (workload.validation_inputs, workload.validation_targets),
    }
    if workload.holdout is not None:
        parts["holdout"] = workload.holdout
    for part, (inputs, targets) in parts.items():
        for name, tensor in ((f"{part}_inputs", inputs), (f"{part}_targets", targets)):
            problem = _problem_of_tensor(name, tensor)
            if problem:
                fine = False
                yield problem
        if fine and len(inputs) != len(targets):
            fine = False
            yield (
                f"{part}_targets: expected a target for each of {len(inputs)} inputs, got "
                f"{len(targets)}"
            )
    for name in workload.metrics:
        if name in RESERVED:
            yield f"metrics: expected a name other than {', '.join(RESERVED)}, got {name}"
        if not is_metric_name(name):
            yield (
                "metrics: expected a name of letters, digits and _.-/: or spaces, which is no path "
                f"with dots or to elsewhere, got {name!r}"
            )
    if fine:
        yield from _problems_of_slices(workload)
        yield from _problems_between(workload)


def _problem_of_tensor(name: str, tensor: object) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"{name}: expected a torch tensor, got {type(tensor).__name__}"
    if tensor.ndim == 0 or len(tensor) == 0:
        return f"{name}: expected at least one row, got a tensor of shape {tuple(tensor.shape)}"
    wrong = int((~torch.isfinite(tensor)).sum())
    if wrong:
        return f"{name}: expected finite numbers, got {wrong} that are nan or infinite"
    return None


def _problems_of_slices(workload: Workload) -> Iterator[str]:
    rows = len(workload.held_out[0])
    for name, mask in workload.slices.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (rows,):
            yield f"slices: {name}: expected a tensor of {rows} booleans, one a row held out"
        elif not mask.any():
            yield f"slices: {name}: expected at least one row, got none"


def _problems_between(workload: Workload) -> Iterator[str]:
    """Yield mistakes found by running model, loss and metrics on two rows.

    An exception of their code is described in a line, and then raised.
    """
    for part in ("inputs", "targets"):
        train = getattr(workload, f"train_{part}").shape[1:]
        validation = getattr(workload, f"validation_{part}").shape[1:]
        if train != validation:
            yield (
                f"validation_{part}: expected rows of shape {tuple(train)}, as in training, got "
                f"{tuple(validation)}"
            )
            return
        if workload.holdout is not None:
            held_out = workload.holdout[part == "targets"].shape[1:]
            if train != held_out:
                yield (
                    f"holdout_{part}: expected rows of shape {tuple(train)}, as in training, got "
                    f"{tuple(held_out)}"
                )
                return
    inputs, targets = workload.train_inputs[:2], workload.train_targets[:2]
    inputs, targets = (x.double() if x.is_floating_point() else x for x in (inputs, targets))
    doing = "model"
    try:
        with seeded(0), torch.no_grad():
            model = workload.model(0, torch.float64).eval()
            outputs = model(inputs)
            for name, measure in {"loss": workload.loss, **workload.metrics}.items():
                doing = name
                value = measure(outputs, targets)
                if not isinstance(value, Tensor) or value.numel() != 1:
                    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    yield f"{name}: expected a tensor with one number, got {got}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        yield (
            f"{doing}: expected to work on two rows of the training data, inputs of shape "
            f"{tuple(inputs.shape)} and targets of shape {tuple(targets.shape)}, got "
            f"{_described(error)}"
        )
        raise


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
