"""The rules of a budget by which a study ends before its trials are spent."""

from __future__ import annotations

import math

import pytest
from helpers import claim, completed, diverged, drawn, pruned, spec, submit
from sqlalchemy import update

from tuner.core.outcome import CANCELLED, RUNNING
from tuner.ledger import ENDED, OPEN, Ledger, StudyRecord, limits, managing
from tuner.ledger.tables import attempts, trials
from tuner.search import Search


@pytest.fixture
def ledger(either: Ledger) -> Ledger:
    """Everything here holds on both databases."""
    return either


def ran(ledger: Ledger, study: StudyRecord, *outcomes) -> None:
    for outcome in outcomes:
        ledger.finish(claim(ledger, study).lease, outcome)


def earlier(ledger: Ledger, seconds: float) -> None:
    """Let all that has happened have happened earlier."""
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(trials).values(created_at=trials.c.created_at - seconds))
        tx.execute(update(attempts).values(started_at=attempts.c.started_at - seconds))


def test_a_study_without_rules_goes_on(ledger):
    study = submit(ledger)
    ran(ledger, study, completed(1.0), completed(2.0))
    earlier(ledger, 1e9)
    assert limits.end_when_due(ledger, study) is None


@pytest.mark.parametrize(
    ("outcomes", "due"),
    [
        ([], False),
        ([diverged(), diverged(), diverged()], False),  # there is no best one yet
        ([completed(1.0), completed(2.0)], False),
        ([completed(1.0), completed(2.0), pruned()], False),
        ([completed(1.0), completed(2.0), pruned(), diverged()], True),
        ([completed(1.0), completed(2.0), pruned(), completed(0.5)], False),
        ([completed(1.0), completed(1.0), completed(1.0), completed(1.0)], True),  # no better
    ],
)
def test_no_improvement_over_so_many_trials(ledger, outcomes, due):
    study = submit(ledger, budget={"no_improvement": 3})
    ran(ledger, study, *outcomes)
    ended = limits.end_when_due(ledger, study)
    assert (ended is not None) == due
    assert ledger.study("small").state == (ENDED if due else OPEN)
    if due:
        assert ended.reason == "3 trials have ended since the best one."


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"wall_seconds": 60}, "Its 60 seconds from the first trial on are up."),
        ({"compute_seconds": 60}, "Its attempts have taken 100 of 60 seconds."),
    ],
)
def test_time_limits(ledger, budget, said):
    study = submit(ledger, budget=budget)
    assert limits.end_when_due(ledger, study) is None, "it has not begun"
    held = claim(ledger, study)
    assert limits.end_when_due(ledger, study) is None
    earlier(ledger, 100)
    ended = limits.end_when_due(ledger, study)
    assert ended is not None
    assert ended.reason == said
    assert ledger.claim(study.id, "worker", {}) is None
    ledger.finish(held.lease, completed(1.0))  # what runs goes on to its end


def test_what_waits_is_cancelled_and_what_runs_is_not_given_to_others(ledger):
    study = submit(ledger, budget={"wall_seconds": 60})
    waiting, running = claim(ledger, study), claim(ledger, study)
    ledger.release(waiting.lease, "interrupted", "Ctrl-C")
    earlier(ledger, 100)
    limits.end_when_due(ledger, study)
    states = [trial.state for trial in ledger.trials(study.id)]
    assert states == [CANCELLED, RUNNING]
    ledger.release(running.lease, "interrupted", "Ctrl-C")
    assert [trial.state for trial in ledger.trials(study.id)] == [CANCELLED, CANCELLED]


def test_a_larger_budget_opens_it_again(ledger):
    study = submit(ledger, budget={"wall_seconds": 60})
    claim(ledger, study)
    earlier(ledger, 100)
    limits.end_when_due(ledger, study)
    again = {"wall_seconds": 60}
    assert submit(ledger, budget=again).state == ENDED, "nothing has changed"
    assert submit(ledger, budget={"wall_seconds": 600}).state == OPEN
    assert ledger.study("small").reason is None
    assert claim(ledger, study).trial.number == 1


def test_a_paused_study_does_not_end(ledger):
    study = submit(ledger, budget={"wall_seconds": 60})
    claim(ledger, study)
    earlier(ledger, 100)
    paused = managing.pause(ledger, study)
    assert limits.end_when_due(ledger, paused) is None
    assert ledger.study("small").state == "paused"


@pytest.mark.parametrize("field", ["wall_seconds", "compute_seconds", "no_improvement", "weight"])
def test_limits_are_positive(field):
    with pytest.raises(ValueError, match="greater than"):
        spec(budget={field: 0})


# --- what is still to be gained


def quadratic(count: int, ledger: Ledger, study: StudyRecord) -> None:
    """Complete so many trials whose value is the squared distance of log10 lr from -2."""
    search = Search(study, ledger)
    for _ in range(count):
        held, made = drawn(ledger, study, search)
        distance = math.log10(made.params["lr"]) + 2.0
        ledger.finish(held.lease, completed(distance**2))


@pytest.mark.longer
def test_too_few_trials_bound_nothing(ledger):
    study = submit(ledger, budget={"trials": 100})
    quadratic(19, ledger, study)
    assert Search(study, ledger).regret_bound() == math.inf


@pytest.mark.slow
def test_the_bound_is_above_the_regret_and_falls_as_the_best_is_found(ledger):
    study = submit(ledger, budget={"trials": 100}, search={"sampler": "gp"})
    quadratic(20, ledger, study)
    first = Search(study, ledger).regret_bound()
    quadratic(20, ledger, study)
    best = ledger.best(study)
    assert best is not None
    second = Search(study, ledger).regret_bound()
    assert best.value <= second <= first  # the best there is has value 0
    assert second < 0.05
