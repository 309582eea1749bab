"""What momentum makes of a step: against torch's own steps, and against limits from theory."""

import numpy as np
import pytest
import torch
from helpers import complete
from hypothesis import given
from hypothesis import strategies as st

from tuner.training.guard.momentum import Momentum, momentum_of

momenta = st.builds(Momentum, beta=st.floats(0.0, 0.99), nesterov=st.booleans())


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
def test_a_distance_that_does_not_grow_is_at_the_limit(beta: float) -> None:
    assert Momentum(beta=beta).rate_times_curvature(1.0) == pytest.approx(2 + 2 * beta)
    nesterov = Momentum(beta=beta, nesterov=True)
    assert nesterov.rate_times_curvature(1.0) == pytest.approx((2 + 2 * beta) / (1 + 2 * beta))


@pytest.mark.longer
@given(momenta, st.floats(1.0, 1e6))
def test_the_growth_tells_the_curvature_and_that_the_growth(
    momentum: Momentum, growth: float
) -> None:
    assert momentum.growth_factors(
        np.array([momentum.rate_times_curvature(growth)])
    ) == pytest.approx([growth])


@pytest.mark.longer
@given(momenta, st.floats(0.0, 10.0))
def test_a_factor_is_the_largest_root_of_what_torch_does(momentum: Momentum, reach: float) -> None:
    """A step is linear in the distance and the velocity, so two of them give its matrix."""
    columns = []
    for x, velocity in ((1.0, 0.0), (0.0, 1.0)):
        parameter = torch.nn.Parameter(torch.tensor(x, dtype=torch.float64))
        optimizer = torch.optim.SGD(
            [parameter],
            reach,
            momentum=momentum.beta,
            nesterov=momentum.nesterov and momentum.beta > 0,
        )
        optimizer.state[parameter]["momentum_buffer"] = torch.tensor(velocity, dtype=torch.float64)
        parameter.grad = parameter.detach().clone()
        optimizer.step()
        kept = optimizer.state[parameter].get("momentum_buffer")
        columns.append([parameter.item(), 0.0 if momentum.beta == 0 else kept.item()])
    largest = np.abs(np.linalg.eigvals(np.array(columns).T)).max()
    assert momentum.growth_factors(np.array([reach])) == pytest.approx(
        [largest], rel=1e-6, abs=1e-6
    )


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("sgd", Momentum()),
        ({"name": "sgd", "momentum": 0.8}, Momentum(beta=0.8)),
        ({"name": "sgd", "momentum": 0.8, "nesterov": True}, Momentum(beta=0.8, nesterov=True)),
        ({"name": "adam", "beta1": 0.7}, Momentum(beta=0.7)),
        ({"name": "nadam", "beta1": 0.7}, Momentum(beta=0.7, nesterov=True)),
        ({"name": "rmsprop", "momentum": 0.5}, Momentum(beta=0.5)),
        ("adagrad", Momentum()),
        ("lion", Momentum()),
    ],
)
def test_every_optimizer_has_its_momentum(optimizer: object, expected: Momentum) -> None:
    assert momentum_of(complete(0.1, "constant", optimizer)) == expected
