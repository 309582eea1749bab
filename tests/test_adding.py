"""Trials that a person adds to a study: enqueued ones and retries of failed ones."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from click.testing import CliRunner
from helpers import claim, completed, draw, drawn, rows, submit
from training_here import submitted, train

import tuner
from tuner.analysis import ranking
from tuner.cli.app import cli
from tuner.core.errors import ConnectionLostError, NotFoundError, UsageError
from tuner.core.outcome import FAILED, Outcome
from tuner.ledger import adding
from tuner.ledger.database import tracking_client
from tuner.operations import manage
from tuner.operations.doctor import examine
from tuner.operations.enqueue import enqueue, parsed
from tuner.operations.retry import retry
from tuner.search import Search
from tuner.tracking.recorder import Recorder

GRID = {
    "space": {"lr": [0.1, 0.2, 0.3], "schedule": "constant", "optimizer": "sgd"},
    "search": {"sampler": "grid", "pruner": "none"},
}


def fail(ledger, study, search=None, reason="It broke."):
    one, _ = drawn(ledger, study, search or Search(study, ledger))
    ledger.finish(one.lease, Outcome(kind=FAILED, reason=reason))
    return one.trial.number


def test_an_enqueued_trial_is_claimed_before_the_samplers_next_one(ledger):
    study = submit(ledger)
    search = Search(study, ledger)
    drawn(ledger, study, search)
    told = enqueue(ledger, "small", {"lr": 0.01})
    assert (told["trial"], told["params"]) == (1, {"lr": 0.01})
    assert told["budget"] == {"trials": 10, "reserved": 2}
    one, made = drawn(ledger, study, search)
    assert (one.trial.number, made.params["lr"]) == (1, 0.01)
    assert made.params["optimizer"] == "sgd"
    assert ledger.trials(study.id)[1].attrs["fixed_params"] == {"lr": 0.01}
    assert drawn(ledger, study, search)[1].params["lr"] != 0.01


@pytest.mark.longer
def test_other_draws_are_the_same_with_an_enqueued_trial(ledger, new_ledger):
    plain, other = submit(ledger, budget={"trials": 4}), new_ledger()
    without = {one.trial.number: made.params for one, made in _draws(ledger, plain, 4)}
    enqueued = submit(other, budget={"trials": 4})
    drawn(other, enqueued, Search(enqueued, other))
    enqueue(other, "small", {"lr": 0.5})
    found = {one.trial.number: made.params for one, made in _draws(other, enqueued, 3)}
    assert {n: found[n] for n in (2, 3)} == {n: without[n] for n in (2, 3)}


def _draws(ledger, study, count):
    search = Search(study, ledger)
    return [drawn(ledger, study, search) for _ in range(count)]


@pytest.mark.longer
def test_a_grid_tries_every_combination_beside_added_trials(ledger):
    study = submit(ledger, **GRID, budget={"trials": 5})
    study, _ = ledger.submit(study.spec, limit=5, workload=study.workload, combinations=3)
    assert study.limit == 3
    fail(ledger, study)
    assert retry(ledger, "small", failed=True)["retried"] == [{"failed": 0, "trial": 1}]
    enqueue(ledger, "small", {"lr": 0.3})
    again, _ = ledger.submit(study.spec, limit=5, workload=study.workload, combinations=3)
    assert again.limit == 5
    rates = [made.params["lr"] for _, made in _draws(ledger, again, 4)]
    assert rates == [0.1, 0.3, 0.2, 0.3]  # the retry, the enqueued one, and the rest of the grid
    assert ledger.claim(study.id, "worker", {}) is None


@pytest.mark.parametrize("search", [{"sampler": "qmc"}, {"sampler": "tpe"}, {"sampler": "cmaes"},
                                    {"sampler": "gp"}, {"first": [{"lr": 0.2, "schedule":
                                    "constant", "optimizer": "sgd", "sgd.momentum": 0.0,
                                    "sgd.nesterov": False, "sgd.weight_decay": 0.0}]}])  # fmt: skip
def test_every_sampler_leaves_an_enqueued_rate_alone(ledger, search):
    study = submit(ledger, search=search)
    enqueue(ledger, "small", {"lr": 0.017})
    (one, made), (_, after) = _draws(ledger, study, 2)
    assert (one.trial.number, made.params["lr"]) == (0, 0.017)
    assert after.params["lr"] == 0.2 if "first" in search else after.params["lr"] != 0.017


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "at least one parameter"),
        ({"lr": 2.0}, "lr: expected a number from 0.0001 to 1, got 2"),
        ({"lr": "fast"}, "lr: expected a number from 0.0001 to 1, got fast"),
        ({"schedule": "linear"}, "schedule: expected one of constant, got linear"),
        ({"hidden": 3}, "hidden: expected one of the parameters lr, schedule, optimizer"),
    ],
)
def test_values_are_checked_against_the_space(ledger, params, message):
    study = submit(ledger)
    with pytest.raises(UsageError, match=re.escape(message)):
        enqueue(ledger, "small", params)
    assert ledger.study("small").reserved == study.reserved


def test_a_conditional_parameter_needs_its_choice(ledger):
    space = {"schedule": ["constant", {"name": "cosine", "final": {"low": 0.0, "high": 0.1}}]}
    study = submit(ledger, space=space)
    with pytest.raises(UsageError, match=r"cosine\.final: expected schedule=cosine with it"):
        enqueue(ledger, "small", {"cosine.final": 0})
    enqueue(ledger, "small", {"schedule": "cosine", "cosine.final": 0})
    ((_, made),) = _draws(ledger, study, 1)
    assert made.params["cosine.final"] == 0.0
    assert isinstance(made.params["cosine.final"], float)


@pytest.mark.slow
def test_arguments_conditions_and_constraints(ledger):
    space = {
        "optimizer": ["sgd", "adamw"],
        "arguments": {
            "hidden": [16, 64, 256],
            "depth": {"low": 1, "high": 8},
            "gate": {"values": [0.1, 0.2], "when": {"optimizer": "adamw"}},
            "bias": [True, False],
            "tied": {"value": 1, "when": {"bias": True}},
        },
        "constraints": ["hidden * depth <= 512"],
    }
    study = submit(ledger, space=space)
    for wrong, message in (
        ({"hidden": 32}, "hidden: expected one of 16, 64, 256"),
        ({"gate": 0.1}, "gate: expected optimizer=adamw with it"),
        ({"bias": "True"}, "bias: expected one of true, false, got True"),
        ({"tied": 1}, "tied: expected bias=true with it"),
        ({"hidden": 256, "depth": 5}, "satisfy the constraints of the space: hidden * depth"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            enqueue(ledger, "small", wrong)
    adamw = {"optimizer": "adamw", "gate": 0.2, "bias": True}
    assert ranking.others_in_short(adamw) == ["gate 0.2", "bias true"]
    for fixed in ({"hidden": 256}, {"depth": 8, "lr": 1}, adamw):
        enqueue(ledger, "small", fixed)
        ((one, made),) = _draws(ledger, study, 1)
        assert {key: made.params[key] for key in fixed} == fixed
        assert made.params["hidden"] * made.params["depth"] <= 512
        assert ledger.trial(study.id, one.trial.number).attrs["fixed_params"] == fixed


def test_arguments_of_the_command_are_read_as_toml():
    assert parsed(["lr=1e-3", "schedule=cosine", "sgd.nesterov=true"]) == {
        "lr": 1e-3,
        "schedule": "cosine",
        "sgd.nesterov": True,
    }
    for wrong in (["lr"], ["=1"], ["lr=1", "lr=2"]):
        with pytest.raises(UsageError, match="expected"):
            parsed(wrong)


def test_a_spent_budget_refuses_unless_it_is_raised(ledger):
    study = submit(ledger, budget={"trials": 1})
    claim(ledger, study)
    with pytest.raises(UsageError, match=r"no trials left .* of 1, expected 1; add --raise-budget"):
        enqueue(ledger, "small", {"lr": 0.1})
    told = enqueue(ledger, "small", {"lr": 0.1}, raise_budget=True)
    assert told["budget"] == {"trials": 2, "reserved": 2}
    assert ledger.study("small").spec.budget.trials == 2


@pytest.mark.parametrize("state", ["paused", "stopped"])
def test_a_paused_study_takes_trials_and_a_stopped_one_refuses(ledger, places, state):
    study = submit(ledger)
    if state == "paused":
        manage.pause(ledger, "small")
        assert enqueue(ledger, "small", {"lr": 0.1})["state"] == "paused"
        assert ledger.claim(study.id, "worker", {}) is None
        manage.resume(ledger, "small")
        assert claim(ledger, study).trial.number == 0
    else:
        manage.stop(ledger, places, "small", "enough")
        with pytest.raises(UsageError, match=r"is stopped, .* enough\. `tuner resume`"):
            enqueue(ledger, "small", {"lr": 0.1})


def test_a_call_whose_commit_was_lost_adds_one_trial(ledger, monkeypatch):
    study, lost = submit(ledger), []
    original = adding.locked

    def losing(*arguments):
        block = original(*arguments)
        if not lost:
            lost.append(True)
            return _LosesConnection(block)
        return block

    monkeypatch.setattr(adding, "locked", losing)
    assert adding.enqueue(ledger, study, {"lr": 0.1}) == 0
    assert ledger.study("small").reserved == 1


class _LosesConnection:
    """A transaction whose commit succeeds, and whose answer is lost."""

    def __init__(self, block):
        self.block = block

    def __enter__(self):
        return self.block.__enter__()

    def __exit__(self, *error):
        self.block.__exit__(*error)
        raise ConnectionLostError("the connection was lost")


@pytest.mark.longer
def test_racing_claims_and_additions_keep_the_budget(either):
    study = submit(either, budget={"trials": 12})

    def add(_):
        try:
            return enqueue(either, "small", {"lr": 0.1})["trial"]
        except UsageError:
            return None

    with ThreadPoolExecutor(8) as pool:
        claims = [pool.submit(either.claim, study.id, f"w{i}", {}) for i in range(12)]
        numbers = list(pool.map(add, range(12)))
        claimed = [found.result() for found in claims]
    study = either.study("small")
    assert study.reserved == study.limit == 12
    added = [one for one in numbers if one is not None]
    assert len(set(added)) == len(added)
    held = [one.trial.number for one in claimed if one is not None]
    assert len(set(held)) == len(held)
    assert set(added) | set(held) == set(range(12))


# --- retry


@pytest.mark.longer
def test_a_failed_trial_is_trained_again_once_as_a_new_one(ledger):
    study = submit(ledger)
    assert fail(ledger, study) == 0
    failed = ledger.trials(study.id)[0]
    told = retry(ledger, "small", failed=True)
    assert told["retried"] == [{"failed": 0, "trial": 1}]
    again = retry(ledger, "small", failed=True)
    assert (again["retried"], again["retried_before"]) == ([], {"0": 1})
    ((one, made),) = _draws(ledger, study, 1)
    assert one.trial.number == 1
    assert made.params == failed.params
    kept = ledger.trials(study.id)[0]
    assert (kept.state, kept.reason) == (FAILED, "It broke.")


def test_a_retry_that_failed_is_retried_in_turn(ledger):
    study = submit(ledger)
    fail(ledger, study)
    retry(ledger, "small", [0])
    fail(ledger, study)
    assert retry(ledger, "small", failed=True)["retried"] == [{"failed": 1, "trial": 2}]
    assert ledger.trials(study.id)[2].attrs["retry_history"] == [0, 1]


def test_only_failed_trials_are_retried(ledger):
    study = submit(ledger)
    one = claim(ledger, study)
    draw(ledger, one)
    ledger.finish(one.lease, completed(1.0), chunk=rows(0, 10))
    with pytest.raises(UsageError, match="trial 0 of 'small' is completed, expected a failed one"):
        retry(ledger, "small", [0])
    with pytest.raises(NotFoundError, match="no trial 7"):
        retry(ledger, "small", [7])
    with pytest.raises(UsageError, match="--failed or the numbers"):
        retry(ledger, "small")
    assert retry(ledger, "small", failed=True)["retried"] == []


# --- what people see


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own statement
def test_added_trials_are_trained_and_published(tracked, places, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("TUNER_DATABASE_URL", "MLFLOW_TRACKING_URI", "TUNER_CHECKPOINTS"):
        monkeypatch.delenv(name, raising=False)
    space = {"lr": [0.01, 0.1, 0.3]}
    study = submitted(tracked, space=space, search={"sampler": "random"}, budget={"trials": 6})
    fail(tracked, study)
    done = CliRunner().invoke(
        cli, ["enqueue", "line", "lr=0.1", "--json"], standalone_mode=False, catch_exceptions=False
    )
    assert json.loads(done.stdout)["trial"] == 1
    assert tuner.load("line").retry(failed=True)["retried"] == [{"failed": 0, "trial": 2}]
    train(tracked, places, tracked.study("line"))
    manage.resume(tracked, "line")
    enqueue(tracked, "line", {"lr": 0.3}, raise_budget=True)
    manage.stop(tracked, places, "line")  # cancels it before any attempt
    recorder = Recorder(tracked.engine, places)
    assert recorder.publish()
    recorder.close()
    trials = tracked.trials(study.id)
    assert [one.state for one in trials[1:6]] == ["completed"] * 5
    assert trials[2].params == trials[0].params
    found = optuna.load_study(study_name="line", storage=places.optuna).trials
    assert found[1].user_attrs["tuner.added"] == "enqueued"
    assert found[1].params["lr"] == 0.1
    assert found[2].system_attrs["failed_trial"] == 0  # as Optuna's own retries have
    client = tracking_client(places)
    experiment = client.get_experiment_by_name("line")
    tags = {
        run.data.tags["tuner.trial"]: run.data.tags
        for run in client.search_runs([experiment.experiment_id])
    }
    assert tags["1"]["tuner.added"] == "enqueued"
    assert tags["2"]["tuner.retry_of"] == "0"
    assert tags["6"]["tuner.outcome"] == "cancelled"
    assert [one for one in examine(tracked.engine, places) if one.study == "line"] == []
