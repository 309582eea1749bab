"""What a study notifies of: its end, its failure, a new best trial, and silence; each once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import WORKLOAD, claim, completed, draw, rows, spec, submit
from processes import STUDY, prepare, tuner
from receiver import Receiver, receiving
from sqlalchemy import update

from tuner.config import reading
from tuner.core.environment import Person
from tuner.core.errors import StudyFileError
from tuner.core.outcome import FAILED, Outcome
from tuner.ledger import Ledger, StudyRecord, managing, notifications
from tuner.ledger.events import Act
from tuner.ledger.tables import attempts
from tuner.observability import notify
from tuner.observability.watching import watch

ALL = ["ended", "failed", "new_best", "stalled", "nobody_trains"]
REASON = "The training code raised ValueError: no such file (mine.py:3)."
BROKE = Outcome(kind=FAILED, reason=REASON)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def notified(ledger: Ledger, **tables: Any) -> StudyRecord:
    table = {"webhook": "TUNER_NOTIFY_WEBHOOK", "on": ALL}
    return submit(ledger, **{"notify": table, "budget": {"trials": 2}, **tables})


def train(ledger: Ledger, study: StudyRecord, outcome: Outcome) -> None:
    held = claim(ledger, study)
    draw(ledger, held)
    ledger.finish(held.lease, outcome, chunk=rows(0, 10))


def heard(ledger: Ledger, receiver: Receiver, now: float | None = None) -> list[str]:
    """Watch twice, and return what the receiver got."""
    before = len(receiver.heard)
    for _ in range(2):
        watch(ledger, now)
        notify.deliver(ledger)
    return [one["event"] for one in receiver.heard[before:]]


@pytest.mark.longer
def test_each_improvement_and_the_end_are_told_once(either: Ledger, receiver: Receiver) -> None:
    study = notified(either)
    submit(either, study={"name": "silent"})
    assert heard(either, receiver) == []
    train(either, study, completed(2.0))
    assert heard(either, receiver) == ["new_best"]
    train(either, study, completed(3.0))
    assert heard(either, receiver) == ["ended"]
    message = receiver.heard[-1]
    assert message["reason"] == "All 2 trials have ended. Best: val_loss 2 in trial 0."
    assert (message["best"]["number"], message["trials"]["completed"]) == (0, 2)
    again = notified(either, budget={"trials": 3})
    train(either, again, completed(1.0))
    assert heard(either, receiver) == ["new_best", "ended"], "a larger budget goes on"


@pytest.mark.longer
def test_what_is_of_a_project_or_a_person_is_told_to_their_receivers_too(
    either: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(who: str, name: str) -> StudyRecord:
        made = spec(study={"name": name}, budget={"trials": 1})
        act = Act(by=Person(os_user=who, host="laptop"))
        return either.submit(made, limit=1, workload=WORKLOAD, act=act)[0]

    monkeypatch.setenv("TUNER_NOTIFY_PROJECT_VISION_2", receiver.address)
    monkeypatch.setenv("TUNER_NOTIFY_PERSON_ANN", receiver.address)
    studies = [of("ann", "vision-2/lines"), of("bob", "vision-2/edges"), of("bob", "text/lines")]
    for study in studies:
        train(either, study, completed(1.0))
    assert heard(either, receiver) == ["ended", "ended", "ended"]
    told = sorted(one["study"] for one in receiver.heard)
    assert told == ["vision-2/edges", "vision-2/lines", "vision-2/lines"]

    monkeypatch.setenv("TUNER_NOTIFY_PERSON_BOB", receiver.address)
    tomorrow = either.now() + 86_400 + 60
    assert heard(either, receiver, tomorrow) == [], "a new receiver does not get what is old"
    assert heard(either, receiver) == ["ended", "ended"]


def test_a_study_whose_trials_fail_is_told_as_failed(ledger: Ledger, receiver: Receiver) -> None:
    study = notified(ledger, budget={"trials": 9, "stop_after_failures": 2})
    for _ in range(2):
        train(ledger, study, BROKE)
    assert managing.break_circuit(ledger, study) is not None
    assert heard(ledger, receiver) == ["failed"]
    assert "no such file" in receiver.heard[-1]["reason"]


@pytest.mark.longer
def test_a_study_that_nobody_trains_is_told_until_somebody_acts(
    ledger: Ledger, receiver: Receiver
) -> None:
    study = notified(ledger)
    later = study.created_at + 16 * 60
    assert heard(ledger, receiver, study.created_at + 60) == []
    assert heard(ledger, receiver, later) == ["nobody_trains"]
    assert "2 trials are left of 'small'" in receiver.heard[-1]["reason"]
    claim(ledger, study)
    assert heard(ledger, receiver, later + 3600) == [], "a worker has it"
    managing.pause(ledger, study)
    assert heard(ledger, receiver, later + 7200) == []


@pytest.mark.longer
def test_a_trial_whose_worker_measures_nothing_is_told_once(
    either: Ledger, receiver: Receiver
) -> None:
    study = notified(either)
    held = claim(either, study, "w1")
    draw(either, held)
    either.append(held.lease, rows(0, 5))
    quiet = {"started_at": attempts.c.started_at - 600}
    for minutes in (10, 20):  # by default 15 are too many
        with either.engine.execution_options(writes=True).begin() as tx:
            tx.execute(update(attempts).values(quiet))
        told = heard(either, receiver)
        assert told == (["stalled"] if minutes > 15 else [])
    reason = "Trial 0 of 'small' has measured nothing for 20 minutes; w1 may hang or be dead."
    assert receiver.heard[-1]["reason"] == reason
    either.append(held.lease, rows(5, 6, time=time.time()))
    assert heard(either, receiver) == []


@pytest.mark.longer
def test_what_was_sent_long_ago_loses_its_content_and_is_not_sent_again(
    ledger: Ledger, receiver: Receiver
) -> None:
    study = notified(ledger)
    for _ in range(2):
        train(ledger, study, completed(1.0))
    assert heard(ledger, receiver) == ["new_best", "ended"]
    assert notifications.strip(ledger, older_than=60.0) == 0
    assert notifications.strip(ledger, older_than=-60.0) == 2
    assert notifications.strip(ledger, older_than=-60.0) == 0
    left = notifications.Notifications(ledger).of_study("small")
    assert [(one.title, one.content) for one in left] == [("", {}), ("", {})]
    assert heard(ledger, receiver) == []


def test_the_table_may_change_and_names_variables_alone(ledger: Ledger, tmp_path: Path) -> None:
    quiet = submit(ledger)
    loud = notified(ledger)
    assert (loud.id, loud.digest) == (quiet.id, quiet.digest)
    file = tmp_path / "study.toml"
    file.write_text(STUDY + '\n[notify]\nwebhook = "https://example.org/secret"\n')
    with pytest.raises(StudyFileError, match="the name of an environment variable") as error:
        reading.load(file)
    assert "secret" not in str(error.value).replace("contain secrets", "")


@pytest.mark.slow
def test_a_run_notifies_of_its_end_by_itself(tmp_path: Path, receiver: Receiver) -> None:
    table = '\n[notify]\nwebhook = "TUNER_NOTIFY_WEBHOOK"\n'
    folder = prepare(tmp_path / "here", STUDY + table, trials="2", steps="20")
    done = tuner(folder, "run", "study.toml", env=receiver.environment)
    assert done.code == 0, done.err
    (message,) = receiver.messages
    assert (message["event"], message["study"]) == ("ended", "small")
