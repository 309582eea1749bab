"""What the tests that start processes train: tiny, but with all that a resumed trial could lose."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tuner.examples import digits
from tuner.training.trial import Trial
from tuner.training.workloads import Workload, digest_of, seeded

INPUTS = torch.linspace(-1.0, 1.0, 48, dtype=torch.float64).reshape(24, 2)
TARGETS = (INPUTS[:, :1] * 3.0 - INPUTS[:, 1:] ** 2).contiguous()


def noisy(step_seconds: float = 0.0) -> Workload:
    """Train a network with dropout on batches: momentum, order and random state all matter."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad:
            time.sleep(step_seconds)  # a slow step, for tests that interrupt one
        return nn.functional.mse_loss(outputs, targets)

    return _workload(_network, loss)


def paced(slow: str = "slow", step_seconds: float = 0.15) -> Workload:
    """Train the same network, slowly while the working directory has a file of this name."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if torch.is_grad_enabled() and Path(slow).exists():  # training, not evaluating
            time.sleep(step_seconds)
        return nn.functional.mse_loss(outputs, targets)

    return _workload(_network, loss)


def stuck() -> Workload:
    """Train a network whose first step takes an hour, and leave a file `stuck` when it begins."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad:
            Path("stuck").touch()
            time.sleep(3600)
        return nn.functional.mse_loss(outputs, targets)

    return _workload(_network, loss)


def paced_digits(slow: str = "slow", step_seconds: float = 0.15) -> Workload:
    """Train digits, slowly while the working directory has a file of this name."""
    made = digits.mlp(hidden=16, layers=1)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if torch.is_grad_enabled() and Path(slow).exists():  # training, not evaluating
            time.sleep(step_seconds)
        return made.loss(outputs, targets)

    return replace(made, loss=loss)


def line() -> Workload:
    """Train a line, by full batches: nothing in it is random."""
    return _workload(_line, nn.functional.mse_loss)


def breaking(how: str = "nan", sign: float = 1.0) -> Workload:
    """Descend a slope, and break where the weight has gone further than 1 from its start.

    The gradient is 1 (or -1, to be maximised) at every point, so plain SGD at rate r breaks at
    the first step above 1/r. What breaks there is the loss: it becomes `how`, or it explodes.
    """

    class Slope(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs[:, :1] * 0.0 + self.weight

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        gone = outputs.mean()
        if abs(gone.item()) <= 1.0:
            return gone * sign + 2.0
        return gone * 0.0 + (1e12 if how == "explode" else float(how))

    return _workload(lambda _seed, dtype: Slope(dtype), loss)


def raising(step: int = 3) -> Workload:
    """Train a line whose loss raises at the so-manieth update."""
    updates = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal updates
        if outputs.requires_grad:
            updates += 1
            if updates > step:
                updates = 0
                raise RuntimeError("the data server said [bold]no[/bold]")
        return nn.functional.mse_loss(outputs, targets)

    return _workload(_line, loss)


RAISED = {
    "exit": SystemExit,
    "error": ValueError,
    "own": type("Own", (BaseException,), {}),  # such as pytest's, trio's and gevent's
}


def fragile(where: str = "", how: str = "error") -> Workload:
    """Train a line whose part `where` raises while the working directory has a file `broken`."""

    def part(name: str, value: Any = None) -> Any:
        if name == where and Path("broken").exists():
            raise RAISED[how](f"{name} is broken")
        return value

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        part("loss")
        return mse(outputs, targets)

    mse = nn.functional.mse_loss

    class Line(nn.Linear):
        def get_extra_state(self) -> None:
            part("checkpoint")

        def set_extra_state(self, state: object) -> None:
            pass

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        part("batches")
        yield INPUTS[:8], TARGETS[:8]

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        if len(outputs) > 9:  # more rows than there are when a study is submitted
            part("metric")
        return mse(outputs, targets)

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        part("model")
        with seeded(seed):
            return (Line if where == "checkpoint" else nn.Linear)(2, 1, dtype=dtype)

    part("factory")
    made = replace(_workload(model, loss), metrics={"metric": metric})
    return replace(made, batches=batches) if where == "batches" else made


def not_buildable() -> Workload:
    raise OSError("no such data")


def not_a_workload() -> Workload:
    return "a model"  # type: ignore[return-value]


def _workload(model: object, loss: object) -> Workload:
    return Workload(
        model=model,  # type: ignore[arg-type]
        train_inputs=INPUTS,
        train_targets=TARGETS,
        validation_inputs=INPUTS,
        validation_targets=TARGETS,
        loss=loss,  # type: ignore[arg-type]
        data_name="a curved line",
        data_digest=digest_of(INPUTS, TARGETS),
    )


def _network(seed: int, dtype: torch.dtype) -> nn.Module:
    with seeded(seed):
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)).to(dtype)


def _line(seed: int, dtype: torch.dtype) -> nn.Module:
    with seeded(seed):
        return nn.Linear(2, 1).to(dtype)


SEEN: list[dict[str, Any]] = []
"""The arguments of each call of `of_any_kind` and `two_rates` in this process."""


def of_any_kind(kind: str = "line", width: int = 3, drop: float = 0.0, bias: int = 1) -> Workload:
    """Train a line or a network, whose arguments are searched."""
    SEEN.append({"kind": kind, "width": width, "drop": drop, "bias": bias})

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        with seeded(seed):
            if kind == "line":
                return nn.Linear(2, 1, bias=bias > 1).to(dtype)
            layers = (nn.Linear(2, width), nn.Tanh(), nn.Dropout(drop), nn.Linear(width, 1))
            return nn.Sequential(*layers).to(dtype)

    return _workload(model, nn.functional.mse_loss)


def two_rates(trial: Trial, batch_size: int, head_lr: float, extra: str = "none") -> None:
    """Train a line in a loop of its own, whose bias has another rate."""
    SEEN.append({"batch_size": batch_size, "head_lr": head_lr, "extra": extra})
    model = nn.Linear(2, 1).double()
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": head_lr}]
    optimizer = torch.optim.SGD(groups, lr=trial.lr)
    schedule = trial.schedule(optimizer)
    for step in range(trial.first_step, trial.steps):
        rows = torch.arange(step * batch_size, (step + 1) * batch_size) % len(INPUTS)
        loss = nn.functional.mse_loss(model(INPUTS[rows]), TARGETS[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        trial.report(step, train_loss=loss)
        optimizer.step()
        schedule.step()
        if trial.evaluates(step + 1):
            whole = nn.functional.mse_loss(model(INPUTS), TARGETS)
            trial.report(step + 1, val_loss=whole)


two_rates.training_rows = len(INPUTS)  # type: ignore[attr-defined]


def noisy_loop(trial: Trial) -> None:
    """Train the noisy network in a loop of its own, which saves whenever that is due."""
    model = _network(trial.seed, torch.float64)
    optimizer = trial.optimizer(model.parameters())
    schedule = trial.schedule(optimizer)
    if saved := trial.checkpoint.load():
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    for step in range(trial.first_step, trial.steps):
        loss = nn.functional.mse_loss(model.train()(INPUTS), TARGETS)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        trial.report(step, train_loss=loss)
        optimizer.step()
        schedule.step()
        if trial.evaluates(step + 1):
            whole = nn.functional.mse_loss(model.eval()(INPUTS), TARGETS)
            trial.report(step + 1, val_loss=whole)
        if trial.checkpoint.due:
            trial.checkpoint.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            )


def looked_up(
    trial: Trial, batch_size: int, units: int, second: int, drop: float, activation: str
) -> None:
    """Report the result of a table, as benchmarks of searches do, at each step of the budget."""
    rate = abs(torch.log10(torch.tensor(trial.lr)).item() + 2)
    worst = rate + abs(units - 128) / 512 + abs(second - 64) / 512 + drop + 8 / batch_size
    worst += {"relu": 0.0, "tanh": 0.3}[activation]
    for step in range(trial.steps):
        loss = worst + 1 / (step + 1)
        trial.report(step, train_loss=loss)
        if trial.evaluates(step + 1):
            trial.report(step + 1, val_loss=loss)


class Gate(nn.Module):
    """A layer that multiplies by a number."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.gate


def numbered(
    kind: str = "chain", drop: float = 0.1, smoothing: float = 0.0, gate: float = 1.0
) -> Workload:
    """Train a classifier whose arguments are numbers of its modules and of its loss."""

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        with seeded(seed):
            between = [Gate(gate)] if kind == "gated" else []
            layers = (nn.Linear(2, 8), nn.Tanh(), nn.Dropout(drop), *between, nn.Linear(8, 2))
            return nn.Sequential(*layers).to(dtype)

    classes = (TARGETS[:, 0] > 0).long()
    loss = partial(nn.functional.cross_entropy, label_smoothing=smoothing)
    made = _workload(model, loss)
    return replace(made, train_targets=classes, validation_targets=classes)
