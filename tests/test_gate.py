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
