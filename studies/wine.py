"""Wines and scikit-learn's SGDClassifier: tuning a training loop of another library.

What it teaches. `tuner` does not need its own loop: `train` below calls `partial_fit`, which
updates the weights row by row, and reports each pass. The classes are linearly separable and each
row's update is bounded, so hardly any rate is too high: rates from 0.01 to 10 all end near the same
validation loss, the high ones after fluctuating for a few passes. Below 0.01 sixty passes are too
few, and each power of ten is worse.

The thirteen measurements have scales from 0.1 to 1,680. Without standardizing them that wide
plateau disappears: at 0.00001 the loss has hardly fallen below guessing after sixty passes, at
0.0001 it is ten times that of guessing, and at 10 the guard stops the trial. The scales of the data
decide what a learning rate can do, before any search begins.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from sklearn.datasets import load_wine
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

from tuner.training.trial import Trial
from tuner.training.workloads import digest_of

CLASSES = np.arange(3)


@functools.cache
def wines() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return measurements [wine, 13] and growers [wine], for training and for validation."""
    measured, growers = load_wine(return_X_y=True)
    x, x_val, y, y_val = train_test_split(
        measured, growers, test_size=0.4, random_state=0, stratify=growers
    )
    center, scale = x.mean(axis=0), x.std(axis=0)
    return (x - center) / scale, y, (x_val - center) / scale, y_val


def train(trial: Trial, penalty: float = 1e-4) -> None:
    """Fit a one-against-rest classifier per grower; a step is a pass over the training wines."""
    x, y, x_val, y_val = wines()
    model = SGDClassifier(
        loss="log_loss", alpha=penalty, learning_rate="constant", eta0=trial.lr, shuffle=False
    )
    if saved := trial.checkpoint.load():
        # the state that partial_fit continues from
        model.classes_ = CLASSES
        model.coef_, model.intercept_, model.t_ = (saved[k] for k in ("coef", "intercept", "t"))
    for step in range(trial.first_step, trial.steps):
        trial.report(step, train_loss=loss(model, x, y))
        model.eta0 = trial.rate(step)
        order = np.random.default_rng([trial.seed, step]).permutation(len(x))
        model.partial_fit(x[order], y[order], classes=CLASSES)
        if trial.evaluates(step + 1):
            accuracy = model.score(x_val, y_val)
            trial.report(step + 1, val_loss=loss(model, x_val, y_val), accuracy=accuracy)
        if trial.checkpoint.due:
            trial.checkpoint.save(
                {"coef": model.coef_, "intercept": model.intercept_, "t": model.t_}
            )


def data_digest() -> str:
    """Return the digest of the data; a worker with other data refuses the study."""
    measured, growers = load_wine(return_X_y=True)
    return digest_of(torch.from_numpy(measured), torch.from_numpy(growers))


def loss(model: SGDClassifier, x: np.ndarray, y: np.ndarray) -> float:
    """Return the objective without the penalty: the mean of logistic losses summed over classes."""
    if not hasattr(model, "coef_"):
        return float(len(CLASSES) * np.log(2.0))  # all weights are zero before the first pass
    scores = x @ model.coef_.T + model.intercept_  # [wine, class]
    signs = np.where(y[:, None] == CLASSES, 1.0, -1.0)  # [wine, class]
    return float(np.logaddexp(0.0, -signs * scores).sum(axis=1).mean())


train.data_digest = data_digest  # type: ignore[attr-defined]
train.data_name = "scikit-learn wine, 60 percent for training"  # type: ignore[attr-defined]


def guessing() -> float:
    """Return the loss of the best constant prediction: each class's share of the training wines."""
    shares = np.bincount(wines()[1]) / len(wines()[1])
    return float(-(shares * np.log(shares) + (1 - shares) * np.log(1 - shares)).sum())


train.baseline_loss = guessing()  # type: ignore[attr-defined]
