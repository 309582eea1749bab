"""A fortnight of a daily retraining: each event is recorded once, told once, and attributed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from pipeline import Pipeline
from processes import PREFIXES, prepare, train_here, tuner
from receiver import Receiver, receiving
from retrained import STUDY

from tuner.core.cron import ALL, QUEUE, Timetable
from tuner.core.environment import person
from tuner.ledger import Retrainings, events
from tuner.ledger.timetables import ENDED, Timetables
from tuner.operations import history
from tuner.operations.approve import approve, reject
from tuner.operations.rollback import rollback
from tuner.operations.scheduler import run_scheduler
from tuner.retraining import versions

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

TOKYO = ZoneInfo("Asia/Tokyo")
BAD, LATE = 3, 10


@dataclass(frozen=True)
class Fortnight:
    """A pipeline with a timetable at six in Tokyo, whose first day is the day after tomorrow.

    The days lie in the future, so that no scheduler sees a tick before the test does.
    """

    pipeline: Pipeline
    receiver: Receiver
    first: datetime

    def key(self, day: int) -> str:
        return (self.first + timedelta(days=day - 1)).date().isoformat()

    def dawn(self, day: int) -> None:
        """Record the ticks that are due shortly after six."""
        at = datetime.combine(self.first + timedelta(days=day - 1), time(6), TOKYO)
        assert Timetables(self.pipeline.ledger).tick(at.timestamp() + 5) > 0

    def schedule(self, day: int) -> None:
        """Run a scheduler until nothing is due."""
        self.dawn(day)
        self.finish()

    def finish(self) -> None:
        ledger, places = self.pipeline.ledger, self.pipeline.places
        run_scheduler(ledger, places, prefixes=PREFIXES, stop=threading.Event(), once=True)

    def killed(self, day: int, place: str) -> None:
        """Kill a scheduler in its work; another one ends it."""
        self.dawn(day)
        armed = {"TUNER_FAILPOINTS": f"{place}=kill", **self.receiver.environment}
        assert tuner(self.pipeline.folder, "scheduler", "--once", env=armed).code == -signal.SIGKILL
        self.finish()

    def champion(self) -> str:
        """Return the key of the champion, which must be whole."""
        self.pipeline.assert_whole()
        made = versions.maker(self.pipeline.ledger, self.pipeline.registry.champion())
        assert made is not None
        return made.run_key


@pytest.fixture
def fortnight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fortnight]:
    first = datetime.combine(datetime.now(TOKYO) + timedelta(days=2), time(0), TOKYO)

    def day(number: int) -> str:
        return (first + timedelta(days=number - 1)).date().isoformat()

    days = f'first = "{day(1)}", bad = "{day(BAD)}", late = "{day(LATE)}"'
    study = STUDY.replace('retrained:moving"', f'retrained:daily"\narguments = {{ {days} }}')
    study = study.replace("[retrain]\n", '[retrain]\nkey_format = "%Y-%m-%d"\n')
    study += '\n[retrain.notify]\nwebhook = "TUNER_NOTIFY_WEBHOOK"\n'
    folder = prepare(tmp_path / "moving", study)
    train_here(folder)
    pipeline = Pipeline(folder)
    when = Timetable(
        expression="0 6 * * *", zone="Asia/Tokyo", grace=60, catch_up=ALL, overlap=QUEUE
    )
    Timetables(pipeline.ledger).add("daily", "moving", when, now=first.timestamp())
    with receiving() as receiver:
        for name, value in receiver.environment.items():
            monkeypatch.setenv(name, value)
        yield Fortnight(pipeline, receiver, first)


def test_a_fortnight_of_a_daily_retraining(fortnight: Fortnight) -> None:
    pipeline, key = fortnight.pipeline, fortnight.key
    ledger, places = pipeline.ledger, pipeline.places

    fortnight.schedule(1)
    fortnight.schedule(2)
    assert fortnight.champion() == key(2)
    fortnight.schedule(BAD)
    assert fortnight.champion() == key(2), "the bad day is refused"
    fortnight.schedule(4)
    fortnight.schedule(6)  # nobody looked on day 5, which is caught up
    assert fortnight.champion() == key(6)

    fortnight.killed(7, "scheduler.claimed")
    assert fortnight.champion() == key(7)
    fortnight.killed(8, "retrain.promoted")
    assert fortnight.champion() == key(8)
    fortnight.killed(9, "scheduler.retrained")
    assert fortnight.champion() == key(9)

    fortnight.schedule(LATE)  # the rows of the day before: no better for sure
    backfill = pipeline.retrain(f"{key(BAD)} again")
    assert "Recorded only" in backfill["reason"]
    assert fortnight.champion() == key(9)

    fortnight.schedule(11)
    assert fortnight.champion() == key(11)
    rollback(ledger, places, "moving", reason="wrong at night")
    assert fortnight.champion() == key(9)

    pipeline.change("retrain.promote='manual'")
    fortnight.schedule(12)
    assert fortnight.champion() == key(9)
    approve(ledger, places, "moving", reason="it looks right")
    assert fortnight.champion() == key(12)
    fortnight.schedule(13)
    reject(ledger, places, "moving", reason="a holiday")
    assert fortnight.champion() == key(12)
    pipeline.change()
    fortnight.schedule(14)
    assert fortnight.champion() == key(14)
    assert_recorded_once(fortnight)
    assert_told_once(fortnight)
    assert_attributed(fortnight)


def expected(fortnight: Fortnight) -> list[tuple[str | None, str]]:
    """Return the key and the outcome of each message, in order."""
    key = fortnight.key
    return [
        *((key(day), "promoted") for day in (1, 2)),
        (key(BAD), "refused"),
        *((key(day), "promoted") for day in (4, 5, 6, 7, 8, 9)),
        (key(LATE), "kept"),
        (f"{key(BAD)} again", "kept"),
        (key(11), "promoted"),
        (None, "rolled_back"),
        (key(12), "proposed"),
        (key(12), "promoted"),
        (key(13), "proposed"),
        (key(13), "rejected"),
        (key(14), "promoted"),
    ]


def assert_recorded_once(fortnight: Fortnight) -> None:
    pipeline = fortnight.pipeline
    outcomes = {key: outcome for key, outcome in expected(fortnight) if key is not None}
    del outcomes[fortnight.key(BAD)]  # nothing was trained
    retrainings = Retrainings(pipeline.ledger).history("moving")
    assert {one.run_key: one.outcome for one in retrainings} == outcomes
    assert len(retrainings) == len(outcomes), "a key is retrained once"
    assert pipeline.trainings() == len(outcomes)
    runs = Timetables(pipeline.ledger).history("daily")
    assert [one.state for one in runs] == [ENDED] * 14


def assert_told_once(fortnight: Fortnight) -> None:
    told = [(one.get("run_key"), one["outcome"]) for one in fortnight.receiver.messages]
    assert told == expected(fortnight)
    assert len(fortnight.receiver.heard) == len(told), "none is sent twice"


def assert_attributed(fortnight: Fortnight) -> None:
    found = history.history(fortnight.pipeline.ledger, "moving")
    assert {(one["os_user"], one["host"]) for one in found} == {(person().os_user, person().host)}
    calls = [
        (one["details"]["run_key"], one["details"]["outcome"])
        for one in found
        if one["action"] == events.RETRAINED
    ]
    by_people = {(fortnight.key(12), "promoted"), (fortnight.key(13), "rejected")}
    of_calls = [one for one in expected(fortnight) if one[0] and one not in by_people]
    # a scheduler that takes over asks again for what another one has ended
    assert list(dict.fromkeys(calls)) == of_calls
    assert len(calls) == len(of_calls) + 1
    decided = (events.ROLLED_BACK, events.APPROVED, events.REJECTED)
    assert [(one["action"], one["reason"]) for one in found if one["action"] in decided] == [
        (events.ROLLED_BACK, "wrong at night"),
        (events.APPROVED, "it looks right"),
        (events.REJECTED, "a holiday"),
    ]
