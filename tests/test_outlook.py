"""What random search would have found, and whether a further trial is worth its cost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import completed, diverged, drawn, submit
from hypothesis import given
from hypothesis import strategies as st

from tuner.config.reading import parse
from tuner.core.errors import StudyFileError
from tuner.report import sentences
from tuner.report.charts import report_charts
from tuner.report.findings import gather
from tuner.search import Search, gp
from tuner.search.outlook import LEAST
from tuner.worker.rules import Rules

ARGUMENTS = {"a": {"low": 0.0, "high": 1.0}, "b": {"low": 0.0, "high": 1.0}}
SPACE = {"lr": 0.1, "schedule": "constant", "optimizer": "sgd", "arguments": ARGUMENTS}


def bowl(params):
    """Return a value that is 1 at best."""
    return 1.0 + 20 * ((float(params["a"]) - 0.3) ** 2 + (float(params["b"]) - 0.7) ** 2)


def searched(ledger, trials, *, direction="minimize", sampler="gp", fails=(), **budget):
    """Run a search of the bowl; trials with the numbers `fails` diverge."""
    study = submit(
        ledger,
        study={"direction": direction},
        space=SPACE,
        search={"sampler": sampler},
        budget={"trials": trials, **budget},
    )
    search = Search(study, ledger)
    sign = 1 if direction == "minimize" else -1
    for number in range(trials):
        held, made = drawn(ledger, study, search)
        value = completed(sign * bowl(made.params))
        ledger.finish(held.lease, diverged() if number in fails else value)
    return ledger.study(study.name)


@pytest.mark.longer
@given(st.lists(st.floats(-50, 1e4), min_size=1, max_size=30))
def test_scores_are_restored_to_losses(values):
    losses = np.array(values)
    found = gp.restored(gp.standardised(losses), losses)
    assert found == pytest.approx(losses, rel=1e-6, abs=1e-6 * float(np.abs(losses).max()))


def test_the_scale_goes_on_below_the_best():
    losses = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 1000.0])
    scores = gp.standardised(losses)
    below = gp.restored(np.array([2 * scores[0] - scores[1]]), losses)
    assert below == pytest.approx([0.5])


@pytest.mark.longer
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_random_search_is_as_good_as_it_is(ledger, direction):
    """The best of n random trials of the bowl, drawn for themselves."""
    study = searched(ledger, 24, direction=direction, sampler="random")
    one = gather(ledger, study).outlook
    sign = 1 if direction == "minimize" else -1
    points = np.random.default_rng(0).random((4000, 32, 2))
    losses = 1.0 + 20 * ((points - (0.3, 0.7)) ** 2).sum(axis=2)  # [search, trial]
    truth = np.minimum.accumulate(losses, axis=1).mean(axis=0)
    for many in (1, 4, 16, 32):
        assert sign * one.expected[many - 1] == pytest.approx(truth[many - 1], rel=0.35)
    assert (np.diff(sign * one.expected) <= 0).all()
    assert (one.low <= one.high).all()


@pytest.mark.longer
def test_the_gain_of_a_further_trial_falls_as_the_search_goes_on(new_ledger):
    few, many = (gather(one := new_ledger(), searched(one, n)).outlook.gain for n in (LEAST, 30))
    assert 0 <= many < few
    assert many < 0.01


@pytest.mark.longer
def test_the_report_shows_the_search_beside_random_search(ledger):
    study = searched(ledger, 16, fails=(0, 3))
    found = gather(ledger, study)
    trials, steps, values = report_charts.best_so_far(found)
    assert trials.tolist() == list(range(2, 17))  # the first one has no value
    assert values[-1] == ledger.best(study).value
    assert (np.diff(values) <= 0).all()
    assert len(steps) == len(trials)
    charts = {one.name: one for one in report_charts.of_study(found)}
    labels = [one.label for one in charts["search"].plot.series]
    assert labels[:2] == ["this search", "random, expected"]
    assert "optimistic where the search has hardly been" in charts["search-steps"].text
    (said,) = sentences.search(found)
    assert said.startswith("A further trial is expected to improve val_loss by ")
    assert "Random search would have needed " in said


@pytest.mark.longer
def test_nothing_is_said_of_few_trials_or_under_constraints(new_ledger):
    ledger = new_ledger()
    found = gather(ledger, searched(ledger, LEAST - 1))
    assert found.outlook is None
    assert sentences.search(found) == []
    ledger = new_ledger()
    study = submit(ledger, study={"constraints": ["seconds <= 9"]}, space=SPACE)
    search = Search(study, ledger)
    for _ in range(10):
        held, made = drawn(ledger, study, search)
        excess = {"seconds <= 9": -1.0}
        ledger.finish(held.lease, replace(completed(bowl(made.params)), excesses=excess))
    found = gather(ledger, study)
    assert found.outlook is None
    labels = [one.name for one in report_charts.of_study(found)]
    assert {"search", "search-steps"} <= set(labels)


@pytest.mark.longer
@pytest.mark.parametrize(("limit", "ends"), [(1e9, True), (1e-12, False)])
def test_a_search_ends_once_a_further_trial_is_not_worth_its_cost(ledger, limit, ends):
    study = searched(ledger, 20, improvement_below=limit)
    ended = Rules(ledger, Search(study, ledger)).is_over(study)
    assert ended == ends
    if ends:
        reason = ledger.study(study.name).reason
        assert reason.startswith("A further trial is expected to improve val_loss by ")
        assert reason.endswith(" only, after 20 completed trials.")


def test_a_limit_of_what_is_unknown_is_refused():
    text = """
    study = { name = "s", constraints = ["seconds <= 9"] }
    workload = { factory = "studies.digits:mlp" }
    training = { steps = 100 }
    budget = { trials = 10, improvement_below = 0.1 }
    """
    with pytest.raises(StudyFileError, match="improvement_below: expected nothing, as it is unk"):
        parse(text, "s.toml")
    assert math.isclose(
        parse(
            text.replace(', constraints = ["seconds <= 9"]', ""), "s.toml"
        ).budget.improvement_below,
        0.1,
    )
