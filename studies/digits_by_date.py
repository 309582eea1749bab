"""Digits that arrive in ten daily batches: data for a retraining pipeline, one batch mislabeled.

What it teaches. Each day a tenth of scikit-learn's digits arrives, and the model of a day is
trained on all that have arrived. Part of every batch is held out permanently, so no model has seen
the rows on which champion and challenger are compared, and the held-out rows of each batch are a
named slice. That matters on the day when the labels of the new batch are wrong (each digit one too
high): over all rows, a model that has learned the wrong labels looks better. On the slices of
earlier days it is worse, so it is rejected. On the next day the batch is repaired.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tuner.training.workloads import Workload, digest_of, seeded

from .digits import accuracy

CLASSES = 10
BATCHES = 10
FIRST_DAY = date(2026, 3, 1)


def arrived(day: str = "2026-03-03", broken: str = "", hidden: int = 32) -> Workload:
    """Classify the digits that have arrived by `day`; on the day `broken` its labels are wrong."""
    number = _number(day)
    pixels, digits = load_digits(return_X_y=True)  # [image, 64] of 0 to 16, [image] of 0 to 9
    order = np.random.default_rng(0).permutation(len(digits))
    batch = np.empty(len(digits), dtype=np.int64)  # [image]: the day on which it arrives
    batch[order] = np.arange(len(digits)) * BATCHES // len(digits)
    part = np.empty(len(digits), dtype=np.int64)  # [image]: of its batch, permanently
    part[order] = np.arange(len(digits)) % 10
    if broken and _number(broken) == number:
        wrong = batch == number
        digits = np.where(wrong, (digits + 1) % CLASSES, digits)
    here = batch <= number
    train, validation, held = (
        np.flatnonzero(here & chosen) for chosen in (part < 6, (part == 6) | (part == 7), part > 7)
    )
    inputs = torch.from_numpy(pixels) / 16.0
    targets = torch.from_numpy(digits)

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(
                nn.Linear(inputs.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)
            ).to(dtype)

    return Workload(
        model=model,
        train_inputs=inputs[train],
        train_targets=targets[train],
        validation_inputs=inputs[validation],
        validation_targets=targets[validation],
        holdout=(inputs[held], targets[held]),
        slices=_days(batch[held], number),
        row_batches={
            part: [_day(one) for one in batch[rows]]
            for part, rows in (("train", train), ("validation", validation), ("holdout", held))
        },
        features=[f"pixel_{row}_{column}" for row in range(8) for column in range(8)],
        loss=nn.functional.cross_entropy,
        metrics={"accuracy": accuracy},
        data_name=f"scikit-learn digits that arrived by {day}",
        data_digest=digest_of(inputs[here], targets[here]),
        data_source="sklearn.datasets.load_digits",
    )


def _days(batch: np.ndarray, number: int) -> dict[str, Tensor]:  # bool [row]
    """Return masks of the rows of each day up to `number`."""
    return {_day(one): torch.from_numpy(batch == one) for one in range(number + 1)}


def _day(number: int) -> str:
    return FIRST_DAY.replace(day=1 + int(number)).isoformat()


def _number(day: str) -> int:
    """Return the index of a day, from 0. Raises `ValueError` if no batch arrives on it."""
    number = (date.fromisoformat(day[:10]) - FIRST_DAY).days
    if not 0 <= number < BATCHES:
        last = FIRST_DAY.replace(day=BATCHES)
        raise ValueError(f"expected a day from {FIRST_DAY} to {last}, got {day}")
    return number
