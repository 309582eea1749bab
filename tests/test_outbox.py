"""Notifications are committed with their event and sent afterwards, by whoever comes next."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import end_retraining, submit
from pipeline import Pipeline
from processes import copy, prepare, train_here, tuner
from receiver import Receiver, receiving
from retrained import STUDY

from tuner.config import NotifyTable
from tuner.core.errors import UsageError
from tuner.ledger import Ledger, Retrainings, events
from tuner.ledger.notifications import LONGEST_SECONDS, Notice, Notifications
from tuner.ledger.retrainings import overdue
from tuner.observability import notify
from tuner.observability.watching import watch
from tuner.operations import history
from tuner.operations import submit as submission

NOTICE = {
    "event": "an event", "study": "line", "channel": "webhook", "target": "TUNER_NOTIFY_WEBHOOK",
    "title": "line: kept", "content": {"outcome": "kept", "reason": "It was not better."},
}  # fmt: skip


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver that this process may send to."""
    with receiving() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def notice(**changes: Any) -> Notice:
    return Notice(**{**NOTICE, **changes})


# --- the outbox


def test_a_message_is_sent_once_with_its_idempotency_key(
    ledger: Ledger, receiver: Receiver
) -> None:
    for sent in (1, 0):  # the second is of a repeated call
        Notifications(ledger).add([notice()])
        assert notify.deliver(ledger) == sent
    (message,) = receiver.heard
    assert message == {"id": notice().key, **NOTICE["content"]}
    assert receiver.keys == [notice().key]


def test_what_a_receiver_refuses_is_tried_again_later_and_abandoned_after_days(
    ledger: Ledger, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    store = Notifications(ledger)
    store.add([notice(), notice(event="another")])
    receiver.answers += [500, 500]
    assert notify.deliver(ledger) == 0
    assert "TUNER_NOTIFY_WEBHOOK was not reached: it answered 500" in caplog.text
    assert notify.deliver(ledger) == 0, "not at once"
    assert len(receiver.heard) == 2
    now = ledger.now()
    assert notify.deliver(ledger, now + 60) == 2
    assert len({one["id"] for one in receiver.heard}) == 2, "a try again has the same key"
    store.add([notice(event="a third")])
    receiver.answers += [500]
    assert notify.deliver(ledger, now + LONGEST_SECONDS + 3600) == 0
    assert [one.state for one in store.of_study("line")] == ["sent", "sent", "abandoned"]


def test_a_process_without_the_address_leaves_a_message_to_one_that_has_it(
    ledger: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    Notifications(ledger).add([notice()])
    address = receiver.environment["TUNER_NOTIFY_WEBHOOK"]
    monkeypatch.delenv("TUNER_NOTIFY_WEBHOOK")
    assert notify.deliver(ledger) == 0
    (kept,) = Notifications(ledger).of_study("line")
    assert (kept.state, kept.token) == ("waiting", 0)
    monkeypatch.setenv("TUNER_NOTIFY_WEBHOOK", address)
    assert notify.deliver(ledger) == 1


@pytest.mark.parametrize("target", ["HOME", "TUNER_NOTIFY_ALLOW", "stored:0", "TUNER_DATABASE_URL"])
def test_a_row_that_names_another_variable_reaches_nobody(
    ledger: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setenv("HOME", receiver.address)
    Notifications(ledger).add([notice(target=target)])
    assert notify.deliver(ledger) == 0
    assert receiver.heard == []


# --- overdue


def test_a_study_without_a_successful_retraining_for_too_long_is_notified_once(
    ledger: Ledger, receiver: Receiver
) -> None:
    table = {"overdue_hours": 24.0, "notify": {"webhook": "TUNER_NOTIFY_WEBHOOK"}}
    study = submit(ledger, study={"name": "daily"}, retrain=table)
    submit(ledger, study={"name": "never"})
    held, _ = Retrainings(ledger).claim("daily", "1", "daily", "w")
    end_retraining(Retrainings(ledger), held)  # a failed one counts for nothing
    begun, day = study.created_at, 86_400.0
    assert overdue(ledger, begun + day - 1) == []
    for _ in range(2):
        watch(ledger, begun + day + 1)
        notify.deliver(ledger)
    (message,) = receiver.messages
    assert (message["study"], message["outcome"]) == ("daily", "overdue")
    assert message["reason"].startswith("No retraining of 'daily' has succeeded since ")


# --- retraining


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study trained, to be copied."""
    webhook = '\n[retrain.notify]\nwebhook = "TUNER_NOTIFY_WEBHOOK"\n'
    folder = prepare(tmp_path_factory.mktemp("trained") / "moving", STUDY + webhook)
    train_here(folder)
    return folder


@pytest.fixture
def pipeline(trained: Path, tmp_path: Path) -> Pipeline:
    return Pipeline(copy(trained, tmp_path))


KILLED = ["retrain.promoted", "retrain.ended", "notify.sent"]
"""The champion has changed; it is in the ledger; the receiver has it."""


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("place", KILLED)
@pytest.mark.parametrize("next_one", ["retrain moving --run-key 0", "recorder --once"])
def test_a_process_killed_after_the_promotion_has_the_next_one_send_it(
    pipeline: Pipeline, receiver: Receiver, place: str, next_one: str
) -> None:
    folder, env = pipeline.folder, receiver.environment
    log = {"TUNER_FAILPOINTS": f"{place}=kill", "TUNER_FAILPOINTS_LOG": str(folder / "log")}
    killed = tuner(folder, "retrain", "moving", "--run-key", "0", env=env | log)
    assert killed.code == -signal.SIGKILL
    assert len(receiver.heard) == (place == "notify.sent")
    if place == "retrain.promoted":  # the outcome is not in the ledger: only its key resumes it
        next_one = "retrain moving --run-key 0"
    done = tuner(folder, *next_one.split(), env=env)
    assert done.code == 0, done.err
    (message,) = receiver.messages
    assert (message["outcome"], message["run_key"]) == ("promoted", "0")
    assert len(receiver.heard) == 1 + (place == "notify.sent"), "with the same id"
    assert tuner(folder, *next_one.split(), env=env).code == 0
    assert len(receiver.messages) == 1


@pytest.mark.slow
def test_every_call_is_recorded_with_its_outcome_and_a_refusal_is_notified_once(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    pipeline.retrain("0")
    for _ in range(2):
        with pytest.raises(UsageError, match="does not fit the signature"):
            pipeline.retrain("wide")
    pipeline.retrain("0")
    calls = [
        (one["details"]["run_key"], one["details"]["outcome"], one["reason"] is not None)
        for one in history.history(pipeline.ledger, "moving")
        if one["action"] == events.RETRAINED
    ]
    refused = ("wide", "refused", True)
    assert calls == [("0", "promoted", False), refused, refused, ("0", "promoted", False)]
    assert [(one["run_key"], one["outcome"]) for one in receiver.messages] == [
        ("0", "promoted"),
        ("wide", "refused"),
    ]
    assert len(receiver.heard) == 2
    done = tuner(pipeline.folder, "retrain", "moving", "--run-key", "wide", env={})
    assert done.code == 2, "as an earlier call was"
    assert len(history.history(pipeline.ledger, "moving")) == len(calls) + 2  # and submitted


def test_an_address_of_an_earlier_version_is_found_in_its_study(
    ledger: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {"webhook": receiver.address}
    submit(ledger, study={"name": "old"}, retrain={"notify": stored})
    made = notify.notices(
        NotifyTable.model_validate(stored),
        on="kept",
        event="e",
        study="old",
        title="old: kept",
        content=NOTICE["content"],
    )
    assert receiver.address not in repr(made), "no row but the study's has the address"
    Notifications(ledger).add(made)
    monkeypatch.delenv("TUNER_NOTIFY_ALLOW")
    assert notify.deliver(ledger) == 0, "it must be listed"
    monkeypatch.setenv("TUNER_NOTIFY_ALLOW", "127.0.0.1")
    assert notify.deliver(ledger, ledger.now() + 60) == 1
    with pytest.raises(UsageError, match="expected the name of an environment variable"):
        submission.prepare(ledger.study("old").spec, ("tests.",))
