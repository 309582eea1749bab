"""What to train: a model, its data and its loss. Replace all three by yours.

`tuner` calls `workload` with the arguments of the study file and trains the model for you. If you
have a training loop already, name it in the study file instead: `train = "module:function"`.
"""

from __future__ import annotations

import torch
from torch import nn

from tuner.training.workloads import Workload, digest_of, seeded


def workload(hidden: int = 32) -> Workload:
    """Fit a noisy sine wave by one hidden layer; `hidden` comes from [workload] arguments."""
    generator = torch.Generator().manual_seed(0)  # the same data at every call
    inputs = torch.rand(400, 1, generator=generator) * 6 - 3  # [row, 1]
    targets = inputs.sin() + 0.1 * torch.randn(400, 1, generator=generator)  # [row, 1]
    train, validation = slice(0, 300), slice(300, 400)

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        with seeded(seed):  # the same seed makes the same first weights
            return nn.Sequential(
                nn.Linear(1, hidden, dtype=dtype),
                nn.Tanh(),
                nn.Linear(hidden, 1, dtype=dtype),
            )

    return Workload(
        model=model,
        train_inputs=inputs[train],
        train_targets=targets[train],
        validation_inputs=inputs[validation],
        validation_targets=targets[validation],
        loss=nn.functional.mse_loss,  # of outputs and targets; the mean over rows
        # further metrics of evaluations; [study] metric may name one
        metrics={"mean_absolute_error": nn.functional.l1_loss},
        data_name="a noisy sine wave",
        data_digest=digest_of(inputs, targets),  # workers with other data refuse the study
    )
