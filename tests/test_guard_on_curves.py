"""The guard on real curves, and on trials that nothing stopped: false alarms and what it misses."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cohorts import alone, assert_close, resumed, together, train_all
from test_reference import assert_same, curve_of, make_spec

from benchmarks import guarding, unguarded
from tuner.config import GuardTable, StudySpec
from tuner.examples import house_prices
from tuner.training import optimizers
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.guard import rules
from tuner.training.guard.momentum import Momentum
from tuner.training.guard.recovery import steps_to_recovery
from tuner.training.guard.rules import Rule
from tuner.training.rate_source import rate_source
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Status, Task, Trainer
from tuner.training.workloads import Workload

pytestmark = pytest.mark.slow  # seconds of training, no processes


@pytest.mark.thorough
@pytest.mark.parametrize("ranked_by", ["train_loss", "validation_loss"])
def test_no_run_of_the_better_half_is_stopped(ranked_by: str) -> None:
    rows = guarding.replayed(guarding.SAMPLE)
    best = [row for row in rows if row[ranked_by]]
    assert len(best) > 400
    assert [row for row in best if row["stopped"] is not None] == []


@pytest.mark.thorough
def test_trials_that_nothing_stopped() -> None:
    """A few of the benchmark's, of the kinds that train in no time; it has the real bounds.

    One is Nesterov's momentum above its limit, with a rate that falls to 0: it comes back from
    10^17 times its start.
    """
    cases = [case for case in unguarded.HELD_OUT if case.name in ("house_prices", "quadratic")]
    runs = [run for case in cases for run in guarding.runs_of(case, 0, 30, seed=7)]
    lost = [run for run in runs if run.levels > guarding.LOST]
    good = [run for run in runs if run.levels < guarding.GOOD]
    assert min(len(lost), len(good)) >= 10
    assert [run.params for run in good if run.stopped is not None] == []
    assert sum(run.stopped is not None for run in lost) >= 0.9 * len(lost)


def descended(params: dict[str, Any], steps: int = 100) -> np.ndarray:
    """Give the losses of torch's own steps on x²/2 from 1."""
    x = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer, paced = optimizers.make(params, [x]), rate_source(params, steps, "minimize")
    losses = []
    for step in range(steps):
        losses.append(0.5 * x.item() ** 2)
        x.grad = x.detach().clone()
        for group in optimizer.param_groups:
            group["lr"] = paced.rate(step)
        optimizer.step()
    return np.array(losses)


PLAIN: dict[str, Any] = {"momentum": 0.0}
HEAVY: dict[str, Any] = {"momentum": 0.9}  # stable below 3.8
NESTEROV: dict[str, Any] = {"momentum": 0.9, "nesterov": True}  # stable below 1.36


@pytest.mark.parametrize(
    ("own", "schedule", "lr", "stops"),
    [
        (PLAIN, "constant", 1.9, False),
        (PLAIN, "constant", 2.2, True),
        (PLAIN, "linear", 3.0, False),  # ∫ log|1 - 3u| du from 0 to 1 is below 0: it comes back
        (PLAIN, "cosine", 3.0, False),
        (PLAIN, "linear", 8.0, True),  # and here it is 0.9 above
        (PLAIN, "cosine", 8.0, True),
        (HEAVY, "constant", 3.7, False),
        (HEAVY, "constant", 4.0, True),
        (HEAVY, "linear", 4.0, False),
        (HEAVY, "cosine", 4.0, False),
        (HEAVY, "linear", 8.0, True),
        (NESTEROV, "constant", 1.3, False),
        (NESTEROV, "constant", 1.5, True),
        (NESTEROV, "linear", 2.0, False),
        (NESTEROV, "cosine", 2.0, False),
        (NESTEROV, "linear", 5.0, True),
        (NESTEROV, "cosine", 5.0, True),
    ],
)
def test_a_schedule_that_brings_the_loss_back_is_waited_for(
    own: dict[str, Any], schedule: str, lr: float, stops: bool
) -> None:
    params = unguarded.complete(lr, {"name": schedule}, {"name": "sgd", **own})
    losses = descended(params)
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
    state = rules.start(1, GuardTable())
    for verdict in (Rule.NON_FINITE, Rule.LATE):
        falling = np.linspace(1.0, 0.0, 50)
        steps = steps_to_recovery(
            verdict, state, np.ones(1), falling, Momentum(), baseline=None, settings=GuardTable()
        )
        assert steps is None


def exploding(factor: float, steps: int = 24) -> rules.GuardState:
    """Give the guard's state after losses that grow by so much a step, from 1."""
    state = rules.start(1, GuardTable())
    for loss in factor ** np.arange(steps):
        state, _ = rules.observe(
            state, np.array([loss]), np.ones(1), horizon=200, warmup=0, baseline=None,
            settings=GuardTable(),
        )  # fmt: skip
    return state


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75, 0.9, 0.99])
def test_what_exploded_is_expected_back_when_theory_says(rate: float) -> None:
    """A distance that grew by 1.5 a step had rate times curvature 2.5; the rate falls at once."""
    state, ahead = exploding(1.5**2), np.full(200, rate)
    found = steps_to_recovery(
        Rule.EXPLODING, state, np.ones(16), ahead, Momentum(), baseline=None,
        settings=GuardTable(),
    )  # fmt: skip
    start, last = 1.5 ** (2 * 3), 1.5 ** (2 * 23)  # the highest of the first four, and the last
    # whatever curvature grew beside it, to its own height, has to shrink too
    reach = np.linspace(2.0, 2.5, 1000)[1:]
    heights = np.log(last / start) * np.log(reach - 1) / np.log(1.5)
    falls = -2 * np.log(np.abs(1 - rate * reach))
    expected = ((heights - np.log(10)) / falls).max() if falls.min() > 0 else np.inf
    assert found is None if expected > 200 else abs(found - expected) <= 2


@pytest.mark.parametrize(("awaited", "stops"), [(0, 100), (120, 120), (199, 199), (200, None)])
def test_what_is_awaited_is_not_lost_before_its_time(awaited: int, stops: int | None) -> None:
    state = replace(rules.start(1, GuardTable()), recovery_deadline=np.array([awaited]))
    losses = np.concatenate([[1.0], 50.0 * np.exp(0.1 * np.sin(np.arange(199)))])
    found = None
    for step, loss in enumerate(losses):
        state, verdict = rules.observe(
            state, np.array([loss]), np.ones(1), horizon=200, warmup=0, baseline=1.0,
            settings=GuardTable(),
        )  # fmt: skip
        if verdict[0] == Rule.LOST and found is None:
            found = step
    assert found == stops
