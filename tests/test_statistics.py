"""Intervals hold the truth as often as they say, and change as the numbers do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.analysis.statistics import (
    Interval,
    bootstrap_interval,
    holm,
    p_below,
    simultaneous,
    t_interval,
)

numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 6))
samples = st.lists(numbers, min_size=2, max_size=20)


def bootstrap(sample, level=0.95):
    return bootstrap_interval(sample, np.random.default_rng(0), level, resamples=500)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interval", "n", "level", "low", "high"),
    [
        (t_interval, 2, 0.95, 0.94, 0.96),
        (t_interval, 5, 0.95, 0.94, 0.96),
        (t_interval, 5, 0.5, 0.48, 0.52),
        (t_interval, 30, 0.99, 0.985, 0.995),
        (bootstrap, 50, 0.95, 0.91, 0.96),
        (bootstrap, 50, 0.5, 0.46, 0.54),
    ],
)
def test_an_interval_holds_the_mean_as_often_as_it_says(interval, n, level, low, high):
    rng = np.random.default_rng(7)
    times = 6000 if interval is t_interval else 2000
    found = [interval(rng.normal(3.0, 2.0, n), level) for _ in range(times)]
    assert low <= np.mean([one.low <= 3.0 <= one.high for one in found]) <= high


@pytest.mark.longer
def test_the_bootstrap_of_few_numbers_is_too_narrow_which_is_why_t_decides():
    rng = np.random.default_rng(7)
    found = [bootstrap(rng.normal(size=4)) for _ in range(1000)]
    assert np.mean([one.low <= 0 <= one.high for one in found]) < 0.9


def test_the_t_interval_is_the_one_of_the_textbooks():
    found = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])  # s = 1.5811, t(4, 0.975) = 2.7764
    assert found.mean == 3.0
    assert found.high - 3.0 == pytest.approx(2.7764451 * 1.5811388 / math.sqrt(5))


@pytest.mark.parametrize("interval", [t_interval, bootstrap])
class TestBoth:
    def test_one_number_says_nothing_of_its_scatter(self, interval):
        found = interval([4.0])
        assert found == Interval(mean=4.0, low=-math.inf, high=math.inf, level=0.95, n=1)
        assert not found.above
        assert not found.below

    @pytest.mark.longer
    @given(value=numbers, n=st.integers(2, 9))
    def test_equal_numbers_have_no_width(self, interval, value, n):
        found = interval([value] * n)
        assert (found.low, found.mean, found.high) == (value, value, value)

    @pytest.mark.longer
    @given(sample=samples)
    def test_the_mean_is_inside(self, interval, sample):
        found = interval(sample)
        slack = 1e-9 * (1 + max(map(abs, sample)))
        assert found.low - slack <= found.mean <= found.high + slack

    @pytest.mark.longer
    @given(sample=samples, shift=numbers, scale=st.sampled_from([0.5, 2.0, 1024.0]))
    def test_it_moves_and_grows_with_the_numbers(self, interval, sample, shift, scale):
        before = interval(sample)
        after = interval([scale * x + shift for x in sample])
        slack = 1e-6 * (1 + scale * max(map(abs, sample)) + abs(shift))
        assert after.low == pytest.approx(scale * before.low + shift, abs=slack)
        assert after.high == pytest.approx(scale * before.high + shift, abs=slack)

    @pytest.mark.longer
    @given(sample=samples)
    def test_a_higher_level_is_wider(self, interval, sample):
        narrow, wide = interval(sample, 0.5), interval(sample, 0.99)
        assert wide.low <= narrow.low
        assert narrow.high <= wide.high

    @pytest.mark.parametrize("sample", [[], [math.nan, 1.0], [math.inf], [[1.0, 2.0]]])
    def test_what_is_no_sample_is_refused(self, interval, sample):
        with pytest.raises(ValueError, match="finite numbers"):
            interval(sample)

    @pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
    def test_what_is_no_level_is_refused(self, interval, level):
        with pytest.raises(ValueError, match="level"):
            interval([1.0, 2.0], level)


@pytest.mark.longer
@given(sample=samples)
def test_a_sign_turns_the_t_interval_round(sample):
    found, turned = t_interval(sample), t_interval([-x for x in sample])
    assert turned.low == pytest.approx(-found.high, rel=1e-12, abs=1e-12)


def test_the_bootstrap_repeats_itself_with_its_randomness():
    sample = [1.0, 4.0, 2.0]
    one, other = (bootstrap_interval(sample, np.random.default_rng(3)) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("level", "comparisons", "each"), [(0.95, 1, 0.95), (0.95, 0, 0.95), (0.95, 2, 0.975)]
)
def test_intervals_that_hold_together_are_wider_alone(level, comparisons, each):
    assert simultaneous(level, comparisons) == pytest.approx(each)


def test_a_p_value_is_small_where_the_interval_is_below():
    sample = [1.0, 2.0, 3.0, 4.0, 5.0]
    edge = t_interval(sample, 0.95).high
    assert math.isclose(p_below(sample, edge), 0.025)
    assert p_below(sample, 3.0) == 0.5
    assert (p_below([1.0, 1.0], 1.5), p_below([1.0, 1.0], 1.0), p_below([1.0], 9.0)) == (0, 1, 1)


def test_holms_p_values_are_those_of_the_textbook():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({}) == {}
