"""Pause, resume, stop, the circuit breaker and delete: what each does, and does again."""

from __future__ import annotations

import logging

import optuna
import pytest
from helpers import claim, completed, contents, draw, rows, submit
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import ViewType
from processes import end, prepare, processes_in, start, trained_steps, tuner, until
from sqlalchemy import update
from training_here import submitted, train

from tuner.core import failpoints, failures
from tuner.core.environment import describe
from tuner.core.errors import LeaseLost, NotFoundError, UsageError
from tuner.core.outcome import CANCELLED, FAILED, Outcome
from tuner.ledger import OPEN, PAUSED, STOPPED
from tuner.ledger import managing as in_ledger
from tuner.ledger.database import tracking_client
from tuner.ledger.tables import studies
from tuner.operations import manage, status
from tuner.operations import run as running
from tuner.operations.doctor import examine
from tuner.operations.workers import closed_in_words
from tuner.tracking.recorder import Recorder


def fail(ledger, study, reason):
    one = claim(ledger, study)
    draw(ledger, one)
    ledger.finish(one.lease, Outcome(kind=FAILED, reason=reason))
    return one.trial.number


def raised(message="bad", error="ValueError", place="model.py:7"):
    return f"The training code raised {error}: {message} ({place})."


# --- pause and resume


def test_a_paused_study_gives_no_trial_away_and_its_running_ones_go_on(ledger):
    study = submit(ledger)
    one = claim(ledger, study)
    draw(ledger, one)
    assert manage.pause(ledger, "small")["state"] == PAUSED
    assert ledger.claim(study.id, "other", {}) is None
    ledger.finish(one.lease, completed(1.0), chunk=rows(0, 10))
    assert ledger.counts(study.id)["completed"] == 1
    assert manage.resume(ledger, "small")["state"] == OPEN
    assert claim(ledger, study).trial.number == 1


@pytest.mark.parametrize("action", ["pause", "stop"])
def test_doing_it_twice_changes_nothing_more(ledger, places, action):
    submit(ledger)
    arguments = (ledger, "small") if action == "pause" else (ledger, places, "small")
    first = getattr(manage, action)(*arguments)
    assert getattr(manage, action)(*arguments) == first
    assert manage.resume(ledger, "small")["reason"] is None
    revision = ledger.study("small").revision
    manage.resume(ledger, "small")
    assert ledger.study("small").revision == revision


def test_a_stopped_study_is_not_merely_paused_afterwards(ledger, places):
    submit(ledger)
    manage.stop(ledger, places, "small")
    assert manage.pause(ledger, "small")["state"] == STOPPED


@pytest.mark.parametrize("action", ["pause", "stop"])
def test_running_a_closed_study_says_what_to_do(ledger, places, action):
    submit(ledger)
    manage.pause(ledger, "small")
    if action == "stop":
        manage.stop(ledger, places, "small", "out of money")
    state = "paused" if action == "pause" else "stopped: Stopped by hand: out of money."
    todo = running.Work(names=("small",), prefixes=("tests.",), until_idle=True)
    with pytest.raises(UsageError, match=f"is {state}.*`tuner resume small`") as error:
        running.train(ledger, places, todo, recorder=False)
    assert error.value.exit_code == 2


# --- stop


def test_stop_cancels_what_runs_and_what_waits(ledger, places):
    study = submit(ledger)
    done, waiting, live = (claim(ledger, study) for _ in range(3))
    for one in (done, waiting, live):
        draw(ledger, one)
    ledger.finish(done.lease, completed(1.0), chunk=rows(0, 10))
    ledger.append(live.lease, rows(0, 10))
    ledger.release(waiting.lease, "interrupted", "told to")
    found = manage.stop(ledger, places, "small", "enough")
    assert found["state"] == STOPPED
    assert found["reason"] == "Stopped by hand: enough."
    assert [one.state for one in ledger.trials(study.id)] == ["completed", CANCELLED, CANCELLED]
    assert "enough" in (ledger.trials(study.id)[2].reason or "")
    assert ledger.curve(live.trial.id).next_step == 10  # what was committed stays
    assert not any(attempt.live for attempt in ledger.attempts(study.id))
    with pytest.raises(LeaseLost):
        ledger.append(live.lease, rows(10, 20))


@pytest.mark.longer
def test_a_worker_notices_a_stop_at_its_next_commit(ledger, places, monkeypatch, caplog):
    study = submitted(ledger)
    monkeypatch.setattr("tuner.worker.study.COMMIT_SECONDS", 0.0)
    reached = []

    def stop_at(place):
        if place == "chunk.before_commit" and not reached:
            reached.append(place)
            manage.stop(ledger, places, "line")

    monkeypatch.setattr("tuner.worker.commits.reach", stop_at)
    with caplog.at_level(logging.WARNING):
        train(ledger, places, study)
    assert reached
    assert [trial.state for trial in ledger.trials(study.id)] == [CANCELLED]
    assert "is over: Cancelled" in caplog.text
    assert not [path for path in places.checkpoints.folder.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.thorough
def test_a_run_whose_study_is_deleted_says_so(tmp_path):
    prepare(tmp_path, factory='"tests.workloads:paced"', trials="2")
    (tmp_path / "slow").touch()
    run = start(tmp_path, "run", "study.toml")
    until(lambda: trained_steps(tmp_path), "the first steps")
    assert tuner(tmp_path, "delete", "small", "--yes", "--force").code == 0
    (tmp_path / "slow").unlink()
    done = end(run)
    assert done.code in {2, 3}  # while it is being deleted there is no completed trial
    assert "delete" in done.err.splitlines()[-1]
    for hint in ("tuner resume", "makes one", "Traceback"):
        assert hint not in done.err, done.err
    assert processes_in(tmp_path) == []


def test_a_study_that_is_being_deleted_is_not_to_be_resumed(ledger):
    in_ledger.stop(ledger, submit(ledger), in_ledger.BEING_DELETED)
    said = closed_in_words(ledger.study("small"))
    assert said == "study 'small' is stopped: It is being deleted; `tuner delete` finishes that"


# --- the circuit breaker


@given(
    message=st.text(max_size=50),
    error=st.sampled_from([ValueError, RuntimeError, KeyError, OSError]),
)
def test_the_cause_is_read_from_the_sentence(message, error):
    with pytest.raises(error) as caught:
        raise error(message)
    found = failures.cause(failures.sentence(caught.value))
    assert found is not None
    assert found.error == error.__name__
    assert found.place.startswith("test_governing.py:")


@pytest.mark.parametrize("reason", [None, "", "Ran all 50 steps.", "Its worker was lost 4 times."])
def test_other_reasons_have_no_cause(reason):
    assert failures.cause(reason) is None


@pytest.mark.longer
@pytest.mark.parametrize(
    ("reasons", "stops"),
    [
        ([raised("1"), raised("2")], False),
        ([raised("1"), raised("2"), raised("3 (x.py:1)")], True),
        ([raised(), raised(), raised(error="KeyError")], False),
        ([raised(), raised(place="model.py:8"), raised()], False),
        ([raised(), raised(), "Its worker was lost 4 times."], False),
        (["Its worker was lost 4 times."] * 3, False),
    ],
)
def test_first_trials_that_fail_alike_stop_a_study(ledger, reasons, stops):
    study = submit(ledger)
    for reason in reasons:
        fail(ledger, study, reason)
    stopped = in_ledger.break_circuit(ledger, study)
    assert (stopped is not None) == stops
    assert ledger.study("small").state == (STOPPED if stops else OPEN)
    if stops:
        assert stopped is not None
        assert "the first 3 trials to end failed for one reason" in (stopped.reason or "")
        assert "ValueError at model.py:7" in (stopped.reason or "")
        assert in_ledger.break_circuit(ledger, study) is None


def test_one_trial_that_ended_otherwise_is_enough_to_go_on(ledger):
    study = submit(ledger)
    one = claim(ledger, study)
    draw(ledger, one)
    ledger.finish(one.lease, completed(1.0), chunk=rows(0, 10))
    for _ in range(5):
        fail(ledger, study, raised())
    assert in_ledger.break_circuit(ledger, study) is None


@pytest.mark.parametrize(("limit", "stops"), [(0, False), (1, True), (2, True), (3, False)])
def test_the_budget_says_how_many(ledger, limit, stops):
    study = submit(ledger, budget={"stop_after_failures": limit})
    for _ in range(2):
        fail(ledger, study, raised())
    assert (in_ledger.break_circuit(ledger, study) is not None) == stops


@pytest.mark.longer
def test_after_resume_the_count_begins_anew(ledger):
    study = submit(ledger)
    for _ in range(3):
        fail(ledger, study, raised())
    assert in_ledger.break_circuit(ledger, study)
    manage.resume(ledger, "small")
    assert in_ledger.break_circuit(ledger, study) is None
    for _ in range(3):
        assert fail(ledger, study, raised()) >= 3
    assert in_ledger.break_circuit(ledger, study)


@pytest.mark.slow
def test_training_ends_by_itself_and_says_why(ledger, places, caplog):
    failing = {"factory": "tests.training_here:fitting", "arguments": {"failing": True}}
    study = submitted(ledger, workload=failing)
    with caplog.at_level(logging.WARNING):
        study = train(ledger, places, study)
    assert study.state == STOPPED
    assert ledger.counts(study.id)["failed"] == 3
    assert "RuntimeError at training_here.py" in (study.reason or "")
    assert study.reason in caplog.text
    assert status.status(ledger, study)["reason"] == study.reason
    assert in_ledger.break_circuit(ledger, study) is None


@pytest.mark.longer
def test_failures_elsewhere_count_with_the_one_here(ledger, places):
    failing = {"factory": "tests.training_here:fitting", "arguments": {"failing": True}}
    study = submitted(ledger, workload=failing)
    reasons = [raised("elsewhere"), raised("there"), raised("here")]
    for reason in reasons[:2]:
        fail(ledger, study, reason)
    assert train(ledger, places, study).state == OPEN, "the causes differ"
    other = submitted(ledger, study={"name": "other"}, workload=failing)
    train(ledger, places, other)
    alike = next(t.reason for t in ledger.trials(other.id) if t.state == "failed")
    last = submitted(ledger, study={"name": "last"}, workload=failing)
    for _ in range(2):
        fail(ledger, last, alike)
    assert train(ledger, places, last).state == STOPPED
    assert ledger.counts(last.id)["failed"] == 3


# --- delete


def test_nothing_is_claimed_of_a_study_that_was_deleted(ledger):
    study = submit(ledger)
    in_ledger.delete_study(ledger, study)
    assert ledger.claim(study.id, "worker", {}) is None


def test_a_study_that_is_trained_is_not_deleted(ledger, places):
    study = submit(ledger)
    claim(ledger, study, "elsewhere/1/:1:1")
    before = contents(ledger)
    with pytest.raises(UsageError, match=r"trained by elsewhere.*--force"):
        manage.delete(ledger, places, "small")
    assert contents(ledger) == before


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own statement
def test_delete_leaves_nothing_and_the_name_is_free(ledger, places):
    kept = submitted(ledger, study={"name": "kept"})
    gone = submitted(ledger, study={"name": "it's gone"})
    for study in (kept, gone):
        train(ledger, places, study)
    recorder = Recorder(ledger.engine, places)
    while recorder.publish():
        pass
    untouched = [row for row in contents(ledger)["tuner_trials"] if row[1] == kept.id]
    for place in ("delete.stopped", "delete.erased"):  # interrupted anywhere, it can be run again
        with failpoints.armed(f"{place}=raise"), pytest.raises(failpoints.FailpointError):
            manage.delete(ledger, places, gone.name)
        assert ledger.study(gone.name).state == STOPPED
        assert Recorder(ledger.engine, places).publish([gone.name]) in (True, False)
    manage.delete(ledger, places, gone.name)
    with pytest.raises(NotFoundError):
        ledger.study(gone.name)
    assert list(contents(ledger)["tuner_trials"]) == untouched
    assert optuna.get_all_study_names(places.ledger) == ["kept"]
    names = {e.name for e in tracking_client(places).search_experiments(view_type=ViewType.ALL)}
    assert "kept" in names
    assert "it's gone" not in names
    assert not examine(ledger.engine, places)

    again = train(ledger, places, submitted(ledger, study={"name": "it's gone"}))
    while recorder.publish():
        pass
    assert again.id > gone.id
    assert not examine(ledger.engine, places)


@pytest.mark.slow
def test_a_stopped_study_is_published_as_such(ledger, places):
    study = submit(ledger, study={"name": "stopped"})
    workload = {"data_name": "nothing", "training_rows": 1, **study.workload}
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(studies).values(workload=workload))
    settled = {"trainer": "reference", "threads": 1}
    assert ledger.claim(study.id, "worker:1:1", describe("cpu") | {"settled": settled})
    manage.stop(ledger, places, "stopped", "enough")
    recorder = Recorder(ledger.engine, places)
    while recorder.publish():
        pass
    client = tracking_client(places)
    experiment = client.get_experiment_by_name("stopped")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["tuner.trial"] == "study"]
    assert parent.info.status == "KILLED"
    assert parent.data.tags["mlflow.note.content"].startswith("Stopped by hand: enough.")
    assert not examine(ledger.engine, places)
