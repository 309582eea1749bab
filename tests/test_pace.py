"""A pace gives each step its rate; plateau's is torch's, and goes on from a snapshot."""

import itertools
import math
import warnings

import pytest
import torch
from helpers import complete
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tuner.training.rate_source import STATEFUL, PlateauRates, rate_source
from tuner.training.schedules import SCHEDULES, multipliers, warmup_steps

OWN = {"factor": 0.5, "patience": 2, "threshold": 1e-4, "floor": 0.0}


def plateau(values, *, direction="minimize", every=1, **own):
    """Give the rate after each of some evaluations, and the pace itself."""
    own = {**OWN, **own}
    made = PlateauRates(1.0, max(1, len(values) * every), direction, **own)
    rates = []
    for number, value in enumerate(values):
        made.evaluated(number * every, value)
        rates.append(made.rate(number * every))
    return rates, made


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_pure_schedule_is_planned(name):
    params = complete(0.3, {"name": name, "warmup": 0.1}, "sgd")
    made = rate_source(params, 50, "minimize")
    made.evaluated(0, 1.0)
    made.restore(made.state())
    assert [made.rate(step) for step in range(50)] == (0.3 * multipliers(params, 50)).tolist()
    assert made.warmup == warmup_steps(params, 50)


def test_a_name_is_pure_or_has_state():
    assert not {*SCHEDULES} & {*STATEFUL}


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ([5, 4, 3, 2, 1, 0], [1, 1, 1, 1, 1, 1]),
        ([1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ([1, 2, 2, 0.5, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0.5]),
        ([1, 0.99999, 0.99998, 0.99997], [1, 1, 1, 0.5]),  # less than the threshold of 1e-4
        ([-1, -0.5, -0.7, -2, -1, -1, -1], [1, 1, 1, 1, 1, 1, 0.5]),
    ],
)
def test_it_falls_after_its_patience(values, rates):
    assert plateau(values)[0] == rates
    assert plateau([-value for value in values], direction="maximize")[0] == rates


def test_it_falls_to_its_floor_and_no_further():
    rates, _ = plateau([1.0] * 9, patience=0, factor=0.1, floor=0.05)
    assert rates == pytest.approx([1.0, 0.1] + [0.05] * 7)


def test_evaluations_within_the_warmup_are_passed_over():
    rates, made = plateau([1.0] * 10, patience=0, warmup=0.3)
    assert made.warmup == 3
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0] + [0.5**k for k in range(1, 7)])


values = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40)
settings = st.fixed_dictionaries(
    {
        "factor": st.floats(0.01, 0.99),
        "patience": st.integers(0, 5),
        "threshold": st.floats(0.0, 0.5),
        "floor": st.floats(0.0, 0.5),
    }
)
directions = st.sampled_from(["minimize", "maximize"])


@pytest.mark.longer
@given(values, settings, directions)
def test_it_is_torchs(values, own, direction):
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = ReduceLROnPlateau(
        optimizer,
        direction[:3],
        factor=own["factor"],
        patience=own["patience"],
        threshold=own["threshold"],
        min_lr=own["floor"],
        eps=0,
    )
    expected = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in values:
            theirs.step(value)
            expected.append(optimizer.param_groups[0]["lr"])
    rates, _ = plateau(values, direction=direction, **own)
    assert rates == pytest.approx(expected, abs=1e-12)


@pytest.mark.longer
@given(st.lists(st.floats(-1e300, 1e300), max_size=30), settings, directions, st.data())
def test_it_never_rises_stays_above_its_floor_and_resumes(values, own, direction, data):
    rates, whole = plateau(values, direction=direction, **own)
    assert all(later <= rate for rate, later in itertools.pairwise([1.0, *rates]))
    assert all(rate >= own["floor"] for rate in rates)
    cut = data.draw(st.integers(0, len(values)))
    _, first = plateau(values[:cut], direction=direction, **own)
    second = PlateauRates(1.0, 100, direction, **{**OWN, **own})
    second.restore(first.state())
    for number, value in enumerate(values[cut:], cut):
        second.evaluated(number, value)
        assert second.rate(number) == rates[number]
    assert second.state() == whole.state()


@pytest.mark.parametrize("horizon", [1, 2, 10**6])
def test_plateau_at_any_horizon(horizon):
    made = rate_source(
        complete(0.3, {"name": "plateau", "warmup": 0.5}, "sgd"), horizon, "minimize"
    )
    made.evaluated(0, 1.0)
    assert all(0 < made.rate(step) <= 0.3 for step in {0, horizon // 2, horizon - 1})
    assert made.rate(horizon - 1) == 0.3
    assert not math.isnan(made.rate(0))


@pytest.mark.longer
@given(settings, st.lists(st.floats(1e-6, 1e6), max_size=15), st.integers(1, 5))
def test_what_it_expects_is_what_comes_where_nothing_gets_better(own, before, every):
    """And the rates of the steps before its last fall stay what they were."""
    horizon = 30 * every
    evaluations = range(every, horizon + 1, every)
    made = PlateauRates(0.7, horizon, "minimize", **own, warmup=0.1)
    seen = []
    for step in range(horizon):
        if step == every * len(before) + 1:
            expected = made.ahead(step, evaluations)
            at = step
        if step in evaluations:
            known = step // every <= len(before)
            made.evaluated(step, before[step // every - 1] if known else 1e300)
        seen.append(made.rate(step))
    assert seen[at:] == expected
    falls = [step for step in range(1, horizon) if seen[step] < seen[step - 1]]
    since = max([0, *falls[-2:-1]])
    assert [made.rate(step) for step in range(since, horizon)] == seen[since:]
