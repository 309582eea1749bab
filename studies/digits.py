"""Handwritten digits and a small network: a real loss surface that a laptop trains in a second.

What it teaches. The 1,797 images of 8 by 8 pixels that come with scikit-learn are few enough to
run hundreds of trials, and hard enough that the learning rate decides the result: with a far too
low rate the loss stays at chance; over about a power of ten the result is similar, and the schedule
makes the difference; above, training breaks within a factor of a few. It seldom explodes: the units
die in the first steps, and the loss stays flat at 2.30 = ln 10, that of guessing, which is finite
and so looks like a rate that is too low. The breaking rate differs by a factor of ten between plain
SGD, SGD with momentum and AdamW (after 300 steps SGD is best near 0.5, AdamW near 0.01), so a good
rate of one is no guide to another.

Two practices are worth copying. The inputs are standardized by the training part alone, so that the
validation part stays unseen. And the split has its own seed: trials differ in their initial
parameters and order of batches, never in their validation data.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from tuner.training import mup
from tuner.training.workloads import Workload, digest_of, seeded

CLASSES = 10


def mlp(
    hidden: int = 64,
    layers: int = 2,
    split_seed: int = 0,
    validation_fraction: float = 0.2,
    parametrization: str = "standard",
    base_hidden: int = 32,
) -> Workload:
    """Classify digits by `layers` hidden layers of `hidden` rectified units each.

    With the parametrization "mup-sgd" or "mup-adam", the best rate for `base_hidden` units is that
    for any number.
    """
    pixels, digits = load_digits(return_X_y=True)  # [image, 64] of 0 to 16, [image] of 0 to 9
    train, validation = train_test_split(
        np.arange(len(digits)),
        test_size=validation_fraction,
        random_state=split_seed,
        stratify=digits,
    )
    raw, targets = torch.from_numpy(pixels), torch.from_numpy(digits)
    center = raw[train].mean(dim=0)  # [64]
    scale = raw[train].std(dim=0, correction=0)  # [64]
    scale[scale == 0] = 1.0  # some pixels at the border are never inked
    inputs = (raw - center) / scale
    frequencies = torch.bincount(targets[train], minlength=CLASSES).double() / len(train)

    def build(width: int) -> nn.Module:
        widths = [inputs.shape[1]] + [width] * layers
        blocks = [
            block
            for before, after in itertools.pairwise(widths)
            for block in (nn.Linear(before, after), nn.ReLU())
        ]
        return nn.Sequential(*blocks, nn.Linear(widths[-1], CLASSES))

    family = mup.family(parametrization)
    scaled = None if family is None else mup.of_width(build, hidden, base_hidden, optimizer=family)

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        with seeded(seed):
            made = build(hidden)
        return (made if scaled is None else scaled.initialize(made)).to(dtype)

    return Workload(
        model=model,
        train_inputs=inputs[train],
        train_targets=targets[train],
        validation_inputs=inputs[validation],
        validation_targets=targets[validation],
        loss=nn.functional.cross_entropy,
        metrics={"accuracy": accuracy},
        rate_multipliers={} if scaled is None else scaled.rate_multipliers,
        # knowing only how frequent each digit is
        baseline_loss=float(torch.special.entr(frequencies).sum()),
        data_name=f"scikit-learn digits, split {split_seed}, {validation_fraction:g} validation",
        # of the pixels as they are: a mean may round differently on another machine
        data_digest=digest_of(raw[train], targets[train], raw[validation], targets[validation]),
    )


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of images whose highest output [image, class] is their digit [image]."""
    return (outputs.argmax(dim=-1) == targets).double().mean()
