"""The probe against theory: brackets, the fastest rate, what it leaves alone and what moves it."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import spec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from benchmarks.lr_finders import Sweep, curves_of_model, preserved_state, steep, sweep, valley
from tuner.examples.bowl import FrozenAdam, best, bowl, limit
from tuner.examples.house_prices import line
from tuner.examples.quadratic import parabola
from tuner.examples.sine import wave
from tuner.training.lr_probe import curves_by_rate, probe, stability
from tuner.training.lr_probe.stability import Behavior, Curves

BETA = 0.9
FORMS = {
    "sgd": {"momentum": 0.0, "nesterov": False},
    "heavy ball": {"momentum": BETA, "nesterov": False},
    "nesterov": {"momentum": BETA, "nesterov": True},
}


def exact(steps=200, **overrides):
    training = {"steps": steps, "batch_size": "full", "dtype": "float64", "evaluate_every": steps}
    space = {"lr": {"low": 1e-5, "high": 10.0}, **overrides.pop("space", {})}
    return spec(training=training, space=space, probe={"steps": steps}, **overrides)


def of_sgd(momentum, nesterov):
    choice = exact(space={"optimizer": [{"name": "sgd", "momentum": max(momentum, 1e-9)}]})
    made = probe.representative(choice.space.optimizer[0])
    return {**made, "sgd.momentum": momentum, "sgd.nesterov": nesterov}


def curvatures(seed):
    """Two to fifty of them, over up to three powers of ten, at any scale."""
    generator = np.random.default_rng(1000 + seed)
    size, width = int(generator.integers(2, 51)), generator.uniform(0, 3)
    exponents = np.append(generator.uniform(-width, 0, size - 2), [0.0, -width])
    return tuple((10.0 ** (generator.uniform(-3, 3) + exponents)).tolist())


def assert_true(found, at_most, fastest):
    """The bracket holds the largest stable rate, and the fastest is within 1.5 of the best."""
    low, high = fastest
    assert found.low is not None
    assert found.high is not None
    assert found.low <= at_most <= found.high
    assert found.high / found.low < 1.12
    assert low / 1.5 <= found.fastest <= high * 1.5
    assert found.suggested[0] <= found.fastest <= found.low


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workload", "curved"),
    [
        (line(), tuple(np.linalg.eigvalsh([[13.5, 5.0], [5.0, 2.0]]))),
        (parabola(), (2.0,)),
        (wave(), (1.0,)),
    ],
    ids=["house prices", "parabola", "sine"],
)
def test_problems_that_everybody_knows(workload, curved):
    found = probe.probe(workload, exact())["sgd"]
    assert_true(found, limit(max(curved)), best(curved))


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(20))
def test_random_quadratics(seed):
    """One of four optimisers each; benchmarks/probing.py has all four of 200 quadratics."""
    curved = curvatures(seed)
    workload = bowl(curved, seed)
    if seed % 4 == 3:
        assert_true(*frozen_adam(workload, seed))
        return
    form = list(FORMS.values())[seed % 4]
    params = {"one": of_sgd(**form)}
    attempt = curves_by_rate.curves_of_workload(workload, exact(), params)
    curves = probe.measure_curves(attempt, {"one": (1e-5, 10.0)}, 31)["one"]
    found = probe.summarize(curves, params["one"])
    assert_true(found, limit(max(curved), **form), best(curved, **form))


def frozen_adam(workload, seed):
    model = probe.first_model(workload, exact())
    inputs = workload.train_inputs
    generator = torch.Generator().manual_seed(seed)
    divided = torch.rand(inputs.shape[1], generator=generator, dtype=torch.float64) + 0.1
    root = divided.rsqrt()
    hessian = 2 / len(inputs) * inputs.T @ inputs
    # of an average of gradients, heavy ball's is 1 / (1 - β) times as large
    curved = (1 - BETA) * torch.linalg.eigvalsh(root[:, None] * hessian * root)
    optimizer = FrozenAdam(model.parameters(), divided[None], BETA)
    loss, _ = probe.losses(workload, exact())
    attempt = curves_of_model(model, optimizer, lambda _step: loss(model), 200)
    curves = probe.measure_curves(attempt, {"adam": (1e-5, 10.0)}, 31)["adam"]
    told = tuple(curved.tolist())
    return probe.summarize(curves, {}), limit(max(told), BETA), best(told, BETA)


def test_38_over_the_curvature_is_the_limit_of_frozen_adam():
    assert limit((1 - BETA) * 1.0, BETA) == pytest.approx(38.0)


@pytest.mark.thorough
@pytest.mark.slow
def test_all_optimisers_go_in_one_cohort_and_agree_with_each_alone():
    both = [{"name": "sgd"}, {"name": "adamw", "weight_decay": 0.0}]
    together = probe.probe(line(), exact(100, space={"optimizer": both}))
    for one in both:
        alone = probe.probe(line(), exact(100, space={"optimizer": one}))
        assert together[one["name"]].as_json() == alone[one["name"]].as_json()


@pytest.mark.slow
def test_what_cannot_be_stacked_is_trained_one_after_another():
    accumulated = exact(50)
    training = accumulated.training.model_copy(update={"accumulate": 2})
    plain = accumulated.model_copy(update={"training": training})
    together, alone = (probe.probe(line(), one)["sgd"] for one in (accumulated, plain))
    assert (alone.low, alone.high) == (together.low, together.high)


# --- what the loss is added to or multiplied by


@pytest.mark.slow
@pytest.mark.parametrize("shift", [-1000.0, 1e4])
def test_adding_to_the_loss_changes_nothing(shift):
    house = line()
    shifted = replace(house, loss=lambda o, t: house.loss(o, t) + shift, baseline_loss=None)
    plain = probe.probe(replace(house, baseline_loss=None), exact(100))["sgd"]
    moved = probe.probe(shifted, exact(100))["sgd"]
    assert (moved.low, moved.high) == (plain.low, plain.high)
    assert moved.fastest == pytest.approx(plain.fastest, rel=0.1)


@pytest.mark.slow
def test_multiplying_the_loss_moves_the_limit_of_sgd_alone():
    house, optimizers = line(), [{"name": "sgd"}, {"name": "lion"}]
    times = replace(house, loss=lambda o, t: house.loss(o, t) * 16, baseline_loss=16 * 2e4)
    made = exact(100, space={"optimizer": optimizers})
    plain, scaled = probe.probe(house, made), probe.probe(times, made)
    assert scaled["sgd"].low <= limit(16 * 15.369875) <= scaled["sgd"].high
    lion, same = scaled["lion"], plain["lion"]  # it goes by signs
    assert (lion.low, lion.high, lion.fastest) == (same.low, same.high, same.fastest)


@st.composite
def curves(draw, **elements):
    """Curves at some rates, whatever they look like."""
    count, steps = draw(st.integers(2, 6)), draw(st.integers(8, 16))
    numbers = st.integers(-1000, 1000).map(float)  # what is added and multiplied stays exact
    some = arrays.arrays(np.float64, (2, count, steps), elements=numbers)
    still = draw(arrays.arrays(np.float64, steps, elements=numbers) | st.just(np.zeros(steps)))
    losses, norms = draw(some)
    losses[:, 0] = still[0]  # all begin at the same weights
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, count - 1)), draw(st.integers(1, steps - 1))
        losses[place] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    rates = np.geomspace(1e-3, 1.0, count)
    return Curves(rates=rates, losses=losses, norms=np.abs(norms), baseline_losses=still)


@pytest.mark.slow
@settings(max_examples=60)
@given(curves(), st.sampled_from([0.125, 1.0, 1024.0]), st.integers(-(2**20), 2**20))
def test_a_reading_does_not_depend_on_the_losses_scale_or_zero(found, scale, shift):
    plain = stability.assess(found)
    other = stability.assess(
        replace(
            found,
            losses=found.losses * scale + shift,
            baseline_losses=found.baseline_losses * scale + shift,
        )
    )
    np.testing.assert_array_equal(plain.behaviors, other.behaviors)
    np.testing.assert_allclose(plain.progress, other.progress)


@pytest.mark.slow
@settings(max_examples=60)
@given(curves())
def test_a_reading_survives_whatever_losses_are(found):
    reading = stability.assess(found)
    broken = ~np.isfinite(found.losses).all(axis=1)
    assert (reading.behaviors[broken] == Behavior.UNSTABLE).all()
    if reading.fastest is not None:
        assert reading.behaviors[reading.fastest] == Behavior.LEARNS
        assert reading.lowest_unstable is None or reading.fastest < reading.lowest_unstable
    said = probe.summarize(found, {}).as_json()
    assert set(said) == {"stable", "fastest", "suggested", "curvature"}


def test_where_nothing_learns_nothing_is_suggested():
    flat = np.zeros((4, 12))
    found = Curves(rates=np.geomspace(1e-3, 1, 4), losses=flat, norms=flat, baseline_losses=flat[0])
    said = probe.summarize(found, {})
    assert (said.fastest, said.suggested, said.high) == (None, None, None)


@pytest.mark.longer
def test_a_loss_that_becomes_nan_or_infinite_breaks_there():
    attempt = curves_by_rate.curves_of_workload(
        replace(parabola(), loss=lambda o, t: nn.functional.mse_loss(o, t) ** 3), exact(), {"s": S}
    )
    found = probe.summarize(probe.measure_curves(attempt, {"s": (1e-5, 10.0)}, 31)["s"], S)
    assert found.high is not None
    assert found.low is not None
    assert found.fastest is not None


S = of_sgd(0.0, False)


# --- what is left alone


def touched(name):
    """A model with a buffer, dropout and a frozen part, and its optimiser in the middle of work."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.ReLU(), nn.Linear(5, 1)
    )
    model[1].eval()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01)
    inputs = torch.randn(8, 3)

    def loss(step):
        random.random()
        np.random.random()
        return model(inputs + step).square().mean()

    if name != "SGD":  # SGD begins without any state, which must be gone again
        loss(0).backward()
        optimizer.step()
    return model, optimizer, loss


def whole(model, optimizer):
    """Everything that could have changed, as bits."""
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    state = copy.deepcopy(optimizer.state_dict())
    chance = random.getstate(), np.random.get_state()[1].tobytes()
    return (
        [None if t is None else t.detach().numpy().tobytes() for t in tensors],
        repr(state),
        [module.training for module in model.modules()],
        chance,
        torch.get_rng_state().numpy().tobytes(),
    )


@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam"])
def test_model_optimiser_and_random_states_are_left_to_the_bit(name):
    model, optimizer, loss = touched(name)
    identities = [id(p) for p in model.parameters()]
    torch.set_printoptions(precision=20)
    before = whole(model, optimizer)
    curves_of_model(model, optimizer, loss, 6)({"x": [0.01, 1e30]})
    assert whole(model, optimizer) == before
    sweep(model, optimizer, loss, high=1e30, steps=12)
    assert whole(model, optimizer) == before
    with preserved_state(model, optimizer):
        loss(0).backward()
        optimizer.step()
    assert whole(model, optimizer) == before
    assert [id(p) for p in model.parameters()] == identities
    torch.set_printoptions(profile="default")


@pytest.mark.longer
def test_a_probe_of_a_workload_leaves_random_states_alone():
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()
    probe.probe(line(), exact(20))
    after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()
    assert after == before


# --- the usual sweep


def swept(losses):
    rates = np.geomspace(1e-4, 1.0, len(losses))
    return Sweep(rates=rates, losses=np.array(losses), smoothed=np.array(losses))


def test_valley_is_half_way_through_the_longest_fall():
    """Of 40 points, 4 and 5 are left out; the fall is over points 10 to 30 of the 31 that stay."""
    losses = [1.0] * 15 + [1.0 - 0.04 * step for step in range(1, 21)] + [0.5] * 5
    rates = swept(losses).rates[4:-5]
    # the longest fall has 21 points, of which the last is 30; a third is 7, a sixth 3
    assert valley(swept(losses)) == rates[31 - 21 + 7 + 3 - 1]


def test_steep_is_where_the_loss_falls_most():
    losses = [1.0] * 20 + [0.9, 0.2, 0.1] + [0.1] * 17
    assert steep(swept(losses)) == swept(losses).rates[20]


def test_a_sweep_ends_where_the_loss_is_lost_and_says_too_much():
    """The largest stable rate is 0.13; a rising rate is far above it when the loss is lost."""
    model = probe.first_model(line(), exact())
    loss, _ = probe.losses(line(), exact())
    found = sweep(model, torch.optim.SGD(model.parameters(), 0.1), lambda _step: loss(model))
    assert len(found.rates) < 100
    assert found.rates[-1] > 2 * 0.1301
