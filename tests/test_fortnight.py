"""A fortnight of a team: each event is recorded once, told once, and attributed.

Three people have nine studies on one PostgreSQL database, each person with a login. One study is
retrained each day by schedulers that are killed, with a bad day, a late day, a day without any
scheduler, a backfill, a rollback, an approval and a rejection.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pipeline import Pipeline
from postgres import Cluster
from processes import PREFIXES, prepare, tuner
from receiver import Receiver, receiving
from retrained import STUDY
from training_here import line_spec, publish, train_all

from tuner.config import StudySpec, reading
from tuner.core.cron import ALL, QUEUE, Timetable
from tuner.core.errors import UsageError
from tuner.ledger import Ledger, Retrainings, database, events
from tuner.ledger.database import Addresses
from tuner.ledger.retrainings import EVALUATE
from tuner.ledger.timetables import ENDED, Timetables
from tuner.operations import doctor, history, manage, notes, ownership, spend, studies, submit
from tuner.operations.approve import approve, reject
from tuner.operations.rollback import rollback
from tuner.operations.scheduler import run_scheduler
from tuner.retraining import versions

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1500)]

TOKYO = ZoneInfo("Asia/Tokyo")
BAD, LATE = 3, 10
PEOPLE = ("ann", "bob", "cem")
ROBOT = "robot"
"""The login of workers and schedulers."""
STUDIES = {
    "ann": ("vision/lines", "vision/edges"),
    "bob": ("text/lines", "text/broken", "text/slow"),
    "cem": ("lines", "more", "never"),
}
"""The studies beside `moving`, which is Ann's."""


@dataclass(frozen=True, kw_only=True)
class Shared(Pipeline):
    """A pipeline on a shared database; what it does is done by the robot's login."""

    by_login: Mapping[str, Addresses]
    ledgers: Mapping[str, Ledger]

    @property
    def places(self) -> Addresses:
        return self.by_login[ROBOT]

    @property
    def ledger(self) -> Ledger:
        return self.ledgers[ROBOT]


@dataclass(frozen=True)
class Fortnight:
    """A pipeline with a timetable at six in Tokyo, whose first day is the day after tomorrow.

    The days lie in the future, so that no scheduler sees a tick before the test does.
    """

    pipeline: Shared
    receiver: Receiver
    first: datetime

    def key(self, day: int) -> str:
        return (self.first + timedelta(days=day - 1)).date().isoformat()

    def place(self, who: str) -> tuple[Ledger, Addresses]:
        """Return the ledger and the addresses of a person."""
        return self.pipeline.ledgers[who], self.pipeline.by_login[who]

    def submit(self, who: str, spec: StudySpec) -> None:
        ledger = self.pipeline.ledgers[who]
        prepared = submit.prepare(spec, PREFIXES)
        submit.submit(ledger, spec, prepared.description, ask=ownership.refuse)

    def change(self, *overrides: str) -> None:
        """Let Ann change the table `[retrain]` of her study."""
        self.submit("ann", reading.load(self.pipeline.folder / "study.toml", overrides))

    def train(self) -> None:
        """Let a worker train all that is open."""
        train_all(self.pipeline.ledger, self.pipeline.places)

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
        places = self.pipeline.places
        env = {"TUNER_DATABASE_URL": places.optuna, "MLFLOW_TRACKING_URI": places.tracking}
        armed = {"TUNER_FAILPOINTS": f"{place}=kill", **env, **self.receiver.environment}
        assert tuner(self.pipeline.folder, "scheduler", "--once", env=armed).code == -signal.SIGKILL
        self.finish()

    def champion(self) -> str:
        """Return the key of the champion, which must be whole."""
        self.pipeline.assert_whole()
        made = versions.maker(self.pipeline.ledger, self.pipeline.registry.champion())
        assert made is not None
        return made.run_key


@pytest.fixture
def shared(cluster: Cluster, migrated: str, tmp_path: Path) -> Iterator[Shared]:
    name = cluster.database(migrated).rpartition("/")[2]
    folder = prepare(tmp_path / "moving")
    by_login, ledgers = {}, {}
    for login in (*PEOPLE, ROBOT):
        cluster.execute(f"DROP ROLE IF EXISTS {login}")
        cluster.execute(f"CREATE ROLE {login} LOGIN IN ROLE tuner_worker")
        env = {
            "TUNER_DATABASE_URL": cluster.url(name, login),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        }
        by_login[login] = database.addresses(env, folder)
        ledgers[login] = Ledger(database.open_ledger(by_login[login], create=False))
    yield Shared(folder, by_login=by_login, ledgers=ledgers)
    for one in ledgers.values():
        one.engine.dispose()


@pytest.fixture
def fortnight(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fortnight]:
    first = datetime.combine(datetime.now(TOKYO) + timedelta(days=2), time(0), TOKYO)

    def day(number: int) -> str:
        return (first + timedelta(days=number - 1)).date().isoformat()

    days = f'first = "{day(1)}", bad = "{day(BAD)}", late = "{day(LATE)}"'
    study = STUDY.replace('retrained:moving"', f'retrained:daily"\narguments = {{ {days} }}')
    study = study.replace("[retrain]\n", '[retrain]\nkey_format = "%Y-%m-%d"\n')
    study += '\n[retrain.notify]\nwebhook = "TUNER_NOTIFY_WEBHOOK"\n'
    (shared.folder / "study.toml").write_text(study)
    when = Timetable(
        expression="0 6 * * *", zone="Asia/Tokyo", grace=60, catch_up=ALL, overlap=QUEUE
    )
    with receiving() as receiver:
        for name, value in receiver.environment.items():
            monkeypatch.setenv(name, value)
        made = Fortnight(shared, receiver, first)
        made.change()
        made.train()
        Timetables(shared.ledger).add("daily", "moving", when, now=first.timestamp())
        yield made


def test_a_fortnight_of_three_people_and_nine_studies(fortnight: Fortnight) -> None:
    everybody_submits(fortnight)
    first_week(fortnight)
    people_act(fortnight)
    second_week(fortnight)
    assert_recorded_once(fortnight)
    assert_told_once(fortnight)
    assert_attributed(fortnight)
    assert_only_what_the_gate_let_in(fortnight)
    publish(fortnight.pipeline.ledger, fortnight.pipeline.places)
    found = doctor.examine(fortnight.pipeline.ledger.engine, fortnight.pipeline.places)
    assert found == []


def everybody_submits(fortnight: Fortnight) -> None:
    for who, names in STUDIES.items():
        for name in names:
            failing = {"arguments": {"failing": True}} if name == "text/broken" else {}
            notify = {"webhook": "TUNER_NOTIFY_WEBHOOK"}
            spec = line_spec(study={"name": name}, workload=failing, notify=notify)
            fortnight.submit(who, spec)
            if name == "text/slow":
                ledger, _ = fortnight.place(who)
                manage.pause(ledger, name, "the data are late")
            if name == "never":
                ledger, places = fortnight.place(who)
                manage.stop(ledger, places, name, "a wrong idea")
    fortnight.train()


def first_week(fortnight: Fortnight) -> None:
    key = fortnight.key
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


def people_act(fortnight: Fortnight) -> None:
    """Touch each other's studies, as far as they may."""
    ann, cem = fortnight.place("ann")[0], fortnight.place("cem")[0]
    notes.note(ann, "lines", "as good as ours")
    notes.tag(ann, "lines", ["baseline"])
    with pytest.raises(UsageError, match=r"'text/slow' was submitted by .*login bob"):
        ownership.check(cem, "text/slow", ownership.refuse)
    ownership.check(cem, "text/slow", ownership.agree)  # --yes
    manage.resume(cem, "text/slow", "they have arrived")
    fortnight.train()


def second_week(fortnight: Fortnight) -> None:
    key, pipeline = fortnight.key, fortnight.pipeline
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
    rollback(*fortnight.place("bob"), "moving", reason="wrong at night")
    assert fortnight.champion() == key(9)

    fortnight.change("retrain.promote='manual'")
    fortnight.schedule(12)
    assert fortnight.champion() == key(9)
    approve(*fortnight.place("cem"), "moving", reason="it looks right")
    assert fortnight.champion() == key(12)
    fortnight.schedule(13)
    reject(*fortnight.place("ann"), "moving", reason="a holiday")
    assert fortnight.champion() == key(12)
    fortnight.change()
    fortnight.schedule(14)
    assert fortnight.champion() == key(14)


def expected(fortnight: Fortnight) -> list[tuple[str | None, str]]:
    """Return the key and the outcome of each message about the retraining, in order."""
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
    messages = fortnight.receiver.messages
    assert len(fortnight.receiver.heard) == len(messages), "none is sent twice"
    told = [(one.get("run_key"), one["outcome"]) for one in messages if "outcome" in one]
    assert told == expected(fortnight)
    ends = Counter((one["study"], one["event"]) for one in messages if "event" in one)
    names = [name for of_one in STUDIES.values() for name in of_one]
    assert ends == {(name, "failed" if name == "text/broken" else "ended"): 1 for name in names}


def assert_attributed(fortnight: Fortnight) -> None:
    """Each event has the login that did it; the server says so, not the process."""
    found = history.history(fortnight.pipeline.ledger, "moving")
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
    assert did(found, events.RETRAINED) == {(ROBOT, None)} | {
        (ROBOT, one["reason"]) for one in found if one["details"].get("outcome") == "refused"
    }
    assert did(found, events.SUBMITTED) == {("ann", None)}
    assert did(found, events.ROLLED_BACK) == {("bob", "wrong at night")}
    assert did(found, events.APPROVED) == {("cem", "it looks right")}
    assert did(found, events.REJECTED) == {("ann", "a holiday")}

    ledger = fortnight.pipeline.ledger
    people = spend.of_listed(ledger, studies.studies(ledger))["people"]
    assert {name.rpartition(" as ")[2] for name in people} == {*PEOPLE}

    more: dict[str, list[tuple[Any, ...]]] = {
        "lines": [(events.NOTED, "ann", "as good as ours"), (events.TAGGED, "ann", None)],
        "text/slow": [
            (events.PAUSED, "bob", "the data are late"),
            (events.RESUMED, "cem", "they have arrived"),
        ],
        "never": [(events.STOPPED, "cem", "a wrong idea")],
    }
    for who, names in STUDIES.items():
        for name in names:
            found = history.history(fortnight.pipeline.ledger, name)
            assert [(one["action"], one["db_role"], one["reason"]) for one in found] == [
                (events.SUBMITTED, who, None),
                *more.get(name, ()),
            ]


def did(found: list[dict[str, Any]], action: str) -> set[tuple[str, str | None]]:
    """Return who did something, and why."""
    return {(one["db_role"], one["reason"]) for one in found if one["action"] == action}


def assert_only_what_the_gate_let_in(fortnight: Fortnight) -> None:
    """What was promoted was better for sure than the champion of then, on the same rows."""
    for one in Retrainings(fortnight.pipeline.ledger).history("moving"):
        decision = one.result[EVALUATE]
        if one.outcome == "promoted" and decision["champion"] is not None:
            assert decision["improvement"]["low"] > 0.01, one.run_key
