"""Chunks of curves, as trainers measure them and the ledger stores them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

LATEST = 253_402_300_799.0
"""The end of the year 9999, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class BranchCurve:
    """A branch of a trial: a copy that was trained on under another schedule and evaluated."""

    step: int  # of the trial, at which it began; the branch is after the evaluation there
    losses: np.ndarray  # float64 [step]
    rates: np.ndarray  # float64 [step]
    time: float  # of its evaluation, in seconds since 1970
    metrics: Mapping[str, float]  # at its end; nan if it diverged before


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive rows of a trial's curve, and the evaluations that belong to them.

    There is a row for every step, also for those that a program did not report (see `reported`).

    Rows are those of steps first_step to next_step - 1. An evaluation at step s belongs to the
    chunk with first_step < s <= next_step; the one at step 0 to the chunk that begins there. So
    does a branch that began at step s. An evaluation that was measured after the chunk that ends at
    its step was committed is late: it belongs to the next one, which begins at its step.
    """

    first_step: int
    columns: Mapping[str, np.ndarray]  # train_loss, lr, grad_norm: float64 [step]
    times: np.ndarray  # float64 [step], seconds since 1970
    eval_steps: np.ndarray  # int64 [evaluation]
    eval_times: np.ndarray  # float64 [evaluation], seconds since 1970
    metrics: Mapping[str, np.ndarray]  # val_loss and the workload's own: float64 [evaluation]
    branches: tuple[BranchCurve, ...] = ()

    @property
    def next_step(self) -> int:
        """The step after the last row."""
        return self.first_step + len(self.times)

    def after(self, step: int, *, evaluated: bool = True) -> Chunk:
        """Return the chunk without committed parts: rows below `step` and evaluations up to it.

        Without `evaluated` that at `step` itself is not committed.
        """
        if step < self.first_step or step == 0:
            return self
        rows = slice(step - self.first_step, None)
        first = step + evaluated
        kept = self.eval_steps >= first
        return Chunk(
            first_step=min(step, self.next_step),
            columns={name: values[rows] for name, values in self.columns.items()},
            times=self.times[rows],
            eval_steps=self.eval_steps[kept],
            eval_times=self.eval_times[kept],
            metrics={name: values[kept] for name, values in self.metrics.items()},
            branches=tuple(branch for branch in self.branches if branch.step >= first),
        )

    def delayed(self, earliest: float) -> Chunk:
        """Return the chunk with times of at least `earliest`: a trial's times never decrease."""
        return Chunk(
            first_step=self.first_step,
            columns=self.columns,
            times=np.maximum(self.times, earliest),
            eval_steps=self.eval_steps,
            eval_times=np.maximum(self.eval_times, earliest),
            metrics=self.metrics,
            branches=tuple(
                replace(branch, time=max(branch.time, earliest)) for branch in self.branches
            ),
        )

    @property
    def reported(self) -> np.ndarray:  # bool [step]
        """Whether the row of each step was reported.

        The rows of other steps are there so that steps can be counted, with all columns nan. A row
        that was reported has a finite rate, and may have a loss or a gradient norm that is nan.
        """
        return np.asarray(np.isfinite(self.columns.get("lr", np.zeros(len(self.times)))))

    @property
    def last_time(self) -> float:
        """The latest time; minus infinity if the chunk is empty."""
        return float(np.max(np.concatenate([self.times, self.eval_times]), initial=-np.inf))

    def to_bytes(self) -> bytes:
        """Serialize in the safetensors format, without `first_step`."""
        arrays = {f"train/{name}": values for name, values in self.columns.items()}
        arrays |= {f"eval/{name}": values for name, values in self.metrics.items()}
        arrays |= {"time": self.times, "eval_step": self.eval_steps, "eval_time": self.eval_times}
        for branch in self.branches:
            at = f"branch/{branch.step}"
            arrays |= {f"{at}/train_loss": branch.losses, f"{at}/lr": branch.rates}
            arrays[f"{at}/time"] = np.array([branch.time])
            for name, value in branch.metrics.items():
                arrays[f"{at}/eval/{name}"] = np.array([value])
        return save({name: np.ascontiguousarray(values) for name, values in arrays.items()})

    @staticmethod
    def from_bytes(first_step: int, data: bytes) -> Chunk:
        """Read the bytes of `to_bytes`; no code is run. Raise `ValueError` for other bytes."""
        try:
            arrays = load(data)
            found = Chunk(
                first_step=operator.index(first_step),
                columns={n[6:]: values for n, values in arrays.items() if n.startswith("train/")},
                times=arrays["time"],
                eval_steps=arrays["eval_step"],
                eval_times=arrays["eval_time"],
                metrics={n[5:]: values for n, values in arrays.items() if n.startswith("eval/")},
                branches=_branches(arrays),
            )
            found._check()
        except (SafetensorError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"rows from step {first_step} on cannot be read: {error}") from error
        return found

    def _check(self) -> None:
        """Raise `ValueError` where arrays do not have the shapes and types of a chunk."""
        rows, evaluations = self.times.shape, self.eval_steps.shape
        training = [self.times, *self.columns.values()]
        evaluated = [self.eval_times, *self.metrics.values()]
        if (
            len(rows) != 1
            or len(evaluations) != 1
            or self.eval_steps.dtype != np.int64
            or any(one.shape != rows for one in training)
            or any(one.shape != evaluations for one in evaluated)
            or any(one.dtype != np.float64 for one in (*training, *evaluated))
        ):
            raise ValueError("the columns do not fit together")
        if not all((np.abs(one) < LATEST).all() for one in (self.times, self.eval_times)):
            raise ValueError("the times are none")
        for branch in self.branches:
            if branch.losses.ndim != 1 or branch.losses.shape != branch.rates.shape:
                raise ValueError("the columns of a branch do not fit together")
            if not abs(branch.time) < LATEST:
                raise ValueError("the times are none")
        steps = [self.first_step, *self.eval_steps, *(branch.step for branch in self.branches)]
        if min(steps) < 0:
            raise ValueError("steps are below 0")


def _branches(arrays: Mapping[str, np.ndarray]) -> tuple[BranchCurve, ...]:
    """Read the branches of a chunk's arrays."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, values in arrays.items():
        if name.startswith("branch/"):
            _, step, part = name.split("/", 2)
            found.setdefault(int(step), {})[part] = values
    return tuple(
        BranchCurve(
            step=step,
            losses=parts["train_loss"],
            rates=parts["lr"],
            time=float(parts["time"][0]),
            metrics={n[5:]: float(v[0]) for n, v in parts.items() if n.startswith("eval/")},
        )
        for step, parts in sorted(found.items())
    )


def join(chunks: Iterable[Chunk]) -> Chunk:
    """Join consecutive chunks. Raise `ValueError` if one is missing or repeated."""
    parts = list(chunks)
    if not parts:
        return empty()
    for before, after in pairwise(parts):
        if before.next_step != after.first_step:
            raise ValueError(
                f"the curve has a gap or an overlap: a chunk ends before step {before.next_step}, "
                f"the next one begins at step {after.first_step}"
            )
    return Chunk(
        first_step=parts[0].first_step,
        columns=_concatenated([part.columns for part in parts]),
        times=np.concatenate([part.times for part in parts]),
        eval_steps=np.concatenate([part.eval_steps for part in parts]),
        eval_times=np.concatenate([part.eval_times for part in parts]),
        metrics=_concatenated([part.metrics for part in parts]),
        branches=tuple(branch for part in parts for branch in part.branches),
    )


def empty(first_step: int = 0) -> Chunk:
    """Return a chunk without rows."""
    nothing = np.empty(0)
    return Chunk(
        first_step=first_step,
        columns={},
        times=nothing,
        eval_steps=np.empty(0, dtype=np.int64),
        eval_times=nothing,
        metrics={},
    )


def _concatenated(parts: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate by name; a part without rows may lack names."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    return {name: np.concatenate([part[name] for part in parts if name in part]) for name in names}
