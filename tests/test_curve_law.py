"""The law of loss curves: right on problems whose expected loss is known, and honest about them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tuner.analysis import curve_law
from tuner.analysis.curve_law import Curve, fit

ROOT = Path(__file__).parents[1]
SHAPES = {
    "constant": np.ones_like,
    "cosine": lambda share: (1 + np.cos(np.pi * share)) / 2,
    "linear": lambda share: 1 - share,
    "late": lambda share: np.minimum(1.0, (1 - share) / 0.2),
    "stages": lambda share: np.where(share < 0.7, 1.0, 0.1),
}


def expected_losses(rates):
    """Expected loss of SGD on a quadratic with curvatures 1, 1/4, 1/9, … and noise, before steps.

    With curvature h, the mean square distance follows v' = (1 - rate·h)² v + rate²·noise·h.
    """
    h = np.arange(1, 201) ** -2.0
    v = np.ones(len(h))
    losses = np.empty(len(rates) + 1)
    for step, rate in enumerate([*rates, 0.0]):
        losses[step] = 0.05 + (h * v).sum() / 2
        v = (1 - rate * h) ** 2 * v + rate**2 * 0.02 * h
    return losses


def curve(rate, shape, horizon=1000, seed=None, group=None, until=1.0):
    """A run of SGD, evaluated 40 times; with a seed, measured with an error of 0.3 %."""
    rates = rate * SHAPES[shape](np.arange(horizon) / horizon)
    steps = np.linspace(horizon / 40, horizon, 40).astype(int)
    losses = expected_losses(rates)[steps]
    if seed is not None:
        losses = losses * np.exp(0.003 * np.random.default_rng(seed).normal(size=len(steps)))
    kept = steps <= until * horizon
    return Curve(rates=rates, steps=steps[kept], losses=losses[kept], group=group)


@pytest.fixture(scope="module")
def law():
    """The law of fifteen runs without the linear schedule."""
    curves = [
        curve(rate, shape, seed=n)
        for n, (rate, shape) in enumerate(
            (rate, shape)
            for rate in (0.1, 0.2, 0.4, 0.7, 1.0)
            for shape in ("constant", "cosine", "stages")
        )
    ]
    return fit(curves)


def test_derivatives_are_those_of_the_law():
    runs = [curve(rate, shape) for rate, shape in ((0.1, "cosine"), (0.9, "stages"))]
    units = curve_law._units(runs)
    packed = curve_law._pack([(one.rates, one.steps[10:]) for one in runs], units)
    logs = np.log(np.array([one.losses[10:] for one in runs]))
    theta = curve_law._start(logs) + 0.1 * np.random.default_rng(0).normal(size=curve_law.SIZE)
    found = curve_law._logs(theta, packed)[1]
    for place, move in enumerate(1e-6 * np.eye(len(theta))):
        above, below = (curve_law._logs(theta + sign * move, packed)[0] for sign in (1, -1))
        assert found[:, :, place] == pytest.approx((above - below) / 2e-6, abs=1e-7)


@pytest.mark.parametrize("rate", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("shape", ["linear", "late"])
def test_schedules_and_rates_that_were_never_run(law, rate, shape):
    one = curve(rate, shape)
    band = law.predict(one.rates, one.steps[-1:])
    assert band.mean[0] == pytest.approx(one.losses[-1], rel=0.05)


@pytest.mark.longer
def test_bands_hold_about_as_many_ends_as_they_should(law):
    ends = [
        curve(rate, shape, seed=100 + n)
        for n, (rate, shape) in enumerate(
            (rate, shape)
            for rate in (0.12, 0.15, 0.3, 0.5, 0.6, 0.8, 0.9)
            for shape in ("constant", "cosine", "stages")
        )
    ]
    bands = [law.predict(one.rates, one.steps[-1:]) for one in ends]
    held = [
        one.losses[-1] >= band.low[0] and one.losses[-1] <= band.high[0]
        for one, band in zip(ends, bands, strict=True)
    ]
    assert np.mean(held) >= 0.8
    assert law.errors.mean() < 0.03


def test_observed_losses_correct_a_run_that_is_off(law):
    """A run with another loss, such as one of another seed, is predicted by its own beginning."""
    one = curve(0.3, "cosine")
    worse = Curve(rates=one.rates, steps=one.steps, losses=1.05 * one.losses)
    begun = Curve(rates=one.rates, steps=one.steps[:30], losses=worse.losses[:30])
    ends = worse.steps[-1:]
    alone = law.predict(one.rates, ends).mean[0]
    corrected = law.predict(one.rates, ends, observed=begun).mean[0]
    assert abs(corrected - worse.losses[-1]) < abs(alone - worse.losses[-1])


@pytest.mark.longer
def test_groups_are_held_out_together():
    curves = [
        curve(rate, shape, group=shape)
        for rate in (0.2, 0.6)
        for shape in ("constant", "cosine", "stages", "late")
    ]
    law = fit(curves)
    folds = {one.group: held.fold for one, held in zip(curves, law.held_out, strict=True)}
    assert len(set(folds.values())) == 4
    assert all(
        folds[one.group] == held.fold for one, held in zip(curves, law.held_out, strict=True)
    )


@pytest.mark.longer
def test_what_cannot_be_fitted_is_refused_and_few_curves_have_no_band():
    with pytest.raises(ValueError, match="at least 3 curves"):
        fit([curve(0.1, "cosine"), curve(0.2, "cosine")])
    broken = curve(0.1, "cosine")
    lost = Curve(rates=broken.rates, steps=broken.steps, losses=np.full(40, np.nan))
    with pytest.raises(ValueError, match="got 2"):
        fit([curve(0.1, "cosine"), curve(0.2, "cosine"), lost])
    three = [curve(rate, "cosine") for rate in (0.1, 0.2, 0.4)]
    band = fit(three).predict(three[0].rates, three[0].steps[-1:])
    assert np.isfinite(band.mean[0])
    assert np.isinf(band.high[0])


def test_documented_errors_are_those_that_were_measured():
    found = json.loads((ROOT / "benchmarks" / "results" / "curve_law.json").read_text())
    page = (ROOT / "docs" / "scaling.md").read_text()
    rows = [
        found["ends"]["from the first 30 %"],
        found["ends"]["from the first 30 %, wsd"],
        found["ends"]["from the first 30 %, cosine"],
        found["schedules"]["all"],
        found["horizon"]["predictions"],
        *found["few"].values(),
    ]
    shown = re.findall(r"^\| [^|]+ \| (\d+) \| ([\d.]+) % \| ([\d.]+) % \|", page, re.MULTILINE)
    assert shown == [
        (str(one["predictions"]), f"{one['mean error']:.2f}", f"{one['worst error']:.2f}")
        for one in rows
    ]
