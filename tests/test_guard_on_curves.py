"""The guard on real curves, and on trials that nothing stopped: false alarms and what it misses."""

import numpy as np
import pytest

from benchmarks import guarding
from tuner.spec import GuardTable
from tuner.training import guard
from tuner.training.guard import Verdict
from tuner.training.pace import pace
from tuner.training.returning import may_return

pytestmark = pytest.mark.slow  # seconds of training, no processes


@pytest.mark.parametrize("ranked_by", ["train_loss", "validation_loss"])
def test_no_run_of_the_better_half_is_stopped(ranked_by: str) -> None:
    rows = guarding.replayed(guarding.SAMPLE)
    best = [row for row in rows if row[ranked_by]]
    assert len(best) > 400
    assert [row for row in best if row["stopped"] is not None] == []


def test_trials_that_nothing_stopped() -> None:
    """A few of the benchmark's, of the kinds that train in no time; it has the real bounds."""
    cases = [case for case in guarding.HELD_OUT if case.name in ("house_prices", "quadratic")]
    runs = guarding.runs_of(cases, 30, seed=7)
    lost = [run for run in runs if run.levels > guarding.LOST]
    good = [run for run in runs if run.levels < guarding.GOOD]
    assert min(len(lost), len(good)) >= 10
    assert [run.params for run in good if run.stopped is not None] == []
    assert sum(run.stopped is not None for run in lost) >= 0.9 * len(lost)


def descended(lr: float, schedule: str, steps: int = 100) -> np.ndarray:
    """Give the losses of gradient descent on x²/2 from 1, where η is the schedule's."""
    rates = pace(guarding.complete(lr, {"name": schedule}, {"name": "sgd"}), steps, "minimize")
    factors = [1.0 - rates.rate(step) for step in range(steps)]
    return 0.5 * np.concatenate([[1.0], np.cumprod(factors[:-1])]) ** 2


@pytest.mark.parametrize(
    ("schedule", "lr", "stops"),
    [
        ("constant", 1.9, False),
        ("constant", 2.2, True),
        ("linear", 3.0, False),  # ∫ log|1 - 3u| du from 0 to 1 is below 0: it comes back
        ("cosine", 3.0, False),
        ("linear", 8.0, True),  # and here it is 0.9 above
        ("cosine", 8.0, True),
    ],
)
def test_a_schedule_that_brings_the_loss_back_is_waited_for(
    schedule: str, lr: float, stops: bool
) -> None:
    losses = descended(lr, schedule)
    params = guarding.complete(lr, {"name": schedule}, {"name": "sgd"})
    stopped, _ = guarding.watched(losses, [1.0] * len(losses), params, None)
    assert (losses[-1] > 10 * losses[0]) == stops
    assert (stopped is not None) == stops


def test_a_jump_is_lost_where_the_rate_stays_and_waited_for_where_it_falls() -> None:
    noise = np.exp(0.3 * np.random.default_rng(0).standard_normal(200))
    losses = np.concatenate([[1.0], 50.0 * noise[1:]])
    for schedule, expected in (("constant", 100), ("linear", None)):
        params = guarding.complete(0.1, {"name": schedule}, {"name": "sgd"})
        stopped, said = guarding.watched(losses, [1.0] * 200, params, 1.0)
        if expected is None:
            assert stopped is None or stopped > 150
        else:
            assert stopped is not None
            assert expected <= stopped <= expected + 25
            assert "jumped and did not come back" in said


def test_nothing_that_is_not_finite_is_waited_for() -> None:
    state = guard.start(1, GuardTable())
    for verdict in (Verdict.NON_FINITE, Verdict.LATE):
        falling = np.linspace(1.0, 0.0, 50)
        assert not may_return(
            verdict, state, np.ones(1), falling, baseline=None, settings=GuardTable()
        )
