"""Workloads: what is trained, and how to find one by its name, `module:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import itertools
import math
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tuner.config import ParameterValue, Space
from tuner.core.errors import WorkloadCodeError, WorkloadError
from tuner.core.importing import allow_from_current_folder
from tuner.core.text import is_metric_name
from tuner.training import bad_data, feature_names, loaders, registration
from tuner.training.loaders import Loader, LoaderOfSize
from tuner.training.registration import ALLOWED_PREFIXES, Kind

OnBad: TypeAlias = Literal["refuse", "drop_batch"]
"""What to do with a batch of rows that has bad data."""

Measure: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Map outputs [row, ...] and targets [row, ...] to a scalar tensor."""

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs [row, ...] and targets [row, ...]."""

Batches: TypeAlias = Callable[[int], Iterable[Batch]]
"""Map the number of an epoch to its batches; the same epoch has the same batches at every call."""

Forward: TypeAlias = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Mapping[str, Any]]]
"""Map a model and a batch to its mean loss, or to that and its metrics, by name."""

PARTS: tuple[Literal["train", "validation"], ...] = ("train", "validation")

EXAMPLE_ROWS = 2
"""Rows of the batch that a new workload is tried with."""

KEPT = 4
"""Number of workloads with different arguments that a worker keeps."""

RESERVED = ("train_loss", "lr", "grad_norm", "val_loss")
"""Metrics that every trial has; a workload's own metrics need other names."""

_DIGESTS: dict[str, str] = {}
"""Of the source of each module at the time of its import, by its name."""


def _no_rows() -> Tensor:
    return torch.empty(0)


def _no_loss(_outputs: Tensor, _targets: Tensor) -> Tensor:
    raise WorkloadError("expected a loss in the Workload, got none")


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """A model, its data and its loss: everything that trials of a study have in common.

    Rows are examples. Floating-point tensors are converted to the study's dtype by the trainer;
    integer targets (classes) stay as they are.

    Data are tensors in memory, the fast way, or come from loaders:

    - `train` is a `DataLoader` or another iterable of batches, or a function of the batch size that
      returns one. Order and augmentation follow from the trial's seed; see
      `tuner.training.loaders`. `validation` is a loader too; an evaluation is the mean over its
      batches, weighted by their rows.
    - Batches are pairs of inputs and targets, or anything that `forward(model, batch)` understands.
      It returns the mean loss of a batch, or that and metrics, `{"accuracy": …}`, which are used of
      validation batches.
    - `batches` is a function of the number of an epoch. The batch of a step is then the same for
      all trials, whatever their seeds, so that a cohort can use it, and `train_inputs` and
      `train_targets` are an example, such as the first batch.

    Parameters that require no gradient are not trained. `rate_multipliers` multiplies the rate of
    parameters by the longest of its keys that is their name or that of a module around them:
    `{"body": 0.1}` trains `body.0.weight` at a tenth of the rate.

    `features` names the columns of inputs [row, feature], in their order, so that predictions and
    retrainings match columns by name: `("age", "sex")`, or `{"age": "float64", "sex": "bool"}` with
    types among float64, float32, int64, int32 and bool.

    `row_batches` names the batch with which each row arrived, such as its day, for the parts
    "train", "validation" and "holdout". Bad data are reported by batch, and `[retrain.data] on_bad
    = "drop_batch"` trains without a bad batch.
    """

    model: Callable[[int, torch.dtype], nn.Module]  # of seed and dtype; same seed, same parameters
    train_inputs: Tensor = field(default_factory=_no_rows)  # [row, ...]
    train_targets: Tensor = field(default_factory=_no_rows)  # [row, ...]
    validation_inputs: Tensor = field(default_factory=_no_rows)  # [row, ...]
    validation_targets: Tensor = field(default_factory=_no_rows)  # [row, ...]
    train: Loader | LoaderOfSize | None = None
    validation: Loader | None = None
    loss: Measure = _no_loss  # mean over rows; also computes val_loss
    forward: Forward | None = None  # instead of loss and metrics
    data_name: str  # for display
    data_digest: str  # of the data alone, by `digest_of`
    data_source: str = ""  # where the data are, such as an address or the id of a snapshot
    metrics: Mapping[str, Measure] = field(default_factory=lambda: MappingProxyType({}))
    rate_multipliers: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    baseline_loss: float | None = None  # the training loss of the best constant predictor
    batches: Batches | None = (
        None  # of `[training] batch_size` rows; an incomplete last one is left out
    )
    # for retraining: inputs and targets [row, ...] unseen by training and search, on which champion
    # and challenger are compared; default: the validation rows
    holdout: tuple[Tensor, Tensor] | None = None
    slices: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    # named subsets of those rows, as masks: bool [row]
    features: feature_names.Names = ()
    row_batches: Mapping[str, Sequence[str]] = field(default_factory=lambda: MappingProxyType({}))
    # the batches that were left out because of bad data, and why
    left_out: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, params: Mapping[str, ParameterValue]) -> Workload:
        """Return the workload of a trial: this one, unless arguments of its factory are searched.

        Raise as `load` does.
        """
        return self

    @property
    def rows(self) -> int | None:
        """The number of training examples; None if they come in batches of unknown number."""
        if self.train is not None:
            return self._loader_size[0]
        return len(self.train_inputs) if self.batches is None else None

    @property
    def keeps_last(self) -> bool:
        """Whether an incomplete last batch of an epoch is trained on."""
        return self.train is not None and self._loader_size[1]

    @property
    def has_loaders(self) -> bool:
        """Whether only a trainer of one trial at a time can read its batches."""
        return not (self.train is None and self.validation is None and self.forward is None)

    @cached_property
    def _loader_size(self) -> tuple[int | None, bool]:
        assert self.train is not None
        return loaders.size_of(self._example_loader)

    @property
    def _example_loader(self) -> Loader:
        assert self.train is not None
        if isinstance(self.train, Iterable):
            return self.train
        return loaders.of_size(self.train, EXAMPLE_ROWS)

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets [row, ...] on which champion and challenger are compared."""
        return self.holdout or (self.validation_inputs, self.validation_targets)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the metrics of an evaluation; one of them is the study's metric."""
        return ("val_loss", *(self.metrics if self.forward is None else self._forward_metrics))

    @cached_property
    def _forward_metrics(self) -> tuple[str, ...]:
        """The names of the metrics that `forward` returns of a validation batch."""
        with seeded(0), torch.no_grad():
            model = self.model(0, torch.float64).double().eval()
            return tuple(self.forwarded(model, self.example("validation"))[1])

    def multiplier_of(self, parameter: str) -> float:
        """Return the multiplier of the rate of a parameter, by its name in the model."""
        found = [name for name in self.rate_multipliers if _is_around(name, parameter)]
        return self.rate_multipliers[max(found, key=len)] if found else 1.0

    def forwarded(self, model: nn.Module, batch: Any) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the loss of a batch, and the metrics if there is a `forward` function."""
        if self.forward is None:
            inputs, targets = batch
            return self.loss(model(inputs), targets), {}
        returned = self.forward(model, batch)
        return returned if isinstance(returned, tuple) else (returned, {})

    def measured(self, model: nn.Module, batch: Any) -> dict[str, float]:
        """Return `val_loss` and the metrics of a model on a validation batch."""
        if self.forward is None:
            inputs, targets = batch
            outputs = model(inputs)
            measures = {"val_loss": self.loss, **self.metrics}
            return {name: measure(outputs, targets).item() for name, measure in measures.items()}
        loss, metrics = self.forwarded(model, batch)
        return {name: float(value) for name, value in {"val_loss": loss, **metrics}.items()}

    def example(self, part: Literal["train", "validation"]) -> Any:
        """Return a batch in double precision: a few rows in memory, or a loader's first."""
        loader = self.validation
        if part == "train":
            loader = None if self.train is None else self._example_loader
        if loader is not None:
            return loaders.mapped(loaders.example(loader), double)
        inputs = getattr(self, f"{part}_inputs"), getattr(self, f"{part}_targets")
        return tuple(double(each[:EXAMPLE_ROWS]) for each in inputs)


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
    on_bad: OnBad = "refuse",
) -> Workload:
    """Import and call a factory `module:function`, and check the workload that it returns.

    Modules of the current folder can be imported too. With `on_bad` "drop_batch", batches with
    values that are not finite are left out. If a space searches arguments, it is a
    `SearchedWorkload`. Raises `WorkloadError` if the module is not allowed, the factory cannot be
    found or called, or its workload cannot be trained.
    """
    function = find(factory, allowed_prefixes, "workload")
    check_searched(factory, function, (), arguments, space)
    if space is None or not space.function_arguments:
        return _called(factory, function, arguments, on_bad)
    names = space.function_arguments
    example = space.example()
    own = {name: example[name] for name in names if name in example}
    first = _called(factory, function, {**arguments, **own}, on_bad)
    return SearchedWorkload(
        **{one.name: getattr(first, one.name) for one in fields(first)},
        build=lambda own: _called(factory, function, {**arguments, **own}, on_bad),
        searched=names,
        built={tuple(own.items()): first},
    )


def _called(
    factory: str, function: Callable[..., object], arguments: Mapping[str, Any], on_bad: OnBad
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
        if on_bad == "drop_batch":
            workload = bad_data.without_bad_batches(workload)
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
    return _digest(source_of(name, module))


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
    source = source_of(name, module_name)
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


def source_of(name: str, module: str) -> Path:
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
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for own in PARTS:
        if getattr(workload, own) is None:
            parts[own] = getattr(workload, f"{own}_inputs"), getattr(workload, f"{own}_targets")
        elif problem := _problem_of_loader(workload, own):
            fine = False
            yield problem
    if workload.holdout is not None:
        parts["holdout"] = workload.holdout
    for title, (inputs, targets) in parts.items():
        for name, tensor in ((f"{title}_inputs", inputs), (f"{title}_targets", targets)):
            columns = list(workload.features) if name.endswith("_inputs") else []
            problem = _problem_of_tensor(name, tensor, columns, workload.row_batches.get(title))
            if problem:
                fine = False
                yield problem
        if fine and len(inputs) != len(targets):
            fine = False
            yield (
                f"{title}_targets: expected a target for each of {len(inputs)} inputs, got "
                f"{len(targets)}"
            )
    for name in workload.metrics:
        yield from _problems_of_name(name)
    if workload.train is not None and workload.batches is not None:
        yield "batches: expected nothing, since there is a loader train"
    if workload.forward is not None and workload.metrics:
        yield "metrics: expected nothing, since forward returns them"
    if fine:
        named = {f"{title}_inputs": each for title, (each, _) in parts.items()}
        yield from feature_names.problems(workload.features, named)
        yield from bad_data.problems_of_batches(workload)
        yield from _problems_of_slices(workload)
        check = _problems_of_batches if workload.has_loaders else _problems_between
        yield from check(workload)


def _problem_of_loader(workload: Workload, part: str) -> str | None:
    given = getattr(workload, part)
    if len(getattr(workload, f"{part}_inputs")):
        return f"{part}: expected a loader or {part}_inputs, got both"
    if isinstance(given, Iterable) or (part == "train" and callable(given)):
        return None
    return f"{part}: expected a loader, got {type(given).__name__}"


def _problems_of_name(name: str) -> Iterator[str]:
    if name in RESERVED:
        yield f"metrics: expected a name other than {', '.join(RESERVED)}, got {name}"
    if not is_metric_name(name):
        yield (
            "metrics: expected a name of letters, digits and _.-/: or spaces, which is no path "
            f"with dots or to elsewhere, got {name!r}"
        )


def _problem_of_tensor(
    name: str, tensor: object, columns: Sequence[str], batches: Sequence[str] | None
) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"{name}: expected a torch tensor, got {type(tensor).__name__}"
    if tensor.ndim == 0 or len(tensor) == 0:
        return f"{name}: expected at least one row, got a tensor of shape {tuple(tensor.shape)}"
    return bad_data.problem(name, tensor, columns, batches)


def _is_around(name: str, parameter: str) -> bool:
    """Return whether a name is that of a parameter or of a module that contains it."""
    return f"{parameter}.".startswith(f"{name}.")


def _problems_of_parameters(workload: Workload, model: nn.Module) -> Iterator[str]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        yield "model: expected a parameter that requires a gradient, got none"
    for name, multiplier in workload.rate_multipliers.items():
        if not (isinstance(multiplier, int | float) and 0 < multiplier < math.inf):
            yield (
                f"rate_multipliers: {name}: expected a number above 0, got {multiplier!r}; "
                "requires_grad_(False) freezes a parameter"
            )
        if not any(_is_around(name, parameter) for parameter in names):
            yield (
                f"rate_multipliers: expected names of trained parameters or of modules around them "
                f"({', '.join(names)}), got {name!r}"
            )


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
    inputs, targets = workload.example("train")
    doing = "model"
    try:
        with seeded(0), torch.no_grad():
            model = workload.model(0, torch.float64).eval()
            yield from _problems_of_parameters(workload, model)
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


def _problems_of_batches(workload: Workload) -> Iterator[str]:
    """Yield mistakes found by computing loss and metrics of a training and a validation batch.

    An exception of their code is described in a line, and then raised.
    """
    doing = "model"
    try:
        with seeded(0), torch.no_grad():
            model = workload.model(0, torch.float64).double().eval()
            yield from _problems_of_parameters(workload, model)
            for part in PARTS:
                doing = part
                batch = workload.example(part)
                doing = f"the first batch of {part}"
                loss, metrics = workload.forwarded(model, batch)
                if not isinstance(loss, Tensor) or loss.numel() != 1:
                    got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                    yield f"{part}: expected a loss that is a tensor with one number, got {got}"
                    return
            for name in metrics:
                yield from _problems_of_name(name)
            doing = "the metrics of validation"
            workload.measured(model, batch)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        yield f"{doing}: expected to compute a loss and metrics, got {_described(error)}"
        raise


def double(data: Tensor) -> Tensor:
    """Return data [row, ...], floating-point data in double precision."""
    return data.double() if data.is_floating_point() else data


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
