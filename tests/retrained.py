"""What the tests of retraining train: a line whose data moves with the run key."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import torch
from torch import Tensor, nn

from tuner.training.workloads import Workload, digest_of, seeded

STUDY = """
[study]
name = "moving"
seed = 3

[workload]
factory = "tests.retrained:moving"

[training]
steps = 60
batch_size = "full"
evaluate_every = 10
dtype = "float64"
checkpoint_seconds = 0.000001  # at every look

[space]
lr = [0.2, 0.3]
schedule = "constant"
optimizer = "sgd"

[search]
sampler = "grid"
pruner = "none"

[budget]
trials = 2

[retrain]
key_argument = "key"

[retrain.gate]
minimum_improvement = 0.01  # more than seeds differ by on equal data
"""


def moving(key: str = "0", columns: int = 2, holdout: bool = False) -> Workload:
    """Train a line; a key such as "5" or "5 b" moves what is to be predicted by 5."""
    word = key.split(maxsplit=1)[0]
    columns = 3 if word == "wide" else columns
    shift = 0.0 if word == "wide" else float(word)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(48, columns, generator=generator, dtype=torch.float64)
    targets = inputs.sum(dim=1, keepdim=True) + shift

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        with seeded(seed):
            return nn.Linear(columns, 1).to(dtype)

    return Workload(
        model=model,
        train_inputs=inputs[:24],
        train_targets=targets[:24],
        validation_inputs=inputs[24:36],
        validation_targets=targets[24:36],
        holdout=(inputs[36:], targets[36:]) if holdout else None,
        loss=nn.functional.mse_loss,
        metrics={"worst": worst, "absolute": nn.functional.l1_loss},
        data_name="a moving line",
        data_digest=digest_of(inputs, targets),
    )


def moving_network(key: str = "0", width: int = 1) -> Workload:
    """Train a network of some width on those data."""

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1)).to(dtype)

    return replace(moving(key), model=model)


def moving_table(key: str = "0") -> Workload:
    """Train on those data with named columns; a key such as "5 swapped" swaps the columns."""
    names = ("width", "height")
    return replace(moving(key), features=names[::-1] if key.endswith("swapped") else names)


def by_day(key: str = "0", broken: str = "", named: bool = True) -> Workload:
    """Train on rows of three days; on the day `broken` widths are missing, and a target.

    A key that ends with "broken" is of a broken day 1.
    """
    broken = "day 1" if key.endswith("broken") else broken
    made = replace(moving_table(key), slices={"day 1": torch.arange(12) % 3 == 1})
    days = {"train": [f"day {row % 3}" for row in range(24)]}
    days["validation"] = days["train"][:12]
    wrong = torch.tensor([day == broken for day in days["train"]])
    made.train_inputs[wrong, 0] = torch.nan
    made.validation_targets[:6][wrong[:6]] = torch.inf
    return replace(made, row_batches=days if named else {}, data_source="rows@7")


def on_a_day(key: str = "0") -> Workload:
    """Train on data that differ from day to day; each day moves what is to be predicted."""
    day = key.split(maxsplit=1)[0].rpartition("-")[2]
    return moving(str(float(day) + 1 + key.endswith("forced") / 2))


def daily(
    key: str = "2026-01-01", first: str = "2026-01-01", bad: str = "", late: str = ""
) -> Workload:
    """Train on data that move by one a day from the first day on.

    Those of a bad day have a value that is missing until they are loaded "again"; those of a late
    day are still those of the day before.
    """
    day = key.split(maxsplit=1)[0]
    number = (date.fromisoformat(day) - date.fromisoformat(first)).days
    made = moving(str(float(number - (day == late))))
    if key == bad:
        made.train_inputs[3, 1] = torch.nan
    return made


def breaking_in_training(key: str = "0") -> Workload:
    """Train that line, with a loss that ends the process at a training step."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad:
            raise SystemExit("no more data")
        return nn.functional.mse_loss(outputs, targets)

    return replace(moving(key), loss=loss)


def breaking_in_evaluation(key: str = "0") -> Workload:
    """Train that line; its loss ends the process once a trained model is compared by rows."""
    trained = False

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal trained
        trained = trained or outputs.requires_grad
        if trained and len(outputs) == 1:
            raise SystemExit("no more data")
        return nn.functional.mse_loss(outputs, targets)

    return replace(moving(key), loss=loss)


def measuring_nothing(key: str = "0") -> Workload:
    """Train that line; a metric beside the loss is not a number."""

    def nothing(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).mean() * torch.nan

    return replace(moving(key), metrics={"nothing": nothing})


def worst(outputs: Tensor, targets: Tensor) -> Tensor:
    """Give the largest error: no mean over rows."""
    return (outputs - targets).abs().max()
