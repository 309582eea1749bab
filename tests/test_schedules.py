"""Schedules are torch's where torch has them, and keep their promises everywhere."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, lr_scheduler

from tuner.training.schedules import SCHEDULES, multipliers, warmup_steps

RATE = 0.4


def torch_multipliers(make, steps, lr=RATE):
    """Run one of torch's schedulers: the rate of each step, relative to `lr`."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR passes an epoch to step, which is deprecated
        scheduler = make(optimizer)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"] / lr)
            optimizer.step()
            if len(rates) < steps:
                scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


def cosine_of_torch(steps, final):
    return lambda optimizer: lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=steps, eta_min=final * RATE
    )


def one_cycle_of_torch(steps, pct_start=0.3, div=25.0, final_div=1e4):
    return lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=RATE,
        total_steps=steps,
        pct_start=pct_start,
        div_factor=div,
        final_div_factor=final_div,
        cycle_momentum=False,
    )


def constant_of_torch(_steps):
    return lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


def step_of_torch(steps, gamma, drops):
    # a drop at the first whole step at or after each of the evenly spaced points
    milestones = [-(-k * steps // (drops + 1)) for k in range(1, drops + 1)]
    return lambda optimizer: lr_scheduler.MultiStepLR(optimizer, milestones, gamma)


def one_cycle_params(pct_start=0.3, div=25.0, final_div=1e4):
    return {
        "one_cycle.pct_start": pct_start,
        "one_cycle.div_factor": div,
        "one_cycle.final_div_factor": final_div,
    }


HORIZONS = [1, 2, 3, 7, 10, 50, 333, 1000]

CASES = [
    # schedule, its parameters, torch's own
    ("constant", {}, constant_of_torch),
    ("cosine", {"cosine.final": 0.0}, lambda n: cosine_of_torch(n, 0.0)),
    ("cosine", {"cosine.final": 0.1}, lambda n: cosine_of_torch(n, 0.1)),
    ("cosine", {"cosine.final": 1.0}, lambda n: cosine_of_torch(n, 1.0)),
    ("one_cycle", one_cycle_params(), one_cycle_of_torch),
    ("one_cycle", one_cycle_params(0.45), lambda n: one_cycle_of_torch(n, 0.45)),
    ("one_cycle", one_cycle_params(0.9, 1.0, 10.0), lambda n: one_cycle_of_torch(n, 0.9, 1.0, 10)),
    ("step", {"step.gamma": 0.1, "step.drops": 3}, lambda n: step_of_torch(n, 0.1, 3)),
    ("step", {"step.gamma": 0.5, "step.drops": 1}, lambda n: step_of_torch(n, 0.5, 1)),
    ("step", {"step.gamma": 0.9, "step.drops": 12}, lambda n: step_of_torch(n, 0.9, 12)),
]


@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize(("name", "own", "of_torch"), CASES)
def test_equal_to_torch(name, own, of_torch, horizon):
    ours = multipliers({"schedule": name, **own}, horizon)
    theirs = torch_multipliers(of_torch(horizon), horizon)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("horizon", "warmup", "length"),
    [(10, 0.25, 2), (100, 0.1, 10), (333, 0.5, 166), (50, 0.99, 49)],
)
@pytest.mark.parametrize(("name", "own", "of_torch"), CASES)
def test_warmup_is_torchs_linear_one(name, own, of_torch, horizon, warmup, length):
    def chained(optimizer):
        rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (length + 1), total_iters=length)
        return lr_scheduler.ChainedScheduler([rise])

    first = multipliers({"schedule": name, **own}, horizon - length)[0].item()
    ours = multipliers({"schedule": name, f"{name}.warmup": warmup, **own}, horizon)
    rising = torch_multipliers(chained, length) * first
    after = torch_multipliers(of_torch(horizon - length), horizon - length)
    torch.testing.assert_close(ours, torch.cat([rising, after]), rtol=0, atol=1e-12)


def test_one_cycle_begins_at_its_peak_where_torch_divides_by_zero():
    params = {"schedule": "one_cycle", **one_cycle_params(0.5)}
    with pytest.raises(ZeroDivisionError):
        torch_multipliers(one_cycle_of_torch(2, 0.5), 2)
    assert multipliers(params, 2).tolist() == pytest.approx([1.0, 1 / 25e4])


def test_drops_are_whole_steps_where_a_floor_of_fractions_is_off_by_a_drop():
    params = {"schedule": "step", "step.gamma": 0.1, "step.drops": 9}
    values = multipliers(params, 10)
    assert values.tolist() == pytest.approx([0.1**k for k in range(10)])
    million = multipliers({**params, "step.drops": 2}, 10**6)
    drops = (million.diff() < 0).nonzero().flatten() + 1
    assert drops.tolist() == [333_334, 666_667]


@pytest.mark.parametrize("horizon", [1, 2, 10**6])
def test_warmup_is_never_all_of_the_horizon(horizon):
    params = {"schedule": "constant", "constant.warmup": 0.9999999}
    assert warmup_steps(params, horizon) == horizon - 1
    assert multipliers(params, horizon)[-1] == 1.0


@pytest.mark.parametrize(
    ("params", "horizon", "steps"),
    [
        ({"schedule": "constant"}, 100, 0),
        ({"schedule": "cosine", "cosine.warmup": 0.1, "cosine.final": 0.0}, 100, 10),
        ({"schedule": "one_cycle", **one_cycle_params(0.3)}, 100, 29),
        ({"schedule": "one_cycle", "one_cycle.warmup": 0.5, **one_cycle_params(0.3)}, 100, 64),
        ({"schedule": "one_cycle", **one_cycle_params(0.3)}, 1, 0),
    ],
)
def test_warmup_counts_the_steps_before_the_peak(params, horizon, steps):
    assert warmup_steps(params, horizon) == steps
    values = multipliers(params, horizon)
    assert bool((values[: steps + 1].diff() >= 0).all())
    assert bool((values[steps:].diff() <= 0).all())


# --- properties ---------------------------------------------------------------------------------

fractions = st.floats(0.0, 1.0)
warmups = st.floats(0.0, 0.999)
horizons = st.one_of(st.sampled_from([1, 2, 3]), st.integers(1, 400))


@st.composite
def schedules(draw, warmup=warmups):
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    own = {
        "constant": st.just({}),
        "step": st.fixed_dictionaries({"gamma": st.floats(1e-3, 1.0), "drops": st.integers(1, 20)}),
        "cosine": st.fixed_dictionaries({"final": fractions}),
        "one_cycle": st.fixed_dictionaries(
            {
                "pct_start": st.floats(0.001, 0.999),
                "div_factor": st.floats(1.0, 1e3),
                "final_div_factor": st.floats(1.0, 1e6),
            }
        ),
    }[name]
    return name, {**draw(own), "warmup": draw(warmup)}


@given(schedules(), horizons)
def test_between_0_and_1_and_finite(schedule, horizon):
    name, own = schedule
    values = SCHEDULES[name](torch.arange(horizon), horizon, **own)
    assert values.shape == (horizon,)
    assert bool(torch.isfinite(values).all())
    assert bool((values >= 0).all())
    assert bool((values <= 1 + 1e-15).all())


@given(schedules(), horizons)
def test_rises_to_the_peak_then_never_rises_again(schedule, horizon):
    name, own = schedule
    params = {"schedule": name, **{f"{name}.{key}": value for key, value in own.items()}}
    peak, values = warmup_steps(params, horizon), multipliers(params, horizon)
    noise = 1e-15
    assert bool((values[peak:].diff() <= noise).all())
    # one_cycle's peak may lie between two steps: the step before it is still on the way up
    assert bool((values[:peak].diff() >= -noise).all())


@given(
    st.sampled_from(["cosine", "one_cycle"]), st.integers(20, 2000), st.floats(0.05, 0.95), warmups
)
def test_cosine_and_one_cycle_have_no_jumps(name, horizon, share, warmup):
    own = {"final": share}
    if name == "one_cycle":
        own = {"pct_start": share, "div_factor": 25.0, "final_div_factor": 1e4}
    values = SCHEDULES[name](torch.arange(horizon), horizon, warmup=warmup, **own)
    left = horizon - min(round(warmup * horizon), horizon - 1)
    # the steepest of half a cosine over n steps is π/2n; the shortest phase bounds n from below
    phase = left * (min(share, 1 - share) if name == "one_cycle" else 1) - 1
    if phase >= 1:
        bound = max(math.pi / 2 / phase, 1 / (horizon - left + 1))
        assert values.diff().abs().max() <= bound + 1e-12


@given(schedules(), st.lists(st.tuples(horizons, fractions), min_size=1, max_size=8))
def test_a_tensor_of_trials_is_each_trial_alone(schedule, trials):
    name, own = schedule
    total = torch.tensor([horizon for horizon, _ in trials])
    at = torch.tensor([int(share * (horizon - 1)) for horizon, share in trials])
    together = SCHEDULES[name](at, total, **own)
    as_float = SCHEDULES[name](at.double(), total.double(), **own)
    alone = [SCHEDULES[name](int(t), int(n), **own).item() for t, n in zip(at, total, strict=True)]
    assert together.dtype == torch.float64
    assert together.tolist() == pytest.approx(alone, rel=1e-14, abs=1e-15)
    assert torch.equal(together, as_float)


@given(st.lists(st.tuples(fractions, warmups, horizons), min_size=1, max_size=6))
def test_parameters_may_differ_by_trial_too(trials):
    final, warmup, horizon = (list(column) for column in zip(*trials, strict=True))
    together = SCHEDULES["cosine"](
        0, torch.tensor(horizon), final=torch.tensor(final).double(),
        warmup=torch.tensor(warmup, dtype=torch.float64),
    )  # fmt: skip
    alone = [
        SCHEDULES["cosine"](0, n, final=f, warmup=w).item()
        for f, w, n in zip(torch.tensor(final).double().tolist(), warmup, horizon, strict=True)
    ]
    assert together.tolist() == pytest.approx(alone, rel=1e-14)


@given(schedules(warmup=st.just(0.0)), st.integers(2, 50), st.integers(2, 9))
def test_a_longer_horizon_keeps_the_shape(schedule, horizon, factor):
    name, own = schedule
    if name == "one_cycle":
        return  # torch counts its peak and end from one step less, so only about
    short = SCHEDULES[name](torch.arange(horizon), horizon, **own)
    long = SCHEDULES[name](torch.arange(horizon) * factor, horizon * factor, **own)
    torch.testing.assert_close(short, long, rtol=1e-12, atol=1e-13)


@settings(max_examples=20)
@given(schedules())
def test_a_million_steps(schedule):
    name, own = schedule
    ends = SCHEDULES[name](torch.tensor([0, 1, 999_998, 999_999]), 10**6, **own)
    assert bool(((ends >= 0) & (ends <= 1 + 1e-15)).all())


def test_a_million_steps_are_torchs():
    ours = multipliers({"schedule": "cosine", "cosine.final": 0.01}, 10**6)
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = lr_scheduler.CosineAnnealingLR(optimizer, T_max=10**6, eta_min=0.01)
    for at in [0, 1, 123_456, 500_000, 999_999]:
        theirs.last_epoch = at  # torch's closed form, since its recursion gathers rounding errors
        assert ours[at].item() == pytest.approx(theirs._get_closed_form_lr()[0], abs=1e-12)
