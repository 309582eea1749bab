"""Workloads that start children: workers of loaders, programs, and processes that stay behind."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.workloads import INPUTS, TARGETS, line
from tuner.training.trial import Trial
from tuner.training.workloads import Workload, digest_of

STAYING = Path("staying")
"""A file in the working directory with the numbers of processes that stay behind."""


@functools.cache
def loader(start: str) -> DataLoader[tuple[Tensor, ...]]:
    """Make a loader whose workers live as long as this process."""
    return DataLoader(
        TensorDataset(INPUTS, TARGETS),
        batch_size=8,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context=start,
    )


def train(trial: Trial, start: str) -> None:
    """Train a line with a loader whose workers stay, and leave more behind."""
    model = nn.Linear(2, 1).double()
    optimizer = trial.optimizer(model.parameters())
    epochs = itertools.chain.from_iterable(itertools.repeat(loader(start)))
    for step, (inputs, targets) in zip(range(trial.steps), epochs, strict=False):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        trial.report(step, train_loss=loss, val_loss=loss)
        optimizer.step()
    trial.report(trial.steps, val_loss=loss)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.map(abs, [trial.number])
    if trial.number == 0:
        # a forked child would keep multiprocessing's own resource tracker, which `spawn` starts
        staying = [_program(), *([_fork()] if start == "fork" else [])]
        STAYING.write_text(" ".join(map(str, staying)))


train.data_digest = digest_of(INPUTS, TARGETS)  # type: ignore[attr-defined]


def factory(start: str) -> Workload:
    """Train a line with batches of a loader."""

    def batches(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        return ((inputs, targets) for inputs, targets in loader(start))

    return replace(line(), batches=batches)


def _program() -> int:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(["sleep", "600"], stdin=quiet, stdout=quiet, stderr=quiet).pid


def _fork() -> int:
    child = os.fork()
    if child:
        return child
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(quiet, descriptor)
    while True:
        signal.pause()
