"""Measurements of tumours: a linear model or a network, whose parameters depend on the choice.

What it teaches. The thirty measurements of scikit-learn's breast cancer data nearly separate benign
from malignant tumours by a plane, so a linear model at a good rate is hard to beat, and a network
needs dropout or few epochs not to overfit. Width and dropout exist only for the network: a trial of
a linear model has no such parameters, and the search does not learn from values that had no effect.

Inputs are standardized by the training part alone.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from tuner.training.workloads import Workload, digest_of, seeded


@functools.cache
def measured() -> tuple[Tensor, Tensor]:
    """Return measurements [tumour, 30] and whether each tumour is benign [tumour]."""
    values, benign = load_breast_cancer(return_X_y=True)
    return torch.from_numpy(values), torch.from_numpy(benign)


def tumours(
    kind: str = "network", width: int = 32, dropout: float = 0.0, input_dropout: float = 0.0
) -> Workload:
    """Classify tumours by a linear model or by a network with one hidden layer."""
    raw, targets = measured()
    train, validation = train_test_split(
        np.arange(len(raw)), test_size=0.3, random_state=0, stratify=targets.numpy()
    )
    inputs = (raw - raw[train].mean(dim=0)) / raw[train].std(dim=0, correction=0)
    shares = torch.bincount(targets[train]).double() / len(train)

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        features = inputs.shape[1]
        with seeded(seed):
            if kind == "linear":
                return nn.Linear(features, 2).to(dtype)
            return nn.Sequential(
                nn.Dropout(input_dropout),
                nn.Linear(features, width),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(width, 2),
            ).to(dtype)

    return Workload(
        model=model,
        train_inputs=inputs[train],
        train_targets=targets[train],
        validation_inputs=inputs[validation],
        validation_targets=targets[validation],
        loss=nn.functional.cross_entropy,
        metrics={"accuracy": accuracy},
        baseline_loss=float(torch.special.entr(shares).sum()),
        data_name="scikit-learn breast cancer, 70 percent for training",
        data_digest=digest_of(raw[train], targets[train], raw[validation], targets[validation]),
    )


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of tumours whose higher output [tumour, class] is their class [tumour]."""
    return (outputs.argmax(dim=-1) == targets).double().mean()
