"""Models for the registry: train one to its end, measure it row by row, and predict with it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tuner.config import StudySpec
from tuner.core import curves
from tuner.core.curves import Chunk
from tuner.core.errors import UsageError
from tuner.core.failpoints import reach
from tuner.core.failures import workload_code
from tuner.core.features import Feature
from tuner.core.file_stores import FileStore, writing_to
from tuner.training import averaging, checkpoint, feature_names
from tuner.training.checkpoint import CheckpointError
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import ENDED, Event, Status, Task
from tuner.training.workloads import Workload

BLOCK = 200
"""Steps between two checks of the clock; it does not affect the curve."""
EXAMPLE_ROWS = 2
"""Rows of an input example; the exported graph accepts any number."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained model with its outcome and curve."""

    model: nn.Module  # in evaluation mode, on the CPU
    status: Status  # FINISHED or DIVERGED
    reason: str  # why it ended before the horizon, or empty
    value: float | None  # the objective
    curve: Chunk
    seconds: float  # of training, those before an interruption included


def train(
    workload: Workload,
    spec: StudySpec,
    task: Task,
    checkpoints: FileStore,
    key: str,
    *,
    still: Callable[[float], None],
    clock: Callable[[], float],
) -> TrainedModel:
    """Train to the end, and save the progress under `key`, from which a later call resumes.

    `still` is called between blocks of steps with the seconds trained so far, and may raise to
    abort; `clock` returns Unix time in seconds. A file that is damaged, or of other data or
    parameters, is ignored. Raises `WorkloadCodeError` if the workload's code raises.
    """
    with workload_code():
        workload = workload.of(task.params)
    trainer = ReferenceTrainer(workload, spec)
    curve, status, reason, value = curves.empty(), Status.TRAINING, "", None
    seconds = 0.0
    saved = _saved(checkpoints, key, workload, task)
    with workload_code():
        trainer.admit(task if saved is None else _from_snapshot(task, saved["snapshot"]))
    if saved is not None:
        curve, status = Chunk.from_bytes(0, saved["curve"]), Status(saved["status"])
        reason, value, seconds = saved["reason"], saved["value"], float(saved.get("seconds", 0.0))
    saved_at, offset = time.monotonic(), clock() - time.monotonic()
    trained_until = saved_at
    while status not in ENDED:
        still(seconds)
        with workload_code():
            events = trainer.advance(BLOCK)
        for event in events:
            curve = curves.join([part for part in (curve, _chunk(event, offset)) if part.columns])
            status, reason, value = event.status, event.reason, event.value
        seconds, trained_until = seconds + time.monotonic() - trained_until, time.monotonic()
        if status in ENDED or time.monotonic() - saved_at >= spec.training.checkpoint_seconds:
            kept = {
                "data": workload.data_digest,
                "snapshot": trainer.snapshot(task.number),
                "curve": curve.to_bytes(),
                "status": status.value,
                "reason": reason,
                "value": value,
                "seconds": seconds,
            }
            with writing_to(checkpoints):
                checkpoints.write(key, checkpoint.to_bytes(kept))
            saved_at = time.monotonic()
            reach("retrain.in_training")
    state = checkpoint.from_bytes(trainer.snapshot(task.number))
    with workload_code():
        model = workload.model(task.seed, _dtype(spec))
        model.load_state_dict(state["model"])
        averages = trainer.averages(task.number)
        if averages is not None:
            averaging.load(model, averages)
    return TrainedModel(
        model=model.eval(), status=status, reason=reason, value=value, curve=curve, seconds=seconds
    )


def _saved(
    checkpoints: FileStore, key: str, workload: Workload, task: Task
) -> dict[str, Any] | None:
    """Return the progress of an earlier call with the same data and parameters, or None."""
    try:
        saved = checkpoint.from_bytes(checkpoints.read(key))
        snapshot = checkpoint.from_bytes(saved["snapshot"])
    except (OSError, CheckpointError):
        return None
    known = snapshot["fingerprint"]
    params = {key.removeprefix("params "): value for key, value in known.items() if " " in key}
    same = params == dict(task.params) and known["seed"] == task.seed
    return saved if same and saved["data"] == workload.data_digest else None


def _from_snapshot(task: Task, snapshot: bytes) -> Task:
    return Task(number=task.number, seed=task.seed, params=task.params, snapshot=snapshot)


def _chunk(event: Event, offset: float) -> Chunk:
    """Return an event as a chunk of a curve; `offset` converts its times to Unix time."""
    names = list(dict.fromkeys(name for one in event.evaluations for name in one.metrics))
    return Chunk(
        first_step=event.first_step,
        columns=event.columns,
        times=event.times + offset,
        eval_steps=np.array([one.step for one in event.evaluations], dtype=np.int64),
        eval_times=np.array([one.time + offset for one in event.evaluations], dtype=np.float64),
        metrics={
            name: np.array([one.metrics[name] for one in event.evaluations]) for name in names
        },
    )


def _dtype(spec: StudySpec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, spec.training.dtype)
    return dtype


# --- measuring


def row_values(
    model: nn.Module, workload: Workload, spec: StudySpec, metric: str
) -> np.ndarray:  # float64 [row]
    """Return the metric of a model on each held-out row.

    Raises `UsageError` if the metric over all rows is not the mean over rows, and
    `WorkloadCodeError` if the workload's code raises.
    """
    if workload.has_loaders and workload.holdout is None:
        raise UsageError(
            f"{spec.workload.function}: expected a holdout (inputs and targets) and a loss beside "
            "its loaders, since challenger and champion are compared row by row"
        )
    measure = {"val_loss": workload.loss, **workload.metrics}[metric]
    inputs, targets = (_cast(part, spec) for part in workload.held_out)
    with torch.no_grad(), workload_code():
        outputs = model(inputs)
        whole = measure(outputs, targets).item()
        rows = [
            measure(outputs[row : row + 1], targets[row : row + 1]).item()
            for row in range(len(inputs))
        ]
    values = np.array(rows)
    if np.isfinite(whole) and not np.isclose(values.mean(), whole, rtol=1e-3, atol=1e-6):
        raise UsageError(
            f"[retrain.gate] metric: expected a mean over rows, since challenger and champion are "
            f"compared row by row, got {metric}, which is {whole:.6g} over {len(rows)} rows whose "
            f"own mean is {values.mean():.6g}"
        )
    return values


def fresh_model(workload: Workload, spec: StudySpec) -> nn.Module:
    """Return an untrained model. Raises `WorkloadCodeError`."""
    with workload_code():
        return workload.model(0, _dtype(spec)).eval()


def slices(workload: Workload) -> Mapping[str, np.ndarray]:  # bool [row]
    """Return masks of the named slices of the held-out rows."""
    return {name: mask.numpy() for name, mask in workload.slices.items()}


# --- storing


class ModelMismatchError(ValueError):
    """Stored weights or a stored example that cannot be used; the message is a part of one."""


def refuse_unstorable(model: nn.Module) -> None:
    """Raise `UsageError` if a model's state is not tensors alone."""
    others = [name for name, one in model.state_dict().items() if not isinstance(one, Tensor)]
    if others:
        raise UsageError(
            f"the model's state_dict has {', '.join(others)}, which is not a tensor; expected "
            "tensors alone, since versions are stored as safetensors"
        )


def weights_to_bytes(model: nn.Module) -> bytes:
    """Return a model's state_dict as safetensors; equal weights are equal bytes."""
    # a copy each, since the format has no shared memory
    state = {
        name: one.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, one in model.state_dict().items()
    }
    return safetensors.torch.save(state)


def rebuild(workload: Workload, dtype: str, weights: bytes) -> nn.Module:
    """Return a workload's model with stored weights, in evaluation mode.

    Raises `ModelMismatchError` if they do not fit, and `WorkloadCodeError`.
    """
    with workload_code():
        model = workload.model(0, getattr(torch, dtype))
    try:
        model.load_state_dict(safetensors.torch.load(weights), strict=True)
    except (SafetensorError, RuntimeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ModelMismatchError(" ".join(line.strip() for line in lines)) from error
    return model.eval()


def size_of(model: nn.Module) -> int:
    """Return the bytes of a model's state_dict."""
    return sum(one.numel() * one.element_size() for one in model.state_dict().values())


def example_to_bytes(inputs: np.ndarray, outputs: np.ndarray) -> bytes:  # [row, ...] both
    """Return an example and a model's outputs on it as safetensors."""
    arrays = {"inputs": inputs, "outputs": outputs}
    return safetensors.numpy.save({name: np.ascontiguousarray(one) for name, one in arrays.items()})


def example_from_bytes(content: bytes) -> tuple[np.ndarray, np.ndarray]:  # [row, ...] both
    """Return a stored example and the outputs on it. Raises `ModelMismatchError`."""
    try:
        arrays = safetensors.numpy.load(content)
        return arrays["inputs"], arrays["outputs"]
    except (SafetensorError, KeyError) as error:
        raise ModelMismatchError(f"expected an example, got {error}") from error


def close(outputs: np.ndarray, expected: np.ndarray) -> bool:  # [row, ...] both
    """Return whether outputs are the expected ones but for rounding."""
    if outputs.shape != expected.shape or outputs.dtype != expected.dtype:
        return False
    scale = float(np.abs(expected).max(initial=0.0))
    return np.allclose(outputs, expected, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


# --- predicting


def example_of(workload: Workload, spec: StudySpec) -> np.ndarray:  # [row, ...]
    """Return an input example of a few rows."""
    inputs = workload.held_out[0] if workload.train is not None else workload.train_inputs
    rows: np.ndarray = _cast(inputs[:EXAMPLE_ROWS], spec).numpy()
    return rows


class AnyReal(nn.Module):
    """A module whose exported graph takes inputs of any dtype: arrays and tables are of float64."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype

    def forward(self, inputs: Tensor) -> Any:  # [row, ...]
        """Return the outputs of the module."""
        # not by `to`, of which an exported graph refuses other dtypes than that of the example;
        # row by row in memory, since a table is not and its outputs would be rounded otherwise
        own = torch.empty_like(inputs, dtype=self.dtype, memory_format=torch.contiguous_format)
        return self.module(own.copy_(inputs))


def dtype_of(rows: np.ndarray) -> torch.dtype:
    """Return torch's dtype of an array."""
    return torch.from_numpy(rows[:0]).dtype


def features_of(workload: Workload, spec: StudySpec) -> tuple[Feature, ...]:
    """Return the named features of a model's inputs; none if its columns are unnamed."""
    return feature_names.features_of(workload.features, str(example_of(workload, spec).dtype))


def predict(model: nn.Module, inputs: np.ndarray) -> np.ndarray:  # [row, ...] both
    """Return a model's outputs. Raises `WorkloadCodeError` if its code raises."""
    with torch.no_grad(), workload_code():
        outputs: np.ndarray = model(torch.from_numpy(inputs)).numpy()
    return outputs


def fingerprint(outputs: np.ndarray) -> str:
    """Return 16 hexadecimal digits of a SHA-256 over dtype, shape and bytes of outputs."""
    content = (
        f"{outputs.dtype} {outputs.shape}\n".encode() + np.ascontiguousarray(outputs).tobytes()
    )
    return hashlib.sha256(content).hexdigest()[:16]


def _cast(data: Tensor, spec: StudySpec) -> Tensor:
    return data.to(_dtype(spec)) if data.is_floating_point() else data
