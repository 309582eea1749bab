"""The gate: who takes the champion's place, and the sentence that says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.config import GateTable
from tuner.retraining import gate
from tuner.retraining.gate import Decision

ROWS = 200
NOISE = np.random.default_rng(7).normal(size=ROWS)
NOISE -= NOISE.mean()
LOSS = np.abs(np.random.default_rng(8).normal(size=ROWS)) + 1.0  # the champion's, row by row


def decided(
    challenger: Any,
    *,
    direction: str = "minimize",
    slices: dict[str, np.ndarray] | None = None,
    champion: np.ndarray = LOSS,
    **table: Any,
) -> Decision:
    challengers = challenger if isinstance(challenger, list) else [challenger]
    return gate.decide(
        GateTable.model_validate(table),
        "val_loss",
        direction,
        champion=champion,
        challengers=challengers,
        slices=slices or {},
        seed=0,
    )


@pytest.mark.parametrize(
    ("challenger", "table", "promote", "said"),
    [
        (LOSS - 0.2, {}, True, "Better: val_loss 1.8"),
        (LOSS, {}, False, "no better for sure"),  # the same model is no improvement
        (LOSS + 0.2, {}, False, "The challenger is worse"),
        (LOSS - 0.02 * NOISE, {}, False, "no better for sure"),
        (LOSS - 0.2 - 0.1 * NOISE, {}, True, "95% interval"),
        (LOSS - 0.2, {"minimum_improvement": 0.3}, False, "better, but not by enough"),
        (LOSS - 0.2, {"minimum_improvement": 0.1}, True, "over 200 rows"),
        (np.where(NOISE > 2, np.nan, LOSS - 1), {}, False, "not finite on every row"),
    ],
)
def test_a_challenger_is_promoted_when_it_is_better_for_sure(
    challenger: np.ndarray, table: dict[str, Any], promote: bool, said: str
) -> None:
    decision = decided(challenger, **table)
    assert decision.promote is promote
    assert said in decision.reason


@pytest.mark.parametrize("gain", [-1.0, 0.0, 1.0])
def test_a_comparison_of_few_rows_says_that_it_is_one(gain: float) -> None:
    few = LOSS[:48]
    assert "Only 48 rows were compared" in decided(few - gain, champion=few).reason
    assert "Only" not in decided(LOSS - gain).reason
    assert "Only" not in decided([few - gain] * 3, champion=few, seeds=3).reason


def test_pairs_tell_what_means_do_not() -> None:
    """Rows differ far more from each other than the models do on any of them."""
    hard = 100 * np.abs(NOISE)
    decision = decided(hard - 0.01, champion=hard)
    assert decision.promote
    assert decision.improvement is not None
    assert decision.improvement.mean == pytest.approx(0.01)


@pytest.mark.slow
@given(st.floats(-1, 1), st.floats(0.01, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_minimizing_a_metric_is_maximizing_its_negative(
    shift: float, scatter: float, seed: int
) -> None:
    challenger = LOSS + shift + scatter * np.random.default_rng(seed).normal(size=ROWS)
    one = decided(challenger)
    other = decided(-challenger, champion=-LOSS, direction="maximize")
    assert one.promote is other.promote
    assert one.improvement == other.improvement


def test_a_challenger_that_is_worse_on_a_slice_is_kept_out() -> None:
    weak = np.arange(ROWS) < 40
    challenger = LOSS - np.where(weak, -0.3, 0.5)
    slices = {"old": weak, "new": ~weak}
    decision = decided(challenger, slices=slices)
    assert not decision.promote
    assert "worse on old: 0.3 worse over 40 rows" in decision.reason
    assert "new" not in decision.reason.partition("worse on")[2]
    assert decided(challenger, slices=slices, tolerance=0.4).promote
    assert decided(challenger).promote


@pytest.mark.slow
def test_thirty_days_on_which_nothing_is_worse_refuse_no_good_challenger() -> None:
    """It equals the champion on every day. Without the correction, every second one is refused."""
    table, times = GateTable(), 300
    rng = np.random.default_rng(4)
    for scatter in (lambda: 1.0, lambda: rng.exponential(size=(30, 40))):  # and a few hard rows
        refused = 0
        for _ in range(times):
            gains = rng.normal(size=(30, 40)) * scatter()
            judged = gate.judge(table, {f"day {day}": one for day, one in enumerate(gains)})
            refused += any(one.fault is not None for one in judged.values())
        assert refused <= times * (0.025 + 3 * (0.025 * 0.975 / times) ** 0.5)


def test_one_bad_day_in_thirty_keeps_a_challenger_out() -> None:
    gain = np.random.default_rng(5).normal(0.5, 0.3, (30, 40))
    gain[7] -= 0.8
    slices = {f"day {day}": np.arange(1200) // 40 == day for day in range(30)}
    champion = np.tile(LOSS, 6)
    decision = decided(champion - gain.ravel(), champion=champion, slices=slices)
    assert not decision.promote
    assert "but worse on day 7: 0.389 worse over 40 rows (p 8.3e-09" in decision.reason
    assert "corrected for 30 slices)" in decision.reason
    assert [name for name, one in decision.slices.items() if one.fault] == ["day 7"]


def test_a_slice_with_a_margin_must_be_shown_to_be_worse_by_less() -> None:
    night = np.arange(ROWS) < 40
    noise = np.where(night, NOISE, 0.0)
    challenger = LOSS - np.where(night, 0.0, 0.5) + noise - noise[night].mean() * night
    slices = {"night": night}
    assert decided(challenger, slices=slices).promote  # not worse for sure
    decision = decided(challenger, slices=slices, margins={"night": 0.2})
    assert not decision.promote
    assert "worse on night: by up to 0.2" in decision.reason
    assert "over 40 rows, margin 0.2" in decision.reason
    assert decided(challenger, slices=slices, margins={"night": 0.3}).promote
    recorded = decision.slices["night"].as_json()
    assert (recorded["margin"], recorded["decides"], recorded["pairs"]) == (0.2, True, 40)


def test_a_slice_of_few_rows_is_recorded_and_does_not_decide() -> None:
    new = np.arange(ROWS) < 12
    challenger = LOSS - np.where(new, -2.0, 0.5)
    decision = decided(challenger, slices={"new": new}, margins={"new": 0.1})
    assert decision.promote
    assert decision.reason.endswith(" Slices with fewer than 20 rows did not decide: new (12).")
    recorded = decision.slices["new"].as_json()
    assert (recorded["decides"], recorded["mean"]) == (False, pytest.approx(-2))
    assert not decided(challenger, slices={"new": new}, slice_rows=12).promote


def test_with_several_seeds_the_pairs_are_seeds() -> None:
    rng = np.random.default_rng(1)
    lucky = [LOSS - 0.5, *(LOSS + rng.normal(0, 0.5) for _ in range(4))]
    assert decided(lucky[:1]).promote  # one seed's rows cannot tell luck
    decision = decided(lucky, seeds=5)
    assert not decision.promote
    assert "over 5 seeds" in decision.reason
    assert decided([LOSS - 0.5 - 0.01 * count for count in range(5)], seeds=5).promote


@pytest.mark.slow
def test_of_equal_models_few_are_promoted() -> None:
    """The error that a level of 95% allows: 1 in 40 on the better side."""
    rng = np.random.default_rng(3)
    promoted = sum(decided(LOSS + rng.normal(0, 0.3, ROWS)).promote for _ in range(200))
    assert promoted <= 200 * (0.025 + 3 * (0.025 * 0.975 / 200) ** 0.5)


def test_the_first_champion_needs_only_a_finite_metric() -> None:
    assert gate.first("val_loss", 2.0).promote
    assert not gate.first("val_loss", float("nan")).promote
