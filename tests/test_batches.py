"""Noise scale and critical batch size, where both are known; what changes with the batch."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tuner.analysis import batches
from tuner.training import gradient_noise
from tuner.training.workloads import Workload, digest_of


def test_the_noise_scale_of_a_noisy_quadratic():
    """Gradients of rows are h·x plus noise of covariance diag(s): tr(Σ)/|G|² = sum(s)/|h·x|²."""
    rng = np.random.default_rng(0)
    h, x, s = np.linspace(0.2, 2, 20), np.ones(20), np.linspace(1, 8, 20)
    gradient = h * x
    known = s.sum() / (gradient @ gradient)
    few, many, steps = 4, 64, 400

    def squared_norms(rows):
        noise = rng.normal(size=(steps, 20)) * np.sqrt(s / rows)
        return ((gradient + noise) ** 2).sum(axis=1)

    found = batches.noise_scale(squared_norms(few), squared_norms(many), (few, many))
    assert found.rows == pytest.approx(known, rel=0.05)
    assert found.low < known < found.high < 1.3 * found.low
    with pytest.raises(ValueError, match="a small and a big batch"):
        batches.noise_scale([1], [1], (4, 4))


@pytest.mark.longer
def test_the_noise_scale_of_a_workload_by_its_micro_batches():
    """A mean of rows of variance 1 in 20 coordinates: at a distance d from it, 20/d²."""
    rows = torch.randn(4000, 20, generator=torch.Generator().manual_seed(0))

    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.full((20,), 2.0))

        def forward(self, inputs):
            return self.x - inputs

    workload = Workload(
        model=lambda seed, dtype: Point().to(dtype),
        train_inputs=rows,
        train_targets=rows,
        validation_inputs=rows[:9],
        validation_targets=rows[:9],
        loss=lambda outputs, targets: outputs.square().sum(dim=1).mean() / 2,
        data_name="points",
        data_digest=digest_of(rows),
    )
    params = {"lr": 1e-9, "schedule": "constant", "constant.warmup": 0.0, "optimizer": "sgd"}
    params |= {"sgd.momentum": 0.0, "sgd.nesterov": False, "sgd.weight_decay": 0.0}
    measured = gradient_noise.measure(workload, params, batch_size=64, steps=200)
    assert measured[2] == (8, 64)
    found = batches.noise_scale(*measured)
    square = float((2.0 - rows.mean(dim=0)).square().sum())
    trace = float(rows.var(dim=0).sum())
    assert found.rows == pytest.approx(trace / square, rel=0.1)
    assert found.low < trace / square < found.high
    with pytest.raises(ValueError, match="multiple of 8 parts, got 63"):
        gradient_noise.measure(workload, params, batch_size=63, steps=2)


def test_without_a_gradient_there_is_noise_alone():
    found = batches.noise_scale([16.0] * 9, [1.0] * 9, (4, 64))
    assert found.rows == found.high == math.inf


def test_the_critical_batch_size_of_a_noisy_quadratic():
    """The best step on a quadratic of one curvature gains ΔL = ΔL_max / (1 + B_noise/B)."""
    noise = 40.0
    sizes = np.array([4, 16, 64, 256])
    gain = 0.01 / (1 + noise / sizes)  # of the logarithm of the loss, by each step
    steps = math.log(100) / gain
    found = batches.critical_batch_size(sizes, steps)
    assert found.rows == pytest.approx(noise, rel=0.01)
    assert found.low < noise < found.high
    # where all batches are far below it, it has no upper end
    assert batches.critical_batch_size([1, 2, 4], [4000, 2000, 1000]).high == math.inf
    with pytest.raises(ValueError, match="three batch sizes, got 2"):
        batches.critical_batch_size([4, 4, 8], [1, 1, 1])


def test_when_a_curve_reaches_a_loss():
    assert batches.steps_to(1.5, [0, 10, 20], [3.0, 2.0, 1.0]) == 15
    assert batches.steps_to(3.0, [0, 10], [3.0, 2.0]) == 0
    assert batches.steps_to(0.5, [0, 10], [3.0, 2.0]) == math.inf


def test_settings_that_follow_the_batch():
    adam = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
    assert batches.adjusted("adamw", adam, 4) == pytest.approx(
        {"beta1": 0.6, "beta2": 0.996, "eps": 5e-9}
    )
    assert batches.adjusted("adamw", adam, 16)["beta1"] == 0
    assert batches.rate_factor("adamw", adam, 4) == 2
    sgd = {"momentum": 0.9}
    assert batches.adjusted("sgd", sgd, 2) == pytest.approx({"momentum": 0.81})
    # a heavy ball's steps add up to the rate over 1 - momentum
    assert batches.rate_factor("sgd", sgd, 2) == pytest.approx(2 * 0.19 / 0.1)
    assert batches.adjusted("sgd", {"momentum": 0.0}, 2) == {}
    assert batches.rate_factor("sgd", {"momentum": 0.0}, 2) == 2


def test_adjusted_sgd_takes_the_same_path_by_rows():
    """On a quadratic, two steps of a batch are one of a batch twice as large, for small rates."""

    def path(rate, momentum, steps):
        x, velocity = 1.0, 0.0
        for _ in range(steps):
            velocity = momentum * velocity + x
            x -= rate * velocity
        return x

    settings, rate = {"momentum": 0.95}, 0.0005
    for times in (2, 4):
        own = batches.adjusted("sgd", settings, times)["momentum"]
        moved = rate * batches.rate_factor("sgd", settings, times)
        assert path(moved, own, 200 // times) == pytest.approx(path(rate, 0.95, 200), abs=0.03)
        plain = path(rate * times, 0.95, 200 // times)
        assert abs(plain - path(rate, 0.95, 200)) > abs(
            path(moved, own, 200 // times) - path(rate, 0.95, 200)
        )
