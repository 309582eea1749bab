"""The curvature against dense Hessians, and its bounds against the steps themselves."""

from __future__ import annotations

import pytest
import torch
from helpers import complete, spec
from torch import nn

from tuner.examples.bowl import bowl, limit, pace
from tuner.examples.digits import mlp
from tuner.examples.house_prices import line
from tuner.examples.sine import wave
from tuner.training.lr_probe import curvature, probe


def study(batch="full"):
    return spec(training={"steps": 20, "batch_size": batch, "dtype": "float64"})


def dense(product, size):
    return torch.stack([product(row) for row in torch.eye(size, dtype=torch.float64)])


def test_house_prices_have_the_curvature_of_their_hessian():
    model, (loss, _) = probe.first_model(line(), study()), probe.losses(line(), study())
    product, size = curvature.hessian(model, loss)
    expected = torch.tensor([[13.5, 5.0], [5.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(dense(product, size), expected)
    found = curvature.measure(complete(0.1, "constant", "sgd"), model, loss, [])
    assert found.lambda_max == pytest.approx(15.369875, rel=1e-6)
    assert found.bound == pytest.approx(0.1301247, rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_of_random_quadratics_it_is_within_a_percent(seed):
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(2, 51, (1,), generator=generator))
    curved = (10 ** (6 * torch.rand(size, generator=generator, dtype=torch.float64) - 3)).tolist()
    workload = bowl(tuple(curved), seed)
    model, (loss, _) = probe.first_model(workload, study()), probe.losses(workload, study())
    found = curvature.measure(complete(0.1, "constant", "sgd"), model, loss, [])
    assert found.lambda_max == pytest.approx(max(curved), rel=0.01)
    assert abs(found.lambda_max - max(curved)) <= found.relative_error * max(curved) + 1e-9
    assert found.bound == pytest.approx(2 / max(curved), rel=0.01)


@pytest.mark.slow
def test_of_a_network_it_is_within_five_percent_as_each_optimiser_sees_it():
    workload = mlp(hidden=8, layers=1)
    model = probe.first_model(workload, study(64))
    loss, batches = probe.losses(workload, study(64))
    product, size = curvature.hessian(model, loss)
    whole = dense(product, size)
    gradients = [curvature.gradient(model, batch) for batch in batches]
    for optimizer in ("sgd", "adam", "rmsprop", "adagrad"):
        params = complete(0.1, "constant", optimizer)
        divided = curvature.preconditioner(params, gradients)
        root = torch.ones(size, dtype=torch.float64) if divided is None else divided.rsqrt()
        seen = root[:, None] * whole * root
        largest = float(torch.linalg.eigvalsh((seen + seen.T) / 2)[-1])
        found = curvature.measure(params, model, loss, batches)
        assert found.lambda_max == pytest.approx(largest, rel=0.05), optimizer


@pytest.mark.parametrize("optimizer", ["adam", "nadam", "rmsprop", "adagrad"])
def test_the_preconditioner_is_what_torch_divides_by(optimizer):
    params = complete(0.1, "constant", {"name": optimizer, "eps": 1e-3})
    gradients = [torch.randn(4, dtype=torch.float64, generator=g) for g in generators(6)]
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    from tuner.training.optimizers import make

    torch_own = make({**params, "lr": 0.0}, [parameter])
    for gradient in gradients:
        parameter.grad = gradient
        torch_own.step()
    state = torch_own.state[parameter]
    square = next(state[key] for key in ("exp_avg_sq", "square_avg", "sum") if key in state)
    corrected = square / (1 - 0.999**6) if optimizer in {"adam", "nadam"} else square
    expected = corrected.sqrt() + 1e-3
    torch.testing.assert_close(curvature.preconditioner(params, gradients), expected)


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_bound_is_where_steps_begin_to_grow(momentum, nesterov):
    if nesterov and momentum == 0:
        momentum = 0.1
    own = {"name": "sgd", "momentum": momentum, "nesterov": nesterov}
    bound = curvature.bound(complete(0.1, "constant", own), 3.0)
    assert bound == pytest.approx(limit(3.0, momentum, nesterov=nesterov))
    assert pace(bound * 0.999, 3.0, momentum, nesterov=nesterov) < 1
    assert pace(bound * 1.001, 3.0, momentum, nesterov=nesterov) > 1


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adam", 38.0),
        ("adamw", 38.0),
        ({"name": "adam", "beta1": 0.0}, 2.0),
        ("nadam", 3.8 / 2.8 / 0.1),
        ("rmsprop", 2.0),
        ({"name": "rmsprop", "momentum": 0.9}, 3.8),
        ("adagrad", 2.0),
        ("lion", None),
        ("muon", None),
        ("schedule_free_sgd", None),
        ("prodigy", None),
    ],
)
def test_bounds_at_a_curvature_of_one(optimizer, expected):
    found = curvature.bound(complete(0.1, "constant", optimizer), 1.0)
    assert found == (None if expected is None else pytest.approx(expected))


def test_where_the_loss_is_curved_downwards_there_is_no_bound():
    """sin x at 1: the curvature is -sin 1."""
    model, (loss, _) = probe.first_model(wave(), study()), probe.losses(wave(), study())
    found = curvature.measure(complete(0.1, "constant", "sgd"), model, loss, [])
    assert found.lambda_max == pytest.approx(-0.841470985)
    assert found.bound is None


def test_weight_decay_counts_where_it_is_in_the_gradient():
    model, (loss, _) = probe.first_model(line(), study()), probe.losses(line(), study())
    decayed = complete(0.1, "constant", {"name": "sgd", "weight_decay": 2.0})
    assert curvature.measure(decayed, model, loss, []).lambda_max == pytest.approx(17.369875)
