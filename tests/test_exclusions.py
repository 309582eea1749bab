"""A study whose code raises again and again on a worker is left alone there for a while."""

from __future__ import annotations

import threading

import pytest
from click.testing import CliRunner
from training_here import PREFIXES, train_all

from tuner.cli.app import cli
from tuner.config import StudySpec
from tuner.core import failpoints
from tuner.core.environment import identity
from tuner.core.failpoints import FailpointError
from tuner.core.outcome import COMPLETED, FAILED
from tuner.ledger import OPEN, StudyRecord
from tuner.operations import status, submit
from tuner.worker import work
from tuner.worker.exclusions import FIRST_SECONDS, LONGEST_SECONDS, Exclusions

BROKEN = threading.Event()
"""Set while this machine lacks something that studies need."""
ENDED = threading.Event()
"""Set by the last trial of the steady study: what ends a worker that would go on for ever."""


def flaky(trial):
    """Need what may be missing."""
    from tests import test_exclusions  # the module as the worker imports it

    if test_exclusions.BROKEN.is_set():
        raise FileNotFoundError("the data is not here")
    trial.report(1, val_loss=1.0)


def steady(trial, last=-1):
    """Need nothing."""
    from tests import test_exclusions

    trial.report(1, val_loss=2.0)
    if trial.number == last:
        test_exclusions.ENDED.set()


@pytest.fixture
def broken():
    from tests import test_exclusions

    yield test_exclusions.BROKEN
    test_exclusions.BROKEN.clear()
    test_exclusions.ENDED.clear()


def put(ledger, name, trials, **tables) -> StudyRecord:
    spec = StudySpec.model_validate(
        {
            "study": {"name": name},
            "workload": {"train": f"tests.test_exclusions:{name}", **tables},
            "training": {"steps": 1},
            "space": {"lr": {"low": 0.1, "high": 0.2}, "schedule": "constant", "optimizer": "sgd"},
            "search": {"sampler": "random", "pruner": "none"},
            "budget": {"trials": trials},
        }
    )
    return submit.submit(ledger, spec, submit.prepare(spec, PREFIXES).description)[0]


def serve(ledger, places, **settings):
    """Work as a service, until the last trial of the steady study has ended."""
    from tests import test_exclusions

    work(
        ledger,
        places,
        names=(),
        prefixes=PREFIXES,
        stop=test_exclusions.ENDED,
        until_idle=False,
        **settings,
    )


@pytest.fixture
def trained_elsewhere(ledger, places, broken):
    """A study with a completed trial, which no circuit breaker stops, on a machine that lacks data.

    Beside it is one that lacks nothing.
    """
    put(ledger, "flaky", 1)
    train_all(ledger, places)
    study = put(ledger, "flaky", 8)
    put(ledger, "steady", 12, arguments={"last": 11})
    broken.set()
    return study


@pytest.mark.longer
def test_a_service_leaves_the_study_alone_and_trains_the_others(
    ledger, places, trained_elsewhere, monkeypatch, tmp_path
):
    serve(ledger, places)
    assert ledger.counts(ledger.study("steady").id)[COMPLETED] == 12
    found = status.status(ledger, ledger.study("flaky"))
    assert (found["state"], found["trials"][FAILED], found["budget"]["reserved"]) == (OPEN, 3, 4)
    (left,) = found["left_alone"]
    assert (left["worker"], left["failures"]) == (identity(), 3)
    assert 0 < left["seconds"] <= FIRST_SECONDS
    assert "FileNotFoundError: the data is not here" in left["reason"]
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(cli, ["status", "flaky"]).output.replace("\n", " ")
    assert f"{identity()} leaves this study alone for" in shown
    assert "3 attempts in a row failed there." in shown
    others = status.status(ledger, ledger.study("steady"))
    assert others["left_alone"] == []


@pytest.mark.longer
def test_a_worker_that_ends_when_idle_tries_it_once_nothing_else_is_left(
    ledger, places, trained_elsewhere
):
    train_all(ledger, places)
    failed = [one for one in ledger.trials(trained_elsewhere.id) if one.state == FAILED]
    last = max(one.ended_at for one in ledger.trials(ledger.study("steady").id))
    assert len(failed) == 7
    assert [one.created_at > last for one in failed] == [False] * 3 + [True] * 4


@pytest.mark.longer
def test_a_trial_that_ends_well_makes_it_a_study_like_any_other(
    ledger, places, trained_elsewhere, broken
):
    serve(ledger, places)
    broken.clear()
    train_all(ledger, places)
    assert ledger.counts(trained_elsewhere.id)[COMPLETED] == 5
    # another worker has trained it, as this one begins anew
    assert len(status.status(ledger, ledger.study("flaky"))["left_alone"]) == 1
    excluded = Exclusions(ledger)
    excluded.add(trained_elsewhere, 3, "It broke.")
    excluded.end(trained_elsewhere)
    assert status.status(ledger, ledger.study("flaky"))["left_alone"] == []


def test_each_time_is_twice_as_long_up_to_an_hour(ledger, trained_elsewhere):
    now = [0.0]
    excluded = Exclusions(ledger, clock=lambda: now[0])
    for turn in range(8):
        seconds = min(FIRST_SECONDS * 2**turn, LONGEST_SECONDS)
        excluded.add(trained_elsewhere, 3 + turn, "It broke.")
        now[0] += seconds - 1
        assert excluded.has(trained_elsewhere)
        now[0] += 1
        assert not excluded.has(trained_elsewhere)


@pytest.mark.longer
def test_an_unexpected_error_is_no_end_of_a_service(ledger, places, trained_elsewhere, arm):
    arm("ask.reserved=raise")  # not an error of the workload
    serve(ledger, places)
    assert ledger.counts(ledger.study("steady").id)[COMPLETED] == 12
    left = status.status(ledger, ledger.study("flaky"))["left_alone"]
    assert [(one["failures"], one["reason"]) for one in left] == [
        (0, "An unexpected FailpointError; its log has the traceback.")
    ]
    assert ledger.live_attempts() == {}


def test_an_unexpected_error_ends_a_worker_that_was_told_what_to_train(ledger, places, broken):
    put(ledger, "steady", 2)
    with failpoints.armed("ask.reserved=raise"), pytest.raises(FailpointError):
        train_all(ledger, places, ["steady"])


@pytest.mark.longer
def test_a_worker_leaves_studies_to_others_by_their_names(ledger, places, trained_elsewhere):
    serve(ledger, places, without=("fl*",))
    assert ledger.study("flaky").reserved == 1
