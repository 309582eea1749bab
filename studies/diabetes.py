"""Regression on real measurements of diabetes patients: how standardizing affects the rate.

What it teaches. Ten measurements of 442 patients predict the progression of the disease. In
their own units (years, mm Hg, mg/dl) a linear model has a largest curvature of 147,000, and only
rates below 0.000014 are stable; divided by their spread it is 8.28, and the limit is 0.2415. The
features are correlated, which is why some curvatures are large and the smallest is 440 times
smaller: there the descent is slow at any rate. A hidden layer overfits the noise of the training
part, so the best rate for validation is lower than the best one for training, and R² stays below a
half whatever is tuned.

Inputs and targets are standardized by the training part alone. So the training loss of a constant
guess is 1, and one minus a loss is about the explained share of the variance.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from tuner.training.workloads import Workload, digest_of, seeded


def patients(hidden: int = 16, split_seed: int = 0, validation_fraction: float = 0.25) -> Workload:
    """Predict with one layer of `hidden` units, or with a linear model if it is 0."""
    measured, progress = load_diabetes(return_X_y=True, scaled=False)  # [patient, 10], [patient]
    train, validation = train_test_split(
        np.arange(len(progress)), test_size=validation_fraction, random_state=split_seed
    )
    raw, course = torch.from_numpy(measured), torch.from_numpy(progress)[:, None]
    inputs, targets = standardized(raw, train), standardized(course, train)

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        features = inputs.shape[1]
        with seeded(seed):
            if not hidden:
                return nn.Linear(features, 1).to(dtype)
            layers = (nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1))
            return nn.Sequential(*layers).to(dtype)

    return Workload(
        model=model,
        train_inputs=inputs[train],
        train_targets=targets[train],
        validation_inputs=inputs[validation],
        validation_targets=targets[validation],
        loss=nn.functional.mse_loss,
        metrics={"r2": explained},
        baseline_loss=1.0,  # always guess the mean: the variance, which is 1 by construction
        data_name=f"scikit-learn diabetes, split {split_seed}, {validation_fraction:g} validation",
        data_digest=digest_of(raw[train], course[train], raw[validation], course[validation]),
    )


def standardized(values: Tensor, train: np.ndarray) -> Tensor:  # [row, column], int64 [row]
    """Shift and scale columns so that the training part has mean 0 and standard deviation 1."""
    known = values[train]
    return (values - known.mean(dim=0)) / known.std(dim=0, correction=0)


def explained(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the explained share of the targets' variance (R²), which may be negative.

    Both arguments are [row, 1] with at least two rows; a single row has no variance.
    """
    return 1 - nn.functional.mse_loss(outputs, targets) / targets.var(correction=0)
