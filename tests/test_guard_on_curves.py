"""The guard on real curves, and on trials that nothing stopped: false alarms and what it misses."""

from collections.abc import Callable

import numpy as np
import pytest
from cohorts import alone, assert_close, resumed, together, train_all
from test_reference import assert_same, curve_of, make_spec

from benchmarks import guarding, unguarded
from studies import house_prices
from tuner.spec import GuardTable, StudySpec
from tuner.training import guard
from tuner.training.cohort import CohortTrainer
from tuner.training.guard import Verdict
from tuner.training.pace import pace
from tuner.training.reference import ReferenceTrainer
from tuner.training.returning import may_return
from tuner.training.trainer import Status, Task, Trainer
from tuner.training.workloads import Workload

pytestmark = pytest.mark.slow  # seconds of training, no processes


@pytest.mark.parametrize("ranked_by", ["train_loss", "validation_loss"])
def test_no_run_of_the_better_half_is_stopped(ranked_by: str) -> None:
    rows = guarding.replayed(guarding.SAMPLE)
    best = [row for row in rows if row[ranked_by]]
    assert len(best) > 400
    assert [row for row in best if row["stopped"] is not None] == []


def test_trials_that_nothing_stopped() -> None:
    """A few of the benchmark's, of the kinds that train in no time; it has the real bounds.

    One good trial is stopped: Nesterov above its limit, with a rate that falls to 0, which comes
    back from 10^17 times its start; the forecast knows gradient descent alone.
    """
    cases = [case for case in unguarded.HELD_OUT if case.name in ("house_prices", "quadratic")]
    runs = [run for case in cases for run in guarding.runs_of(case, 0, 30, seed=7)]
    lost = [run for run in runs if run.levels > guarding.LOST]
    good = [run for run in runs if run.levels < guarding.GOOD]
    assert min(len(lost), len(good)) >= 10
    wrong = [run.params for run in good if run.stopped is not None]
    assert [(one["sgd.nesterov"], one["schedule"]) for one in wrong] == [(True, "linear")]
    assert sum(run.stopped is not None for run in lost) >= 0.9 * len(lost)


def descended(lr: float, schedule: str, steps: int = 100) -> np.ndarray:
    """Give the losses of gradient descent on x²/2 from 1, where η is the schedule's."""
    rates = pace(unguarded.complete(lr, {"name": schedule}, {"name": "sgd"}), steps, "minimize")
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
    params = unguarded.complete(lr, {"name": schedule}, {"name": "sgd"})
    stopped, _ = guarding.watched(losses, [1.0] * len(losses), params, None)
    assert (losses[-1] > 10 * losses[0]) == stops
    assert (stopped is not None) == stops


def test_a_jump_is_lost_where_the_rate_stays_and_waited_for_where_it_falls() -> None:
    noise = np.exp(0.3 * np.random.default_rng(0).standard_normal(200))
    losses = np.concatenate([[1.0], 50.0 * noise[1:]])
    for schedule, expected in (("constant", 100), ("linear", None)):
        params = unguarded.complete(0.1, {"name": schedule}, {"name": "sgd"})
        stopped, said = guarding.watched(losses, [1.0] * 200, params, 1.0)
        if expected is None:
            assert stopped is None or stopped > 150
        else:
            assert stopped is not None
            assert expected <= stopped <= expected + 25
            assert "jumped and did not come back" in said


@pytest.mark.parametrize(
    ("first", "initial", "baseline", "stops"),
    [
        (1.0, 1.0, None, True),
        (1.0, 1.0, 0.01, True),  # a hundred times its baseline: still, it began there
        (1.0, None, 0.01, False),  # not measured: the first loss may have been luck
        (1.0, None, 1.0, True),
        (1.0, 1e-9, None, True),  # never held to less than what it began with
        (300.0, 1e-9, None, False),
        (1.0, 300.0, 1.0, False),  # the first batch was lucky
        (1.0, 1.0, 300.0, False),
    ],
)
def test_a_jump_is_measured_by_where_the_trial_began(
    first: float, initial: float | None, baseline: float | None, stops: bool
) -> None:
    noise = np.exp(0.2 * np.random.default_rng(0).standard_normal(199))
    losses = np.concatenate([[first], 1e3 * noise])
    params = unguarded.complete(0.1, {"name": "constant"}, {"name": "sgd"})
    stopped, said = guarding.watched(losses, [1.0] * 200, params, baseline, initial)
    if stops:
        assert stopped is not None
        assert 100 <= stopped <= 110
        assert "jumped and did not come back" in said
    else:
        assert stopped is None


LOST_AT_ONCE = Task(
    number=1, seed=1, params=unguarded.complete(3e4, {"name": "constant"}, {"name": "adam"})
)
"""On house prices: a jump to 40,000 times the first loss, from which Adam comes back too slowly."""


def test_every_trainer_tells_the_guard_where_a_trial_began() -> None:
    """Its first loss is 13.5 baselines, so that alone would not be trusted."""
    workload, spec = house_prices.line(), make_spec(steps=50, batch_size="full", evaluate_every=10)
    expected = alone(workload, spec, [LOST_AT_ONCE])[1]
    status, reason, at = expected[2]
    assert status is Status.DIVERGED
    assert "jumped and did not come back" in reason
    assert 25 <= at <= 32
    assert_close(together(workload, spec, [LOST_AT_ONCE])[1], expected)


@pytest.mark.parametrize("trainer", [ReferenceTrainer, lambda *given: CohortTrainer(*given, 1)])
def test_where_a_trial_began_is_kept_over_an_interruption(
    trainer: Callable[[Workload, StudySpec], Trainer],
) -> None:
    workload, spec = house_prices.line(), make_spec(steps=50, batch_size="full", evaluate_every=10)
    first, second, whole = (trainer(workload, spec) for _ in range(3))
    first.admit(LOST_AT_ONCE)
    events = first.advance(7)
    second.admit(resumed(first, LOST_AT_ONCE))
    while events[-1].status is not Status.DIVERGED:
        events += second.advance(1000)
    assert_same(curve_of(events), curve_of(train_all(whole, [LOST_AT_ONCE])[1]))


def test_nothing_that_is_not_finite_is_waited_for() -> None:
    state = guard.start(1, GuardTable())
    for verdict in (Verdict.NON_FINITE, Verdict.LATE):
        falling = np.linspace(1.0, 0.0, 50)
        assert not may_return(
            verdict, state, np.ones(1), falling, baseline=None, settings=GuardTable()
        )
