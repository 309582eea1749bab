"""Schedules are torch's where torch has them, and keep their promises everywhere."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, lr_scheduler

from tuner.training.schedules import DECAYS, HEIGHTS, SCHEDULES, multipliers, warmup_steps

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


def linear_of_torch(steps, final):
    return lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, final, total_iters=steps)


def polynomial_of_torch(steps, power):
    return lambda optimizer: lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=power)


def exponential_of_torch(steps, final):
    return lambda optimizer: lr_scheduler.ExponentialLR(optimizer, final ** (1 / steps))


def multistep_of_torch(steps, milestones, gamma):
    whole = [max(1, round(share * steps)) for share in milestones]
    return lambda optimizer: lr_scheduler.MultiStepLR(optimizer, whole, gamma)


def restarts_of_torch(first, growth, final):
    return lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, first, T_mult=growth, eta_min=final * RATE
    )


def cyclic_of_torch(up, mode, base, gamma):
    return lambda optimizer: lr_scheduler.CyclicLR(
        optimizer, base * RATE, RATE, up, mode=mode, gamma=gamma, cycle_momentum=False
    )


def one_cycle_params(pct_start=0.3, div=25.0, final_div=1e4):
    return {
        "one_cycle.pct_start": pct_start,
        "one_cycle.div_factor": div,
        "one_cycle.final_div_factor": final_div,
    }


def wsd_params(shape):
    return {"wsd.decay": 0.2, "wsd.shape": shape, "wsd.final": 0.0}


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
    ("linear", {"linear.final": 0.0}, lambda n: linear_of_torch(n, 0.0)),
    ("linear", {"linear.final": 0.1}, lambda n: linear_of_torch(n, 0.1)),
    ("polynomial", {"polynomial.power": 1.0, "polynomial.final": 0.0},
     lambda n: polynomial_of_torch(n, 1.0)),
    ("polynomial", {"polynomial.power": 0.9, "polynomial.final": 0.0},
     lambda n: polynomial_of_torch(n, 0.9)),
    ("polynomial", {"polynomial.power": 3.0, "polynomial.final": 0.0},
     lambda n: polynomial_of_torch(n, 3.0)),
    ("exponential", {"exponential.final": 0.01}, lambda n: exponential_of_torch(n, 0.01)),
    ("exponential", {"exponential.final": 1e-6}, lambda n: exponential_of_torch(n, 1e-6)),
    ("multistep", {"multistep.milestones": "0.5,0.75", "multistep.gamma": 0.1},
     lambda n: multistep_of_torch(n, [0.5, 0.75], 0.1)),
    ("multistep", {"multistep.milestones": "0.01,0.3,0.55,0.999", "multistep.gamma": 0.5},
     lambda n: multistep_of_torch(n, [0.01, 0.3, 0.55, 0.999], 0.5)),
    # what torch has under other names
    ("wsd", {"wsd.decay": 1.0, "wsd.shape": "linear", "wsd.final": 0.1},
     lambda n: linear_of_torch(n, 0.1)),
    ("wsd", {"wsd.decay": 1.0, "wsd.shape": "cosine", "wsd.final": 0.1},
     lambda n: cosine_of_torch(n, 0.1)),
    ("cosine_restarts", {"cosine_restarts.cycles": 1, "cosine_restarts.growth": 2,
     "cosine_restarts.final": 0.1}, lambda n: cosine_of_torch(n, 0.1)),
]  # fmt: skip


@pytest.mark.longer
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


@pytest.mark.longer
@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize("first", [1, 2, 7, 33])
@pytest.mark.parametrize(("cycles", "growth"), [(1, 1), (3, 1), (20, 1), (4, 2), (5, 3), (4, 4)])
def test_restarts_are_torchs_where_the_first_cycle_is_whole(first, cycles, growth, final):
    horizon = first * sum(growth**k for k in range(cycles))
    own = {"cycles": cycles, "growth": growth, "final": final}
    ours = SCHEDULES["cosine_restarts"](torch.arange(horizon), horizon, **own)
    theirs = torch_multipliers(restarts_of_torch(first, growth, final), horizon)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.longer
@pytest.mark.parametrize("horizon", [1, 2, 10, 100, 999_983])
@pytest.mark.parametrize(("cycles", "growth"), [(3, 1), (3, 2), (7, 3), (20, 4)])
def test_restarts_are_whole_steps_where_the_first_cycle_is_not(horizon, cycles, growth):
    own = {"cycles": cycles, "growth": growth, "final": 0.0}
    values = SCHEDULES["cosine_restarts"](torch.arange(horizon), horizon, **own)
    whole = sum(growth**k for k in range(cycles))
    starts = {-(-sum(growth**k for k in range(n)) * horizon // whole) for n in range(cycles)}
    assert set((values == 1.0).nonzero().flatten().tolist()) == {s for s in starts if s < horizon}


@pytest.mark.parametrize("base", [0.0, 0.25])
@pytest.mark.parametrize("up", [1, 2, 7, 50])
@pytest.mark.parametrize("cycles", [1, 3, 10])
@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_cycles_are_torchs_where_half_of_one_is_whole(mode, cycles, up, base):
    horizon = 2 * up * cycles
    own = {"mode": mode, "cycles": cycles, "base": base, "final": 0.1}
    ours = SCHEDULES["cyclic"](torch.arange(horizon), horizon, **own)
    theirs = torch_multipliers(cyclic_of_torch(up, mode, base, 0.1 ** (1 / horizon)), horizon)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("horizon", "cycles", "expected"),
    [
        (1, 1, [1.0]),
        (2, 1, [0.0, 1.0]),
        (3, 1, [0.0, 1.0, 0.5]),
        (5, 2, [0.0, 1.0, 0.5, 0.0, 1.0]),
        (2, 9, [1.0, 1.0]),
    ],
)
def test_cycles_are_whole_steps_where_half_of_one_is_not(horizon, cycles, expected):
    own = {"mode": "triangular", "cycles": cycles, "base": 0.0, "final": 1.0}
    assert SCHEDULES["cyclic"](torch.arange(horizon), horizon, **own).tolist() == expected


@pytest.mark.parametrize(("warmup", "horizon"), [(1, 10), (4, 50), (100, 1000)])
def test_inverse_sqrt_is_the_transformers(warmup, horizon):
    s = torch.arange(1, horizon + 1, dtype=torch.float64)
    peak = warmup + 1
    theirs = torch.minimum(s**-0.5, s * peak**-1.5) * peak**0.5
    ours = SCHEDULES["inverse_sqrt"](
        torch.arange(horizon),
        horizon,
        timescale=peak / (horizon - warmup),
        warmup=warmup / horizon,
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("cosine", [1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
        ("1-sqrt", [1.0, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5]),
    ],
)
def test_wsd_warms_up_stays_and_decays(shape, last):
    own = {"decay": 0.25, "shape": shape, "final": 0.0, "warmup": 0.2}
    values = SCHEDULES["wsd"](torch.arange(20), 20, **own)
    assert values.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 12 + last, abs=1e-15)


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
        ({"schedule": "wsd", "wsd.warmup": 0.1, **wsd_params("linear")}, 100, 10),
        ({"schedule": "linear", "linear.warmup": 0.25, "linear.final": 1.0}, 100, 25),
    ],
)
def test_warmup_counts_the_steps_before_the_peak(params, horizon, steps):
    assert warmup_steps(params, horizon) == steps
    values = multipliers(params, horizon)
    assert bool((values[: steps + 1].diff() >= 0).all())
    assert bool((values[steps:].diff() <= 0).all())


@pytest.mark.parametrize(
    ("mode", "warmup", "steps"),
    [("triangular", 0.0, 10), ("triangular2", 0.0, 10), ("triangular", 0.2, 28)],
)
def test_the_first_rise_of_a_cycle_counts_as_warmup_and_later_ones_do_not(mode, warmup, steps):
    own = {"mode": mode, "cycles": 5, "base": 0.1, "final": 1.0, "warmup": warmup}
    params = {"schedule": "cyclic", **{f"cyclic.{key}": value for key, value in own.items()}}
    assert warmup_steps(params, 100) == steps
    restarts = {"cycles": 3, "growth": 1, "final": 0.0, "warmup": 0.1}
    params = {f"cosine_restarts.{key}": value for key, value in restarts.items()}
    assert warmup_steps({"schedule": "cosine_restarts", **params}, 100) == 10


# --- properties ---------------------------------------------------------------------------------

fractions = st.floats(0.0, 1.0)
warmups = st.floats(0.0, 0.999)
horizons = st.one_of(st.sampled_from([1, 2, 3]), st.integers(1, 400))


milestones = st.lists(
    st.floats(0.01, 0.99).map(lambda share: round(share, 3)), min_size=1, max_size=4, unique=True
).map(lambda shares: ",".join(map(str, sorted(shares))))


@st.composite
def schedules(draw, warmup=warmups, names=tuple(SCHEDULES)):
    name = draw(st.sampled_from(names))
    own = {
        "constant": st.just({}),
        "linear": st.fixed_dictionaries({"final": fractions}),
        "polynomial": st.fixed_dictionaries({"power": st.floats(0.1, 9.0), "final": fractions}),
        "exponential": st.fixed_dictionaries({"final": st.floats(1e-9, 1.0)}),
        "multistep": st.fixed_dictionaries(
            {"milestones": milestones, "gamma": st.floats(1e-3, 1.0)}
        ),
        "cosine_restarts": st.fixed_dictionaries(
            {"cycles": st.integers(1, 20), "growth": st.integers(1, 4), "final": fractions}
        ),
        "cyclic": st.fixed_dictionaries(
            {
                "mode": st.sampled_from(sorted(HEIGHTS)),
                "cycles": st.integers(1, 50),
                "base": st.floats(0.0, 0.99),
                "final": st.floats(1e-9, 1.0),
            }
        ),
        "inverse_sqrt": st.fixed_dictionaries({"timescale": st.floats(1e-4, 10.0)}),
        "wsd": st.fixed_dictionaries(
            {
                "decay": st.floats(0.001, 1.0),
                "shape": st.sampled_from(sorted(DECAYS)),
                "final": fractions,
            }
        ),
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


@pytest.mark.longer
@given(schedules(), horizons)
def test_between_0_and_1_and_finite(schedule, horizon):
    name, own = schedule
    values = SCHEDULES[name](torch.arange(horizon), horizon, **own)
    assert values.shape == (horizon,)
    assert bool(torch.isfinite(values).all())
    assert bool((values >= 0).all())
    assert bool((values <= 1 + 1e-15).all())


MONOTONE = [name for name in SCHEDULES if name not in {"cyclic", "cosine_restarts"}]


@pytest.mark.longer
@given(schedules(names=MONOTONE), horizons)
def test_rises_to_the_peak_then_never_rises_again(schedule, horizon):
    name, own = schedule
    params = {"schedule": name, **{f"{name}.{key}": value for key, value in own.items()}}
    peak, values = warmup_steps(params, horizon), multipliers(params, horizon)
    noise = 1e-15
    assert bool((values[peak:].diff() <= noise).all())
    # one_cycle's peak may lie between two steps: the step before it is still on the way up
    assert bool((values[:peak].diff() >= -noise).all())


def steepest(name, own, left):
    """Bound the change from one step to the next, of those that promise no jumps; None: no promise.

    `left` steps come after the warm-up. Half a cosine over n steps changes by π/2n at most.
    """
    bound = None  # drops and restarts have jumps, and some falls begin or end infinitely steep
    match name:
        case "constant":
            bound = 0.0
        case "linear":
            bound = 1 / left
        case "polynomial" if own["power"] >= 1:
            bound = own["power"] / left
        case "exponential":
            bound = -math.log(own["final"]) / left
        case "cosine":
            bound = math.pi / 2 / left
        case "one_cycle":  # the shorter of its two phases
            phase = left * min(own["pct_start"], 1 - own["pct_start"]) - 1
            bound = math.pi / 2 / phase if phase >= 1 else None
        case "cyclic" if own["mode"] != "triangular2" and left >= 2 * own["cycles"]:
            bound = 1 / (left // own["cycles"] // 2) - math.log(own["final"]) / left
        case "inverse_sqrt":
            bound = 0.5 / (own["timescale"] * left)
        case "wsd" if own["shape"] != "1-sqrt":
            bound = math.pi / 2 / max(1, round(own["decay"] * left))
    return bound


@pytest.mark.longer
@given(schedules(), st.integers(20, 2000))
def test_no_jumps_where_none_are_promised(schedule, horizon):
    name, own = schedule
    values = SCHEDULES[name](torch.arange(horizon), horizon, **own)
    left = horizon - min(round(own["warmup"] * horizon), horizon - 1)
    bound = steepest(name, own, left)
    if bound is not None:
        bound = max(bound, 1 / (horizon - left + 1))
        assert values.diff().abs().max() <= bound + 1e-12


@pytest.mark.longer
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


@pytest.mark.longer
@given(st.data(), st.lists(horizons, min_size=1, max_size=6))
def test_parameters_may_differ_by_trial_too(data, horizon):
    name, first = data.draw(schedules())
    alike = {key: value for key, value in first.items() if isinstance(value, str)}
    others = schedules(names=[name]).map(lambda schedule: {**schedule[1], **alike})
    each = [first, *(data.draw(others) for _ in horizon[1:])]
    dtypes = {float: torch.float64, int: torch.int64}
    together = {
        key: torch.tensor([own[key] for own in each], dtype=dtypes[type(value)])
        for key, value in first.items()
        if key not in alike
    }
    at = [data.draw(st.integers(0, n - 1)) for n in horizon]
    tensors = SCHEDULES[name](torch.tensor(at), torch.tensor(horizon), **together, **alike)
    alone = [
        SCHEDULES[name](t, n, **own).item() for t, n, own in zip(at, horizon, each, strict=True)
    ]
    assert tensors.tolist() == pytest.approx(alone, rel=1e-12, abs=1e-14)


# one_cycle counts its peak and end from one step less, as torch does; the others round shares of
# the horizon to whole steps, which a longer horizon does more finely
ROUNDING = {"one_cycle", "multistep", "cosine_restarts", "cyclic", "wsd"}
SCALING = [name for name in SCHEDULES if name not in ROUNDING]


@pytest.mark.longer
@given(schedules(st.just(0.0), names=SCALING), st.integers(2, 50), st.integers(2, 9))
def test_a_longer_horizon_keeps_the_shape(schedule, horizon, factor):
    name, own = schedule
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
