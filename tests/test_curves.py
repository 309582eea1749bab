"""A curve comes in pieces; together they are the whole curve, each step once."""

import numpy as np
import pytest
from helpers import rows
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.core import curves
from tuner.core.curves import Chunk

NAN, INF = float("nan"), float("inf")


def assert_equal(one: Chunk, other: Chunk) -> None:
    assert one.first_step == other.first_step
    np.testing.assert_array_equal(one.times, other.times)
    np.testing.assert_array_equal(one.eval_steps, other.eval_steps)
    np.testing.assert_array_equal(one.eval_times, other.eval_times)
    for mine, theirs in ((one.columns, other.columns), (one.metrics, other.metrics)):
        assert set(mine) == set(theirs)
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])


@pytest.mark.parametrize(
    "chunk",
    [
        rows(0, 20),
        rows(17, 23),
        rows(3, 5),  # no evaluation
        rows(0, 0),  # an evaluation and no row
        rows(0, 3, losses=[NAN, INF, -INF]),
        curves.empty(),
        curves.empty(7),
    ],
)
def test_bytes_round_trip(chunk):
    assert_equal(Chunk.from_bytes(chunk.first_step, chunk.to_bytes()), chunk)


def test_what_is_not_contiguous_round_trips_too():
    chunk = rows(0, 20)
    every_other = Chunk(
        first_step=0,
        columns={name: values[::2] for name, values in chunk.columns.items()},
        times=chunk.times[::2],
        eval_steps=chunk.eval_steps[::-1],
        eval_times=chunk.eval_times[::-1],
        metrics={name: values[::-1] for name, values in chunk.metrics.items()},
    )
    assert_equal(Chunk.from_bytes(0, every_other.to_bytes()), every_other)


@pytest.mark.parametrize(
    ("step", "first_step", "next_step", "evaluated"),
    [
        (0, 0, 30, [0, 10, 20, 30]),  # nothing was committed, not even the evaluation at 0
        (1, 1, 30, [10, 20, 30]),
        (10, 10, 30, [20, 30]),  # the evaluation at 10 was committed with the row of step 9
        (11, 11, 30, [20, 30]),
        (29, 29, 30, [30]),
        (30, 30, 30, []),
        (99, 30, 30, []),
    ],
)
def test_after_drops_what_was_committed(step, first_step, next_step, evaluated):
    fresh = rows(0, 30).after(step)
    assert (fresh.first_step, fresh.next_step) == (first_step, next_step)
    assert fresh.eval_steps.tolist() == evaluated
    np.testing.assert_array_equal(fresh.columns["train_loss"], 1 / np.arange(1 + first_step, 31))
    np.testing.assert_array_equal(fresh.metrics["val_loss"], 2 / (1.0 + np.array(evaluated)))


def test_after_drops_an_evaluation_that_was_measured_again_where_a_trial_was_taken_up():
    again = Chunk(
        first_step=10,
        columns={},
        times=np.arange(5.0),
        eval_steps=np.array([10, 15]),
        eval_times=np.array([0.0, 5.0]),
        metrics={"val_loss": np.array([1.0, 2.0])},
    )
    assert again.after(10).eval_steps.tolist() == [15]
    assert again.after(9) is again  # a gap is for the ledger to refuse


def test_delayed_moves_times_up_and_keeps_all_else():
    chunk = rows(0, 10, time=100.0)
    late = chunk.delayed(105.0)
    assert late.times.tolist() == [105.0] * 6 + [106.0, 107.0, 108.0, 109.0]
    assert late.eval_times.tolist() == [105.0, 110.0]
    assert_equal(late.delayed(0.0), late)
    assert_equal(chunk.delayed(-INF), chunk)


def test_last_time_is_of_rows_and_evaluations():
    assert rows(0, 9, time=100.0).last_time == 108.0
    assert rows(0, 10, time=100.0).last_time == 110.0
    assert curves.empty().last_time == -INF


@pytest.mark.parametrize(
    "parts", [[(0, 5), (6, 9)], [(0, 5), (4, 9)], [(0, 5), (0, 5)], [(5, 9), (0, 5)]]
)
def test_join_refuses_gaps_and_overlaps(parts):
    with pytest.raises(ValueError, match="gap or an overlap: a chunk ends before step"):
        curves.join(rows(*part) for part in parts)


def test_join_of_nothing_is_empty():
    assert_equal(curves.join([]), curves.empty())


def test_join_accepts_parts_without_rows_or_evaluations():
    assert_equal(curves.join([curves.empty(), rows(0, 5), curves.empty(5)]), rows(0, 5))
    assert_equal(curves.join([rows(0, 5), rows(5, 9), rows(9, 20)]), rows(0, 20))


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(0, 60), st.data())
def test_chunks_committed_with_overlaps_make_the_whole_curve(steps, data):
    """Attempts end anywhere and begin again anywhere below; what they repeat is dropped."""
    committed: list[Chunk] = []
    reached = 0
    while not committed or reached < steps:
        first = data.draw(st.integers(0, reached), label="taken up at")
        until = data.draw(st.integers(max(first, min(first + 1, steps)), steps), label="until")
        fresh = rows(first, until).after(reached)
        if fresh.next_step > reached or not committed:
            committed.append(fresh)
            reached = fresh.next_step
    whole = curves.join(committed)
    assert_equal(whole, rows(0, steps))
