"""What a study's own curves say of its running trials' ends, and of longer runs.

A law of loss curves is fitted to the completed trials of the best one's optimizer. What it says is
shown where it predicted held-out trials well. It stops no trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from tuner.analysis import curve_law, planning, ranking
from tuner.analysis.curve_law import Band, Curve, CurveLaw
from tuner.analysis.planning import Planned
from tuner.config import ParameterValue
from tuner.core.outcome import COMPLETED, RUNNING
from tuner.ledger import TrialRecord
from tuner.report.charts import plot_builders
from tuner.report.charts.plot import Line
from tuner.report.charts.report_charts import Chart
from tuner.report.findings import Findings

ENOUGH, MOST = 8, 24
"""Completed trials from which a law is fitted, and the number of the best to which it is."""
GOOD = 0.05
"""Largest mean relative error, on held-out ends, of a law that is shown."""
DRAWN = 8
"""Running trials whose ends are predicted, at most."""
BEGUN = 3
"""Evaluations after the first steps that a running trial has, at least."""
LONGER = (2, 4)
"""Multiples of the horizon for which losses are predicted."""
RATES = 2.0 ** np.arange(-2, 2.5, 0.5)
"""Multiples of the best rate that are considered for them."""
TARGETS = (0.99, 0.95, 0.9)
"""Shares of the best loss for which a horizon is recommended."""
LONGEST = 8
"""Multiple of the horizon up to which one is."""
WSD: Mapping[str, ParameterValue] = {"wsd.shape": "1-sqrt", "wsd.final": 0.0, "wsd.warmup": 0.0}
"""The decay whose length is recommended, but for that."""
APPLIED = 0.01
"""Largest relative difference of the applied rates from those of the schedule."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """A running trial, its losses so far, and those to come."""

    trial: TrialRecord
    observed: Curve
    band: Band  # the last of its points is the end


@dataclass(frozen=True, kw_only=True)
class Longer:
    """The lowest predicted loss of the best trial's schedule over more steps."""

    times: int  # as many steps
    steps: int
    rate: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Outlook:
    """What the law of a study says."""

    trials: int  # to which it was fitted
    error: float  # mean relative error on held-out ends
    running: Sequence[Forecast]
    longer: Sequence[Longer]
    decay: Planned | None  # the best decay after a constant rate, over the study's horizon
    same: float | None  # the loss that the best trial's schedule is expected to reach there
    targets: Mapping[float, int]  # steps that the best trial's schedule needs, by loss


def outlook(found: Findings) -> Outlook | None:
    """Return what the law says; None if there are too few curves, or it predicts them badly."""
    spec, best = found.study.spec, found.best
    if (
        spec.study.direction != "minimize"
        or spec.study.value != "last"
        or best is None
        or best.params is None
        or best.imported
    ):
        return None
    completed = [
        one
        for one in found.trials
        if one.state == COMPLETED and not one.imported and _alike(one, best)
    ]
    ranked = sorted(completed, key=lambda one: np.inf if one.value is None else one.value)
    read = (_curve(found, one) for one in ranked)
    curves = list(islice((one for one in read if one is not None), MOST))
    if len(curves) < ENOUGH:
        return None
    try:
        law = curve_law.fit(curves, seed=spec.study.seed)
    except ValueError:  # too few have finite, positive losses
        return None
    if len(law.errors) < ENOUGH or law.errors.mean() > GOOD:
        return None
    return Outlook(
        trials=len(curves),
        error=float(law.errors.mean()),
        running=list(_running(found, law, best))[:DRAWN],
        longer=_longer(found, law, best, curves),
        **_plans(found, law, best, curves),
    )


def sentences(found: Outlook | None, metric: str) -> list[str]:
    """Return a paragraph about longer runs; what a running trial is expected to reach."""
    if found is None:
        return []
    basis = (
        f"a law of the curves of {found.trials} trials, which predicted the ends of those held "
        f"out within {100 * found.error:.2g} % on average"
    )
    lines = []
    if found.longer:
        said = ", and ".join(
            f"{one.times} times the steps ({one.steps}) {metric} {one.loss:.3g} "
            f"({one.low:.3g} to {one.high:.3g}) at a rate of {one.rate:.2g}"
            for one in found.longer
        )
        lines.append(
            f"Predicted for the best trial's schedule: with {said}; by {basis}. The law was not "
            "tested on longer runs."
        )
    if found.decay is not None:
        one = found.decay
        against = "" if found.same is None else f", {found.same:.3g} for the best trial's schedule"
        lines.append(
            f"After a constant rate the law expects most of a decay over the last "
            f"{100 * one.decay:.0f} % of the steps, at a rate of {one.rate:.2g} (schedule wsd): "
            f"{metric} {one.loss:.3g} ({one.low:.3g} to {one.high:.3g}){against}."
        )
    if found.targets:
        said = ", and ".join(
            f"{metric} {target:.3g} about {steps} steps" for target, steps in found.targets.items()
        )
        lines.append(f"With the best trial's schedule, it expects to need for {said}.")
    lines += [
        f"Trial {one.trial.number} is expected to end at {metric} {one.band.mean[-1]:.3g} "
        f"({one.band.low[-1]:.3g} to {one.band.high[-1]:.3g}), by its own schedule and that law."
        for one in found.running
    ]
    return lines


def _alike(one: TrialRecord, best: TrialRecord) -> bool:
    """Return whether a trial has the best one's optimizer and a schedule that is a function."""
    params, theirs = one.params or {}, best.params or {}
    names = ("optimizer", "batch_size")
    return bool(params) and all(params.get(name) == theirs.get(name) for name in names)


def _curve(found: Findings, trial: TrialRecord, rates: np.ndarray | None = None) -> Curve | None:
    """Return a trial's evaluations, and the rates that it was trained at or will be."""
    chunk = found.curves.get(trial.number)
    if chunk is None or chunk.first_step or not chunk.reported.all():
        return None
    applied = chunk.columns.get("lr", np.empty(0))
    losses = chunk.metrics.get(found.study.spec.study.metric, np.empty(0))
    kept = (chunk.eval_steps > 0) & (chunk.eval_steps <= len(applied))
    if not kept.any() or not applied.max() > 0:
        return None
    if rates is not None:
        if len(rates) < len(applied):
            return None
        off = np.abs(rates[: len(applied)] - applied)
        if off.max() > APPLIED * applied.max():
            return None  # the program follows another schedule
    return Curve(
        rates=applied if rates is None else rates,
        steps=chunk.eval_steps[kept],
        losses=losses[kept],
    )


def _running(found: Findings, law: CurveLaw, best: TrialRecord) -> Iterator[Forecast]:
    for trial in found.trials:
        if trial.state != RUNNING or not _alike(trial, best):
            continue
        rates = _planned(trial, found.study.horizon(trial.params))
        observed = None if rates is None else _curve(found, trial, rates)
        if observed is None or rates is None or len(observed.steps) < BEGUN:
            continue
        steps = np.linspace(observed.steps[-1], len(rates), 20).astype(np.int64)
        band = law.predict(rates, np.unique(steps), observed=observed)
        yield Forecast(trial=trial, observed=observed, band=band)


def _longer(
    found: Findings, law: CurveLaw, best: TrialRecord, curves: Sequence[Curve]
) -> list[Longer]:
    horizon = found.study.horizon(best.params)
    results = (_after(law, best, curves, times * horizon) for times in LONGER)
    return [
        Longer(
            times=times,
            steps=times * horizon,
            rate=one.rate,
            loss=one.loss,
            low=one.low,
            high=one.high,
        )
        for times, one in zip(LONGER, results, strict=True)
        if one is not None
    ]


def _after(law: CurveLaw, best: TrialRecord, curves: Sequence[Curve], steps: int) -> Planned | None:
    """Return the lowest predicted loss of the best trial's schedule after so many steps."""
    unit = _planned(best, steps)
    if unit is None:
        return None
    unit = unit / unit.max()
    return planning.best_decay(
        law, lambda peak, _: np.asarray(peak * unit), _peaks(best, curves), [1.0]
    )


def _peaks(best: TrialRecord, curves: Sequence[Curve]) -> list[float]:
    """Return peak rates near the best one, within those that were tried."""
    tried = [float(one.rates.max()) for one in curves]
    peak = float((best.params or {})["lr"])
    return [one * peak for one in RATES if min(tried) <= one * peak <= max(tried)]


def _plans(
    found: Findings, law: CurveLaw, best: TrialRecord, curves: Sequence[Curve]
) -> dict[str, Any]:
    """Return the fields of an outlook about runs that were not trained."""
    horizon = found.study.horizon(best.params)
    same = _after(law, best, curves, horizon)

    def decaying(peak: float, decay: float) -> np.ndarray:
        rates = _planned(best, horizon, {"schedule": "wsd", **WSD, "wsd.decay": decay})
        assert rates is not None
        return np.asarray(peak * rates / rates.max())

    def loss_after(steps: int) -> float:
        one = _after(law, best, curves, steps)
        return np.inf if one is None else one.loss

    wanted = [one * best.value for one in TARGETS if best.value and same]
    needed = {
        target: planning.horizon_for(loss_after, target, least=horizon, most=LONGEST * horizon)
        for target in wanted
    }
    return {
        "decay": planning.best_decay(law, decaying, _peaks(best, curves)),
        "same": None if same is None else same.loss,
        "targets": {one: steps for one, steps in needed.items() if steps and steps > horizon},
    }


def _planned(
    trial: TrialRecord, horizon: int, schedule: Mapping[str, ParameterValue] | None = None
) -> np.ndarray | None:
    """Return a trial's rates [step] over a horizon; None if they depend on its losses."""
    from tuner.training import schedules  # noqa: PLC0415 - it imports torch

    params = {**(trial.params or {}), **(schedule or {})}
    if params["schedule"] not in schedules.SCHEDULES:
        return None
    return np.asarray(float(params["lr"]) * schedules.multipliers(params, horizon).numpy())


def chart(found: Outlook | None, metric: str) -> Chart | None:
    """Return a chart of running trials and of their predicted ends; None if there are none."""
    if found is None or not found.running:
        return None
    lines = [
        Line(
            label=f"trial {one.trial.number}, {ranking.in_short(one.trial.params)}",
            x=one.observed.steps,
            y=one.observed.losses,
            trial=one.trial.number,
        )
        for one in found.running
    ]
    predicted = [
        (one.band.steps, np.stack([one.band.mean, one.band.low, one.band.high]))
        for one in found.running
    ]
    return Chart(
        name="forecasts",
        title="Where running trials are expected to end",
        text="Dashed: predicted under the trial's own schedule; dotted: a 90 % band.",
        plot=plot_builders.bands(lines, predicted, ylabel=metric),
    )
