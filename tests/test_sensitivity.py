"""Sensitivity to the learning rate: right where the loss of every rate is known."""

import numpy as np
import pytest

from tuner.analysis.sensitivity import REACH, sensitivities
from tuner.analysis.verdicts import Evidence
from tuner.core.outcome import COMPLETED, DIVERGED


def evidence(number, rate, score, schedule="constant", outcome=COMPLETED):
    """A trial that began at a score of 1."""
    return Evidence(
        number=number,
        rate=rate,
        optimizer="sgd",
        schedule=schedule,
        outcome=outcome,
        reason="",
        steps=20,
        horizon=20,
        at=np.array([0, 20]),
        scores=np.array([1.0, score]),
        noise=0.0,
        rising=False,
        growth=np.nan,
        exploded=False,
        falls=False,
        pairs=0,
        crossed=0,
        crossed_first=0,
        swing=0.0,
    )


def of(trials):
    return sensitivities(trials, None, np.random.default_rng(0))


@pytest.mark.longer
def test_gradient_descent_on_a_quadratic():
    """After T steps on x²/2 from √2, the loss is (1 - lr)^(2T); rates above 2 diverge."""
    rates = np.geomspace(0.01, 4.0, 400)
    losses = np.minimum((1 - rates) ** 6, 1.0)
    trials = [
        evidence(n, rate, loss, outcome=DIVERGED if rate > 2 else COMPLETED)
        for n, (rate, loss) in enumerate(zip(rates, losses, strict=True))
    ]
    (found,) = of(trials)
    band = np.geomspace(1 / REACH, REACH, 100_001)
    expected = np.minimum((1 - band) ** 6, 1.0).mean()
    assert found.best == pytest.approx(1.0, rel=0.12)
    assert found.cost == pytest.approx(expected, rel=0.15)


def test_robust_schedules_come_first_and_diverged_trials_count_as_untrained():
    trials = []
    for schedule, width in (("fragile", 1.0), ("robust", 0.2)):
        for n, rate in enumerate(np.geomspace(0.01, 1.0, 9)):
            score = 0.1 + width * np.log10(rate / 0.1) ** 2
            trials.append(evidence(n, rate, score, schedule))
    first, second = of(trials)
    assert (first.schedule, second.schedule) == ("robust", "fragile")
    # the mean of w·u² over |u| < 1/2 is w/12
    assert first.cost == pytest.approx(0.2 / 12, rel=0.2)
    assert first.least <= first.cost <= first.most * 1.01
    broken = [
        evidence(n, one.rate, np.nan, "robust", DIVERGED) if one.rate > 0.2 else one
        for n, one in enumerate(trials)
        if one.schedule == "robust"
    ]
    (worse,) = of(broken)
    assert worse.cost > 5 * first.cost


def test_few_rates_or_rates_far_from_the_best_say_nothing():
    few = [evidence(n, 10.0**-n, 0.1 + 0.1 * n) for n in range(4)]
    assert of(few) == []
    at_an_end = [evidence(n, rate, 1 / rate) for n, rate in enumerate(np.geomspace(8, 10, 9))]
    assert of(at_an_end) == []
