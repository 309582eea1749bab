"""Workers: which study is next, what they leave to others, how they end, what they log."""

from __future__ import annotations

import json
import signal
import threading
import weakref
from collections import Counter
from pathlib import Path

import pytest
from helpers import checkpoint, claim, completed, draw, rows, submit
from processes import STUDY, end, prepare, start, trained_steps, tuner, until
from sqlalchemy import select
from training_here import PREFIXES, submitted

from tuner.config.cluster import WorkerTable
from tuner.core.environment import identity
from tuner.core.errors import WorkloadError
from tuner.executors import WorkerState
from tuner.executors.local import LocalExecutor
from tuner.ledger import Ledger, StudyRecord, managing, projects
from tuner.ledger.database import Addresses
from tuner.ledger.launches import Launch
from tuner.ledger.projects import Project
from tuner.ledger.tables import attempts
from tuner.operations.context import acting
from tuner.worker import work
from tuner.worker.loop import StudySelector, idle_seconds
from tuner.worker.study import pause_after

# --- which study


class Taking:
    """Takes a trial of a study and never ends it; what `StudyWorker` does, as far as turns go."""

    def __init__(self, ledger: Ledger, study: StudyRecord, taken: list[str]) -> None:
        self._ledger, self._study, self._taken = ledger, study, taken
        self.failures = 0

    def train(self, study, may_continue) -> bool:
        if self._ledger.claim(self._study.id, "a:1:1", {}) is None:
            return False
        self._taken.append(self._study.name)
        return True

    def has_running_trials(self) -> bool:
        return False


@pytest.mark.longer
@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({"a": 1.0, "b": 1.0}, {"a": 6, "b": 6}),
        ({"a": 2.0, "b": 1.0}, {"a": 8, "b": 4}),
        ({"a": 0.5, "b": 1.0, "c": 1.5}, {"a": 2, "b": 4, "c": 6}),
    ],
)
def test_studies_have_workers_in_proportion_to_their_weights(ledger, weights, shares):
    for name, weight in weights.items():
        submit(ledger, study={"name": name}, budget={"trials": 100, "weight": weight})
    taken: list[str] = []
    for _ in range(12):  # as many workers, one after the other, each busy for good
        worker = StudySelector(ledger, (), lambda study: Taking(ledger, study, taken))
        assert worker.train_one_turn()
    assert Counter(taken) == shares


@pytest.mark.longer
@pytest.mark.parametrize(
    ("weight", "shares"),
    [(1.0, {"a": 6, "vision/b": 4, "vision/c": 2}), (3.0, {"a": 3, "vision/b": 6, "vision/c": 3})],
)
def test_projects_have_workers_by_their_weights_and_share_them_among_their_studies(
    ledger, weight, shares
):
    projects.put(ledger, Project(name="vision", weight=weight), acting())
    for name, own in (("a", 1.0), ("vision/b", 2.0), ("vision/c", 1.0)):
        submit(ledger, study={"name": name}, budget={"trials": 100, "weight": own})
    taken: list[str] = []
    for _ in range(12):
        worker = StudySelector(ledger, (), lambda study: Taking(ledger, study, taken))
        assert worker.train_one_turn()
    assert Counter(taken) == shares


def test_a_study_that_has_no_more_trials_leaves_its_share_to_others(ledger):
    submit(ledger, study={"name": "a"}, budget={"trials": 1, "weight": 9.0})
    submit(ledger, study={"name": "b"}, budget={"trials": 5})
    taken: list[str] = []
    worker = StudySelector(ledger, (), lambda study: Taking(ledger, study, taken))
    while worker.train_one_turn():
        pass
    assert taken == ["a", *"bbbbb"]


def test_a_study_that_is_over_is_forgotten_with_all_that_was_kept_for_it(ledger):
    study = submit(ledger)
    kept: list[weakref.ref[Taking]] = []

    def join(study: StudyRecord) -> Taking:
        made = Taking(ledger, study, [])
        kept.append(weakref.ref(made))
        return made

    worker = StudySelector(ledger, (), join)
    assert worker.train_one_turn()
    managing.stop(ledger, study, "enough")
    while worker.train_one_turn():
        pass
    assert not worker.train_one_turn()  # what there is to train is read anew
    assert [one() for one in kept] == [None]


def test_only_studies_that_have_something_to_train_are_joined(ledger):
    """Each brings its data, and a database has a hundred that are finished."""
    for name in ("finished", "held by another", "open"):
        trials = 2 if name == "open" else 1
        claimed = claim(ledger, submit(ledger, study={"name": name}, budget={"trials": trials}))
        if name != "held by another":
            ledger.finish(claimed.lease, completed(1.0))
    joined: list[str] = []

    def join(study: StudyRecord) -> Taking:
        joined.append(study.name)
        return Taking(ledger, study, [])

    worker = StudySelector(ledger, (), join)
    while worker.train_one_turn():
        pass
    assert sorted(joined) == ["held by another", "open"]
    submit(ledger, study={"name": "finished"}, budget={"trials": 2})
    assert worker.train_one_turn()
    assert joined[2:] == ["finished"]


def test_paused_studies_have_no_turn(ledger):
    from tuner.ledger import managing

    managing.pause(ledger, submit(ledger, study={"name": "a"}))
    worker = StudySelector(ledger, (), lambda study: Taking(ledger, study, []))
    assert not worker.train_one_turn()


def test_a_worker_looks_the_less_often_the_longer_it_has_found_nothing():
    assert [idle_seconds(idle) for idle in (0.0, 4.0, 20.0, 50.0, 3600.0)] == [0.5, 0.5, 2, 5, 5]


# --- what they leave to others


def train(ledger: Ledger, places: Addresses, *names: str, **more) -> None:
    work(
        ledger,
        places,
        names=names,
        prefixes=PREFIXES,
        stop=threading.Event(),
        until_idle=True,
        **more,
    )


def test_rows_wait_the_longer_the_slower_commits_are():
    assert [pause_after(seconds) for seconds in (0.0, 0.01, 0.03, 30.0)] == [1.0, 1.0, 3.0, 5.0]


@pytest.mark.longer
def test_what_cannot_be_trained_here_is_left_to_others(ledger, places, caplog):
    mine = submitted(ledger)
    other = submit(ledger, study={"name": "elsewhere"}, workload={"factory": "not.here:at_all"})
    train(ledger, places)
    assert ledger.counts(mine.id)["completed"] == 3
    assert ledger.counts(other.id)["running"] == 0
    assert "study elsewhere is left to other workers" in caplog.text


def test_a_study_for_another_device_is_left_to_others(ledger, places, caplog):
    study = submitted(ledger)
    train(ledger, places, device="cuda")
    assert ledger.study(study.name).reserved == 0
    assert "for the device 'cpu', which is not asked for" in caplog.text
    with pytest.raises(WorkloadError, match="not asked for"):
        train(ledger, places, study.name, device="cuda")


def test_the_device_of_a_study_must_be_there(ledger, places):
    study = submitted(ledger, training={"device": "cuda:7"})
    with pytest.raises(WorkloadError, match="'cuda:7', which this machine does not have"):
        train(ledger, places, study.name)


@pytest.mark.parametrize(("allowed", "attempts"), [(0, 1), (2, 3)])
def test_a_trial_whose_code_raises_is_tried_again_as_often_as_the_budget_says(
    ledger, places, allowed, attempts
):
    study = submitted(
        ledger,
        workload={"arguments": {"failing": True}},
        budget={"trials": 1, "retries": {"failed": allowed}, "stop_after_failures": 0},
    )
    train(ledger, places)
    assert ledger.counts(study.id)["failed"] == 1
    assert len(ledger.attempts(study.id)) == attempts


def test_an_attempt_whose_checkpoint_is_unusable_begins_at_step_0(ledger, places):
    study = submitted(ledger, budget={"trials": 1})
    held = claim(ledger, study)
    draw(ledger, held)
    ledger.append(held.lease, rows(0, 8, evaluate_every=4))
    ledger.save_checkpoint(held.lease, checkpoint(8))
    ledger.release(held.lease, "interrupted", "for this test")
    train(ledger, places)
    with ledger.engine.begin() as tx:
        assert tx.scalars(select(attempts.c.first_step)).all() == [0, 0]


# --- how they end, and what they log


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_sigterm_saves_the_trial_and_ends_well(tmp_path):
    factory = 'factory = "tests.workloads:noisy"'
    slow = STUDY.replace(factory, f"{factory}\narguments = {{ step_seconds = 0.05 }}")
    folder = prepare(tmp_path, slow, lr="0.01")
    assert tuner(folder, "submit", "study.toml").code == 0
    worker = start(folder, "worker")
    until(lambda: trained_steps(folder) > 0, "a step")
    worker.send_signal(signal.SIGTERM)
    done = end(worker)
    assert done.code == 0, done.err
    events = lines(done.err)
    texts = [event["event"] for event in events if "the recorder" not in event["event"]]
    assert texts[:3] == ["worker started", "study joined", "trial taken up"]
    assert texts[-2:] == ["trial left to the next worker", "worker ended"]
    taken = events[2]
    assert (taken["study"], taken["trial"], taken["attempt"]) == ("small", 0, 1)
    assert taken["worker"] == events[0]["worker"]
    assert {"timestamp", "level"} <= set(taken)


@pytest.mark.slow
def test_a_worker_logs_one_line_of_json_an_event(tmp_path):
    folder = prepare(tmp_path, trials="3")
    assert tuner(folder, "submit", "study.toml").code == 0
    done = tuner(folder, "worker", "--until-idle", "--json")
    assert done.code == 0, done.err
    ended = [event for event in lines(done.err) if event["event"] == "trial ended"]
    assert [event["trial"] for event in ended] == [0, 1, 2]
    assert all(event["outcome"] and event["reason"] for event in ended)
    text = tuner(folder, "worker", "--until-idle", "--log", "text").err
    assert "worker started" in text
    assert not text.startswith("{")


@pytest.mark.slow
def test_passwords_are_in_no_log(tmp_path):
    url = "postgresql://me:hidden@127.0.0.1:1/team"
    done = tuner(tmp_path, "worker", env={"TUNER_DATABASE_URL": url})
    assert done.code == 4
    assert "Connection refused" in done.err
    assert "hidden" not in done.err + done.out


@pytest.mark.thorough
@pytest.mark.slow
def test_the_local_executor_starts_polls_and_cancels(tmp_path, monkeypatch):
    folder = prepare(tmp_path)
    monkeypatch.chdir(folder)
    executor = LocalExecutor(folder / "logs")

    def launch(key: str, *arguments: str) -> Launch:
        handles = executor.launch(key, 1, WorkerTable(), arguments)
        return Launch(
            key=key, study_id=1, executor="local", workers=1, handles=handles, os_user="ann",
            host="here", created_at=1.0, ended_at=None,
        )  # fmt: skip

    def state(launch: Launch) -> WorkerState:
        (found,) = executor.poll([launch])[launch.key]
        return found

    refused = launch("0" * 12, "--study", "nobody knows")
    until(lambda: state(refused).is_over, "its end")
    assert (state(refused).phase, state(refused).code) == ("failed", 2)
    assert "there is no study 'nobody knows'" in executor.logs(refused, refused.handles[0])
    serving = launch("1" * 12, "--no-recorder")
    until(lambda: "worker started" in executor.logs(serving, serving.handles[0]), "its start")
    assert state(serving).phase == "running"
    executor.cancel(serving)
    until(lambda: state(serving).is_over, "its end")
    assert state(serving).phase == "ended"
    executor.cancel(serving)  # which is over


@pytest.mark.longer
def test_claims_of_a_dead_process_are_taken_up_at_once(ledger, places, tmp_path: Path):
    study = submitted(ledger)
    machine = identity().rsplit(":", 2)[0]
    held = ledger.claim(study.id, f"{machine}:999999:1", {})
    assert held is not None
    train(ledger, places)
    assert [one.ending for one in ledger.attempts(study.id)][:2] == ["stale", "finished"]
