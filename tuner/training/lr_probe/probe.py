"""The learning-rate probe: many rates from the same weights, side by side, before any search.

Each rate trains for a few steps from the same initial weights on the same batches;
`tuner.training.lr_probe.stability` reads the curves. The first round has rates evenly on a log
scale; where none breaks, or all do, more are tried above or below. The second round refines what
the first one found: half of it between the highest rate that does not break and the lowest that
does, half around the fastest one. A single sweep with an increasing rate
(`tuner.training.lr_probe.sweep`) cannot do this: by the time a rate is too high to be stable, the
sweep has gone on to a higher one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tuner.config import Choice, Entry, ParameterValue, Range, StudySpec, WholeRange, options
from tuner.training.batches import BatchOrder
from tuner.training.lr_probe import curvature, stability
from tuner.training.lr_probe.curvature import Curvature
from tuner.training.lr_probe.curves_by_rate import Try, of_workload, steps_of
from tuner.training.lr_probe.stability import Curves, Reading, Behavior
from tuner.training.trainer import seed_of
from tuner.training.workloads import Workload, seeded

MORE = 4
"""Rounds that look above or below the first rates, at most: each as wide as they are."""

ASIDE = 1.05
"""The lower end of the bracket is below the rate that breaks by this factor or more: a rate that is
hardly too high may not show it in the steps that there are."""

BEYOND = 1.005
"""The upper end is above the rate that breaks by this factor: a rate that is hardly stable falls so
slowly that it seems to stay where it is."""

ROWS = 1024
"""Rows of the fixed batch of the curvature, at most."""

BATCHES = 20
"""Batches that a preconditioner comes from, at most."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was found of one optimiser."""

    low: float | None  # the largest stable rate is above it; None: every rate that was tried breaks
    high: float | None  # and at or below it; None: none breaks
    fastest: float | None  # None: nothing learns
    suggested: tuple[float, float] | None  # stable rates that make most of the best progress
    nothing: float | None  # up to this rate hardly anything is learnt; None: every rate learns
    reading: Reading  # all rates that were tried
    params: Mapping[str, ParameterValue]  # the optimiser's, without a rate
    curvature: Curvature | None

    def as_json(self) -> dict[str, object]:
        """Give what `tuner probe --json` prints of it."""
        found = self.curvature
        return {
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


def probe(workload: Workload, spec: StudySpec) -> dict[str, Probe]:
    """Probe every optimiser of a study, by its name.

    Nothing outside is changed. Raises `WorkloadError` when the workload cannot be trained.
    """
    params: dict[str, Mapping[str, ParameterValue]] = {
        choice.name: representative(choice) for choice in spec.space.optimizer
    }
    attempt = of_workload(workload, spec, params)
    low, high = first_range(spec)
    found = measure_curves(attempt, dict.fromkeys(params, (low, high)), spec.probe.rates)
    model = first_model(workload, spec)
    fixed, batches = losses(workload, spec)
    return {
        name: summarize(curves, params[name], curvature.measure(params[name], model, fixed, batches))
        for name, curves in found.items()
    }


def measure_curves(attempt: Try, ranges: Mapping[str, tuple[float, float]], rates: int) -> dict[str, Curves]:
    """Try rates of every optimiser until each one's limits are found; give all curves."""
    todo: dict[str, Sequence[float]] = {
        name: _spread(low, high, rates) for name, (low, high) in ranges.items()
    }
    found = dict(attempt(todo))
    for _ in range(MORE):
        todo = {name: _beyond(curves, *ranges[name], rates) for name, curves in found.items()}
        todo = {name: some for name, some in todo.items() if some}
        if not todo:
            break
        for name, curves in attempt(todo).items():
            found[name] = found[name].joined(curves)
    for name, curves in attempt({n: _inside(c, rates) for n, c in found.items()}).items():
        found[name] = found[name].joined(curves)
    return found


def summarize(
    curves: Curves, params: Mapping[str, ParameterValue], measured: Curvature | None = None
) -> Probe:
    """Say what all curves of one optimiser mean."""
    reading = stability.assess(curves)
    rates, breaks, fastest = reading.rates, reading.breaks, reading.fastest
    last = len(rates) - 1 if breaks is None else _aside(rates, breaks)
    learns = np.flatnonzero(reading.verdicts[: last + 1] == Behavior.LEARNS)
    good = learns[reading.progress[learns] >= stability.MOST * _most(reading, learns)]
    nothing = np.flatnonzero(reading.verdicts[:fastest] == Behavior.NOTHING)
    return Probe(
        low=float(rates[last]) if last >= 0 else None,
        high=None if breaks is None else float(rates[breaks]) * BEYOND,
        fastest=None if fastest is None else float(rates[fastest]),
        suggested=(float(rates[good[0]]), float(rates[good[-1]])) if len(good) else None,
        nothing=float(rates[nothing[-1]]) if len(nothing) else None,
        reading=reading,
        params=params,
        curvature=measured,
    )


def _aside(rates: np.ndarray, breaks: int) -> int:
    """Give the place of the lower end of the bracket; below 0: none of the rates is low enough."""
    return int(np.searchsorted(rates, rates[breaks] / ASIDE, side="right")) - 1


def _most(reading: Reading, places: np.ndarray) -> float:
    return float(reading.progress[places].max(initial=0.0))


def _beyond(curves: Curves, low: float, high: float, rates: int) -> list[float]:
    """Choose rates above those that were tried, or below, while their limits are not among them."""
    reading, width = stability.assess(curves), high / low
    if reading.breaks is None:
        start = float(curves.rates[-1])
        return _spread(start, start * width, rates + 1)[1:]
    if reading.breaks < 2 or reading.fastest in {None, 0}:
        start = float(curves.rates[0])
        return _spread(start / width, start, rates + 1)[:-1]
    return []


def _inside(curves: Curves, rates: int) -> list[float]:
    """Choose rates within the bracket, and around the fastest."""
    reading = stability.assess(curves)
    tried, half = reading.rates, rates // 2
    chosen: list[float] = []
    if reading.breaks is not None and reading.breaks > 0:
        below, broken = tried[reading.breaks - 1], tried[reading.breaks]
        chosen += _spread(float(below) / ASIDE**2, float(broken), half + 2)[1:-1]
    if reading.fastest is not None:
        low, high = max(0, reading.fastest - 1), min(len(tried) - 1, reading.fastest + 1)
        chosen += _spread(float(tried[low]), float(tried[high]), half + 2)[1:-1]
    return sorted(set(chosen) - set(tried.tolist())) or [float(tried[-1]) * 2.0]


def _spread(low: float, high: float, count: int) -> list[float]:
    """Give rates from `low` to `high`, evenly on a log scale."""
    return [float(rate) for rate in np.geomspace(low, high, count)]


# --- of a study -----------------------------------------------------------------------------


def representative(choice: Choice) -> dict[str, ParameterValue]:
    """Give an optimiser's parameters for the probe: the first of a list, the middle of a range."""
    own = {key: _middle(entry) for key, entry in choice.entries()}
    return {"optimizer": choice.name, "schedule": "constant", "constant.warmup": 0.0, **own}


def _middle(entry: Entry) -> ParameterValue:
    if not isinstance(entry, Range):
        return options(entry)[0]
    middle = (entry.low * entry.high) ** 0.5 if entry.log else (entry.low + entry.high) / 2
    return round(middle) if isinstance(entry, WholeRange) else middle


def first_range(spec: StudySpec) -> tuple[float, float]:
    """Give the range of the first rates: the study's, or around the rates that it lists."""
    lr = spec.space.lr
    if isinstance(lr, Range):
        return lr.low, lr.high
    rates = [float(rate) for rate in options(lr)]
    return min(rates) / 30, max(rates) * 30


def first_model(workload: Workload, spec: StudySpec) -> nn.Module:
    """Build the model as its trials begin."""
    seed = seed_of(spec, 0)
    dtype: torch.dtype = getattr(torch, spec.training.dtype)
    with seeded(seed):
        return workload.model(seed, dtype).train()


def losses(
    workload: Workload, spec: StudySpec
) -> tuple[Callable[[nn.Module], Tensor], list[Callable[[nn.Module], Tensor]]]:
    """Give the loss of the fixed batch, and of the first batches of the training."""
    inputs, targets = (
        data.double() if data.is_floating_point() else data
        for data in (workload.train_inputs, workload.train_targets)
    )

    seed = seed_of(spec, 0)

    def on(rows: Tensor | slice) -> Callable[[nn.Module], Tensor]:
        def loss(model: nn.Module) -> Tensor:
            with seeded(seed):  # the same dropout for all
                return workload.loss(model(inputs[rows]), targets[rows])

        return loss

    order = BatchOrder(seed, len(inputs), spec.training.batch_size)
    drawn = [order.rows(step) for step in range(min(BATCHES, steps_of(spec)))]
    batches = [on(slice(None) if rows is None else rows) for rows in drawn]
    return on(slice(ROWS)), batches
