"""The learning-rate probe: many rates from the same weights, in parallel, before any search.

Each rate trains for a few steps from the same initial weights on the same batches, and
`tuner.training.lr_probe.stability` classifies the curves. The first round has rates evenly spaced
on a log scale; if none is unstable, or all are, higher or lower ones follow. The last round
refines the result: half of its rates lie between the highest stable rate and the lowest unstable
one, half around the fastest one. A single sweep with a rising rate cannot do this: by the time a
rate proves unstable, the sweep has moved on to a higher one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tuner.config import (
    Choice,
    Entry,
    ParameterValue,
    Range,
    StudySpec,
    WholeRange,
    options,
    settings_of,
)
from tuner.training import loaders
from tuner.training.batches import BatchOrder
from tuner.training.loaders import LoaderStream, SeededLoader
from tuner.training.lr_probe import curvature, stability, warmup
from tuner.training.lr_probe.curvature import Curvature
from tuner.training.lr_probe.curves_by_rate import MeasureCurves, curves_of_workload, probe_steps
from tuner.training.lr_probe.stability import Behavior, Curves, RateClassification
from tuner.training.lr_probe.warmup import WarmUp
from tuner.training.trainer import seed_of
from tuner.training.workloads import Workload, double, seeded

MAX_EXTENSIONS = 4
"""Maximum number of rounds above or below the first range, each as wide as that."""

LOW_MARGIN = 1.05
"""Minimum ratio of the lowest unstable rate to the lower end of the bracket: a slightly unstable
rate may not show it within the steps of the probe."""

HIGH_MARGIN = 1.005
"""Ratio of the upper end of the bracket to the lowest unstable rate: at a rate just below the limit
the loss falls so slowly that it seems constant."""

CURVATURE_ROWS = 1024
"""Maximum number of rows in the fixed batch for the curvature."""

PRECONDITIONER_BATCHES = 20
"""Maximum number of batches for the preconditioner."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Result for one optimizer."""

    low: float | None  # lower bound of the stable limit; None if every rate was unstable
    high: float | None  # upper bound of the stable limit; None if no rate was unstable
    fastest: float | None  # None if no rate learns
    suggested: tuple[float, float] | None  # range of stable rates with nearly the best progress
    nothing: float | None  # no learning up to this rate; None if every rate learns
    reading: RateClassification  # of all rates tried
    params: Mapping[str, ParameterValue]  # of the optimizer, without a rate
    curvature: Curvature | None
    warmup: WarmUp | None = None  # None: not measured, or the optimizer has no stable limit
    horizon: int = 0  # of the study, in steps, if the warm-up is measured

    def as_json(self) -> dict[str, object]:
        """Return the fields that `tuner probe --json` prints."""
        found = self.curvature
        fields: dict[str, object] = {
            "stable": [self.low, self.high],
            "fastest": self.fastest,
            "suggested": None if self.suggested is None else list(self.suggested),
            "curvature": None
            if found is None
            else {
                "lambda_max": found.lambda_max,
                "bound": found.bound,
                "relative_error": found.relative_error,
            },
        }
        if not self.horizon:
            return fields
        at = self.warmup
        return {**fields, "warmup": None if at is None else at.as_json(self.horizon)}


def probe(workload: Workload, spec: StudySpec, *, with_warmup: bool = False) -> dict[str, Probe]:
    """Return the result for every optimizer of a study, by its name, without side effects.

    With `with_warmup`, measure how the curvature falls, which takes longer. Raise
    `WorkloadError` if the workload cannot be trained.
    """
    workload = workload.of(spec.space.example())
    params: dict[str, Mapping[str, ParameterValue]] = {
        choice.name: representative(choice) for choice in spec.space.optimizer
    }
    measure = curves_of_workload(workload, spec, params)
    low, high = first_range(spec)
    found = measure_curves(measure, dict.fromkeys(params, (low, high)), spec.probe.rates)
    model = first_model(workload, spec)
    fixed, batches = losses(workload, spec)
    probes = {
        name: summarize(
            curves, params[name], curvature.measure(params[name], model, fixed, batches)
        )
        for name, curves in found.items()
    }
    if not with_warmup:
        return probes
    steps = probe_steps(spec, workload.rows)
    horizon = settings_of(spec, {}, workload.rows, workload.keeps_last).steps
    highest = first_range(spec)[1]
    return {
        name: replace(
            one,
            horizon=horizon,
            warmup=None
            if one.fastest is None
            else warmup.measure(
                one.params,
                model,
                fixed,
                batches,
                steps=steps,
                cruise=one.fastest,
                highest=highest,
            ),
        )
        for name, one in probes.items()
    }


def measure_curves(
    measure: MeasureCurves, ranges: Mapping[str, tuple[float, float]], rates: int
) -> dict[str, Curves]:
    """Measure rates of every optimizer until its stable limit is bracketed; return all curves.

    `ranges` has the first range of rates of each optimizer, by its name.
    """
    todo: dict[str, Sequence[float]] = {
        name: _log_spaced(low, high, rates) for name, (low, high) in ranges.items()
    }
    found = dict(measure(todo))
    for _ in range(MAX_EXTENSIONS):
        todo = {
            name: _rates_outside(curves, *ranges[name], rates) for name, curves in found.items()
        }
        todo = {name: some for name, some in todo.items() if some}
        if not todo:
            break
        for name, curves in measure(todo).items():
            found[name] = found[name].joined(curves)
    for name, curves in measure({n: _rates_between(c, rates) for n, c in found.items()}).items():
        found[name] = found[name].joined(curves)
    return found


def summarize(
    curves: Curves, params: Mapping[str, ParameterValue], measured: Curvature | None = None
) -> Probe:
    """Return the result for one optimizer from all its curves."""
    reading = stability.assess(curves)
    rates, unstable, fastest = reading.rates, reading.lowest_unstable, reading.fastest
    last = len(rates) - 1 if unstable is None else _last_stable(rates, unstable)
    learns = np.flatnonzero(reading.behaviors[: last + 1] == Behavior.LEARNS)
    good = learns[reading.progress[learns] >= stability.NEAR_BEST * _best_progress(reading, learns)]
    nothing = np.flatnonzero(reading.behaviors[:fastest] == Behavior.NO_LEARNING)
    return Probe(
        low=float(rates[last]) if last >= 0 else None,
        high=None if unstable is None else float(rates[unstable]) * HIGH_MARGIN,
        fastest=None if fastest is None else float(rates[fastest]),
        suggested=(float(rates[good[0]]), float(rates[good[-1]])) if len(good) else None,
        nothing=float(rates[nothing[-1]]) if len(nothing) else None,
        reading=reading,
        params=params,
        curvature=measured,
    )


def _last_stable(rates: np.ndarray, unstable: int) -> int:
    """Return the index of the bracket's lower end among the rates; -1 if none is low enough."""
    return int(np.searchsorted(rates, rates[unstable] / LOW_MARGIN, side="right")) - 1


def _best_progress(reading: RateClassification, places: np.ndarray) -> float:
    return float(reading.progress[places].max(initial=0.0))


def _rates_outside(curves: Curves, low: float, high: float, rates: int) -> list[float]:
    """Return rates above or below the measured ones while these do not include the limits."""
    reading, width = stability.assess(curves), high / low
    if reading.lowest_unstable is None:
        start = float(curves.rates[-1])
        return _log_spaced(start, start * width, rates + 1)[1:]
    if reading.lowest_unstable < 2 or reading.fastest in {None, 0}:
        start = float(curves.rates[0])
        return _log_spaced(start / width, start, rates + 1)[:-1]
    return []


def _rates_between(curves: Curves, rates: int) -> list[float]:
    """Return rates within the bracket and around the fastest one."""
    reading = stability.assess(curves)
    tried, half = reading.rates, rates // 2
    chosen: list[float] = []
    if reading.lowest_unstable is not None and reading.lowest_unstable > 0:
        below, broken = tried[reading.lowest_unstable - 1], tried[reading.lowest_unstable]
        chosen += _log_spaced(float(below) / LOW_MARGIN**2, float(broken), half + 2)[1:-1]
    if reading.fastest is not None:
        low, high = max(0, reading.fastest - 1), min(len(tried) - 1, reading.fastest + 1)
        chosen += _log_spaced(float(tried[low]), float(tried[high]), half + 2)[1:-1]
    return sorted(set(chosen) - set(tried.tolist())) or [float(tried[-1]) * 2.0]


def _log_spaced(low: float, high: float, count: int) -> list[float]:
    """Return `count` rates from `low` to `high`, evenly spaced on a log scale."""
    return [float(rate) for rate in np.geomspace(low, high, count)]


# --- what a study's probe trains ----------------------------------------------------------------


def representative(choice: Choice) -> dict[str, ParameterValue]:
    """Return an optimizer's parameters: the first of a list, the middle of a range."""
    own = {key: _middle(entry) for key, entry in choice.entries()}
    return {"optimizer": choice.name, "schedule": "constant", "constant.warmup": 0.0, **own}


def _middle(entry: Entry) -> ParameterValue:
    if not isinstance(entry, Range):
        return options(entry)[0]
    middle = (entry.low * entry.high) ** 0.5 if entry.log else (entry.low + entry.high) / 2
    return round(middle) if isinstance(entry, WholeRange) else middle


def first_range(spec: StudySpec) -> tuple[float, float]:
    """Return the first range of rates: the study's, or one around the rates that it lists."""
    lr = spec.space.lr
    if isinstance(lr, Range):
        return lr.low, lr.high
    rates = [float(rate) for rate in options(lr)]
    return min(rates) / 30, max(rates) * 30


def first_model(workload: Workload, spec: StudySpec) -> nn.Module:
    """Return the model with the initial weights of the probe's trials."""
    seed = seed_of(spec, 0)
    dtype: torch.dtype = getattr(torch, spec.training.dtype)
    with seeded(seed):
        return workload.model(seed, dtype).train()


def losses(
    workload: Workload, spec: StudySpec
) -> tuple[Callable[[nn.Module], Tensor], list[Callable[[nn.Module], Tensor]]]:
    """Return the loss function of a fixed batch, and those of the first training batches."""
    if workload.has_loaders:
        return _losses_of_batches(workload, spec)
    inputs, targets = double(workload.train_inputs), double(workload.train_targets)

    seed = seed_of(spec, 0)

    def on(rows: Tensor | slice) -> Callable[[nn.Module], Tensor]:
        def loss(model: nn.Module) -> Tensor:
            with seeded(seed):  # the same dropout masks at every call
                return workload.loss(model(inputs[rows]), targets[rows])

        return loss

    order = BatchOrder(seed, len(inputs), settings_of(spec, {}, workload.rows).batch_size)
    count = min(PRECONDITIONER_BATCHES, probe_steps(spec, workload.rows))
    drawn = [order.rows(step) for step in range(count)]
    batches = [on(slice(None) if rows is None else rows) for rows in drawn]
    return on(slice(CURVATURE_ROWS)), batches


def _losses_of_batches(
    workload: Workload, spec: StudySpec
) -> tuple[Callable[[nn.Module], Tensor], list[Callable[[nn.Module], Tensor]]]:
    """Return the same as `losses`, of the first batches of a loader."""
    seed = seed_of(spec, 0)
    count = min(PRECONDITIONER_BATCHES, probe_steps(spec, workload.rows))

    def on(batch: Any) -> Callable[[nn.Module], Tensor]:
        def loss(model: nn.Module) -> Tensor:
            with seeded(seed):
                return workload.forwarded(model, batch)[0]

        return loss

    if workload.train is None:
        data = workload.train_inputs, workload.train_targets
        batches = [tuple(double(each[:CURVATURE_ROWS]) for each in data)]
    else:
        size = settings_of(spec, {}, workload.rows).batch_size
        loader = SeededLoader(loaders.of_size(workload.train, size), "train", workers=False)
        stream = LoaderStream(loader, seed)
        batches = [loaders.mapped(stream.batch(), double) for _ in range(count)]
    losses = [on(batch) for batch in batches]
    return losses[0], losses
