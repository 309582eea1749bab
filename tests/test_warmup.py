"""The warm-up that a falling curvature asks for, where its law is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import complete, spec
from torch import nn

from tuner.examples.bowl import bowl
from tuner.training.lr_probe import probe, warmup

STEPS, FLAT = 60, 0.02


class Point(nn.Module):
    """A point x, y; the loss x⁴/4 + 0.02 y²/2 has the curvatures 3x² and 0.02 there."""

    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.tensor([2.0, 1.0], dtype=torch.float64))

    def forward(self, inputs):
        return self.at.expand(len(inputs), 2)


def loss(outputs, targets=None):
    return (outputs[:, 0] ** 4 / 4 + FLAT * outputs[:, 1] ** 2 / 2).mean()


def measured(highest=1000.0, optimizer="sgd"):
    def on_the_point(model):
        return loss(model(torch.zeros(1, 1)))

    params = complete(1.0, "constant", optimizer)
    return warmup.measure(
        params, Point(), on_the_point, [on_the_point], steps=STEPS, cruise=1000.0, highest=highest
    )


def law(times):
    """Return the curvature at some steps: x ← x - x³/λ, with λ = 3x² as measured last."""
    x, found, rate = 2.0, [], 0.0
    for step in range(times[-1] + 1):
        if step in times:
            found.append(max(3 * x**2, FLAT))
            rate = 1 / found[-1]
        x -= rate * x**3
    return np.array(found)


def test_the_curvature_falls_by_its_law():
    found = measured()
    assert found.steps[:4] == (0, 1, 2, 3)
    np.testing.assert_allclose(found.curvatures, law(found.steps), rtol=2e-3)
    np.testing.assert_allclose(found.limits, 2 / law(found.steps), rtol=2e-3)
    # at first by (2/3)² a step
    assert found.curvatures[2] == pytest.approx(12 * (2 / 3) ** 4, rel=2e-3)


def goes_down(peak, length):
    """Whether training with a warm-up to this peak ends lower than it began."""
    point = Point()
    for step in range(STEPS):
        value = loss(point(torch.zeros(1, 1)))
        (gradient,) = torch.autograd.grad(value, point.at)
        with torch.no_grad():
            point.at -= peak * min(1.0, (step + 1) / (length + 1)) * gradient
    return loss(point(torch.zeros(1, 1))) < 4.0


def test_the_shortest_warmup_stays_below_the_limit():
    found = measured()
    # as long as what was measured: the limit rises for longer
    assert (found.peak, found.length) == (pytest.approx(61 * found.limits[0]), STEPS)
    limits = dict(zip(found.steps, found.limits, strict=True))
    below = [(step, limit) for step, limit in limits.items() if limit < found.peak]
    assert all(found.peak * (step + 1) / (found.length + 1) <= limit for step, limit in below)
    assert any(found.peak * (step + 1) / found.length > limit for step, limit in below)


def test_it_makes_a_rate_stable_that_breaks_without():
    found = measured(highest=5.0)
    assert found.peak == 5.0
    # 2/12 is the limit at first: 5 is 30 times as much
    assert found.length == 29
    assert goes_down(5.0, found.length)
    assert not goes_down(5.0, 0)


@pytest.mark.longer
def test_where_the_curvature_does_not_fall_no_warmup_is_needed():
    """On a quadratic the limit is the same everywhere; also below the highest rate it stays."""
    made = spec(
        training={"steps": 200, "batch_size": "full", "dtype": "float64"},
        space={"lr": {"low": 1e-3, "high": 10.0}, "optimizer": ["sgd", "lion"]},
        probe={"steps": 20, "rates": 8},
    )
    found = probe.probe(bowl((1.0, 0.1)), made, with_warmup=True)
    still = found["sgd"].warmup
    assert still is not None
    assert (still.length, still.peak) == (0, pytest.approx(2.0, rel=1e-3))
    assert found["sgd"].as_json()["warmup"]["share"] == 0.0
    assert "no warm-up is recommended" in still.sentence("sgd", 200)
    assert found["lion"].warmup is None  # its steps have a fixed length
    again = probe.probe(bowl((1.0, 0.1)), made)["sgd"]
    assert again == replace(found["sgd"], warmup=None, horizon=0, reading=again.reading)


def test_the_recommendation_in_words():
    limits = [0.25, 0.5, 2.0, 2.5, 2.0]
    found = warmup.recommended([0, 1, 3, 6, 10], [8.0, 4.0, 1.0, 0.8, 1.0], limits, highest=10.0)
    assert (found.peak, found.length) == (1.8, math.ceil(1.8 / 0.25) - 1)
    assert found.sentence("sgd", 70) == (
        "sgd: the largest curvature falls from 8 to 0.8 in the first 10 steps. A rate of 1.8 is "
        "stable then, and 0.25 at the start: warm up for 7 steps (warmup = 0.1)."
    )


@pytest.mark.parametrize("limits", [[1.0, 4.0, 4.0, 0.9, 4.0], [1.0, 0.1, 0.1, 9.0, 9.0]])
def test_a_limit_that_comes_and_goes_is_none_to_rely_on(limits):
    assert warmup.recommended([0, 1, 3, 6, 10], limits, limits, highest=10.0).length == 0


def test_a_warmup_is_no_longer_than_what_was_measured():
    found = warmup.recommended([0, 1, 3, 6, 10], [1.0] * 5, [0.1, 1, 9, 9, 9], highest=10.0)
    assert (found.peak, found.length) == (pytest.approx(1.1), 10)
