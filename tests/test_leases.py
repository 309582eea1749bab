"""The rules of leases, which hold for every kind of row that is leased."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier

import pytest
from helpers import completed, contents, end_retraining, expire, submit
from processes import until

from tuner.core.cron import Timetable
from tuner.core.environment import identity, is_gone
from tuner.core.errors import LeaseLost
from tuner.core.file_stores import FolderStore
from tuner.ledger import Lease, Ledger, Retrainings, StudyRecord, database, ranges
from tuner.ledger.leases import (
    ATTEMPTS,
    NOTIFICATIONS,
    PROBES,
    PUBLICATIONS,
    RETRAININGS,
    TIMETABLE_RUNS,
    LeaseTable,
)
from tuner.ledger.notifications import Notice, Notifications
from tuner.ledger.publications import Publications
from tuner.ledger.tables import metadata
from tuner.ledger.timetables import Timetables
from tuner.worker.lease_renewer import LeaseRenewer

Gone = Callable[[str], bool]


def alive(_: str) -> bool:
    return False


@dataclass(frozen=True)
class Kind:
    """How one kind is claimed, written under its lease, ended and released."""

    table: LeaseTable
    claim: Callable[[Ledger, StudyRecord, str, Gone], Lease | None]
    write: Callable[[Ledger, StudyRecord, Lease], object]  # the last write where one ends it
    release: Callable[[Ledger, StudyRecord, Lease], object]


def claim_attempt(ledger, study, worker, gone):
    ledger.reap(gone)
    claim = ledger.claim(study.id, worker, {})
    return claim and claim.lease


def claim_retraining(ledger, study, worker, gone):
    held, other = Retrainings(ledger).claim(study.name, "key", "model", worker, gone)
    return None if other else held.lease


def retraining_of(ledger, lease):
    (held,) = Retrainings(ledger).history("small")
    return replace(held, token=lease.token)


def claim_run(ledger, study, worker, gone):
    held = Timetables(ledger).claim(worker, gone)
    return held and held.lease


def run_of(ledger, lease):
    (held,) = Timetables(ledger).history()
    return replace(held, token=lease.token)


def claim_notification(ledger, study, worker, gone):
    held = Notifications(ledger).claim(["TUNER_NOTIFY_A"], worker, gone)
    return held and held.lease


def notification_of(ledger, lease):
    (held,) = Notifications(ledger).of_study("small")
    return replace(held, token=lease.token)


def publisher(ledger, name):
    return Publications(ledger.engine, "mlflow", name, grace_seconds=ledger.grace_seconds)


def claim_publication(ledger, study, worker, gone):
    publications = publisher(ledger, worker)
    return publications.lease(study.id) if publications.claim(study.id, gone) else None


KINDS = {
    "attempt": Kind(
        ATTEMPTS,
        claim_attempt,
        lambda ledger, study, lease: ledger.finish(lease, completed(1.0)),
        lambda ledger, study, lease: ledger.release(lease, "interrupted", "Ctrl-C"),
    ),
    "retraining": Kind(
        RETRAININGS,
        claim_retraining,
        lambda ledger, study, lease: end_retraining(
            Retrainings(ledger), retraining_of(ledger, lease)
        ),
        lambda ledger, study, lease: Retrainings(ledger).release(retraining_of(ledger, lease)),
    ),
    "timetable run": Kind(
        TIMETABLE_RUNS,
        claim_run,
        lambda ledger, study, lease: Timetables(ledger).end(run_of(ledger, lease), "kept", "No."),
        lambda ledger, study, lease: Timetables(ledger).release(run_of(ledger, lease)),
    ),
    "publication": Kind(
        PUBLICATIONS["mlflow"],
        claim_publication,
        lambda ledger, study, lease: publisher(ledger, lease.token).note_study(study.id, "1", 2),
        lambda ledger, study, lease: publisher(ledger, lease.token).release(study.id),
    ),
    "notification": Kind(
        NOTIFICATIONS,
        claim_notification,
        lambda ledger, study, lease: Notifications(ledger).end(notification_of(ledger, lease)),
        lambda ledger, study, lease: Notifications(ledger).release(notification_of(ledger, lease)),
    ),
    "probe": Kind(
        PROBES,
        lambda ledger, study, worker, gone: ranges.claim_probe(ledger, study, worker, gone).lease,
        lambda ledger, study, lease: ranges.finish_probe(ledger, study, lease, {}, None),
        ranges.release_probe,
    ),
}


class Leased:
    """The one row of a kind in a ledger, to be claimed by several workers."""

    def __init__(self, ledger: Ledger, kind: Kind, study: StudyRecord) -> None:
        self.ledger, self._kind, self._study = ledger, kind, study

    def claim(self, worker: str, gone: Gone = alive, ledger: Ledger | None = None) -> Lease | None:
        lease = self._kind.claim(ledger or self.ledger, self._study, worker, gone)
        assert lease is None or lease.table is self._kind.table
        return lease

    def write(self, lease: Lease) -> None:
        self._kind.write(self.ledger, self._study, lease)

    def release(self, lease: Lease) -> None:
        self._kind.release(self.ledger, self._study, lease)


@pytest.fixture(params=KINDS)
def leased(either: Ledger, request: pytest.FixtureRequest) -> Leased:
    """Each kind on each database."""
    return Leased(either, KINDS[request.param], prepare(either))


def prepare(ledger: Ledger) -> StudyRecord:
    """Submit a study of one trial that has a probe, a timetable, a tick and a notification."""
    study = submit(ledger, budget={"trials": 1})
    when = Timetable(expression="0 * * * *", zone="UTC")
    Timetables(ledger).add("hourly", study.name, when, now=0.0)
    assert Timetables(ledger).tick(3600.0) == 1
    about = {"event": "e", "study": study.name, "channel": "webhook", "target": "TUNER_NOTIFY_A"}
    Notifications(ledger).add([Notice(**about, title="t", content={})])
    return study


def test_every_table_with_an_expiry_has_its_cases_here() -> None:
    expiring = {table.name for table in metadata.sorted_tables if "expires_at" in table.c}
    assert {kind.table.id.table.name for kind in KINDS.values()} == expiring


def test_a_claim_excludes_others(leased: Leased) -> None:
    held = leased.claim("one")
    assert held is not None
    assert leased.claim("two") is None
    leased.write(held)


@pytest.mark.longer
def test_of_many_who_claim_at_once_one_gets_it(leased: Leased) -> None:
    barrier = Barrier(6)

    def claim(number: int) -> Lease | None:
        barrier.wait()
        return leased.claim(f"worker {number}")

    with ThreadPoolExecutor(6) as pool:
        assert sum(lease is not None for lease in pool.map(claim, range(6))) == 1


def test_an_expired_lease_is_taken_over_and_its_token_is_refused(leased: Leased) -> None:
    first = leased.claim("one")
    expire(leased.ledger, first)
    second = leased.claim("two")
    assert second is not None
    assert second != first
    before = contents(leased.ledger)
    with pytest.raises(LeaseLost):
        leased.write(first)
    assert contents(leased.ledger) == before
    assert leased.ledger.renew([first, second]) == {first}
    leased.write(second)


def test_a_stale_holder_releases_nothing(leased: Leased) -> None:
    first = leased.claim("one")
    second = leased.claim("two", lambda worker: worker == "one")
    assert second is not None, "the process of its holder is gone"
    try:
        leased.release(first)
    except LeaseLost:
        assert first.table is ATTEMPTS, "only an attempt's release tells a reason"
    assert leased.claim("three") is None
    assert leased.ledger.renew([second]) == frozenset()


def test_an_expired_lease_that_nobody_took_can_be_renewed(leased: Leased) -> None:
    """After an outage every lease has expired, and all holders may be alive."""
    held = leased.claim("one")
    expire(leased.ledger, held)
    assert leased.ledger.renew([held]) == frozenset()
    assert leased.claim("two") is None
    leased.write(held)


def test_a_released_row_can_be_claimed_at_once(leased: Leased) -> None:
    first = leased.claim("one")
    leased.release(first)
    assert leased.ledger.renew([first]) == {first}
    with pytest.raises(LeaseLost):
        leased.write(first)
    assert leased.claim("two") is not None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_lease_expires_soon_after_the_servers_start(
    shared: str, tmp_path: Path, kind: str
) -> None:
    """No holder could renew before. A process that is gone loses its lease all the same."""
    places = database.addresses({"TUNER_DATABASE_URL": shared}, tmp_path)
    ledger = Ledger(database.ledger_engine(places.ledger), grace_seconds=0.0)
    careful = Ledger(ledger.engine, grace_seconds=1e9)
    leased = Leased(ledger, KINDS[kind], prepare(ledger))
    expire(ledger, leased.claim("one"))
    assert leased.claim("two", ledger=careful) is None
    assert leased.claim("two", lambda worker: worker == "one", ledger=careful) is not None
    ledger.engine.dispose()


@pytest.mark.slow
def test_a_killed_process_loses_its_lease_at_once(leased: Leased) -> None:
    process = subprocess.Popen([sys.executable, "-c", IDENTITY], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    held = leased.claim(process.stdout.readline().strip())
    assert leased.claim(identity(), is_gone) is None
    process.kill()
    process.communicate()
    assert leased.claim(identity(), is_gone) is not None
    with pytest.raises(LeaseLost):
        leased.write(held)


IDENTITY = """
import sys
from tuner.core.environment import identity
print(identity(), flush=True)
sys.stdin.read()
"""


# --- the renewer


@pytest.mark.longer
def test_leases_of_all_kinds_are_renewed_in_one_thread(either: Ledger, tmp_path: Path) -> None:
    short = Ledger(either.engine, lease_seconds=0.3, grace_seconds=0.0)
    study = prepare(short)
    every = [Leased(short, kind, study) for kind in KINDS.values()]
    held = [one.claim(identity()) for one in every]
    assert None not in held
    renewer = LeaseRenewer(short, FolderStore(tmp_path))
    before = threading.active_count()
    with renewer.running(), renewer.running():
        assert threading.active_count() == before + 1
        for lease in held:
            renewer.hold(lease)
            expire(short, lease)
        for lease in held:
            until(lambda lease=lease: remaining(short, lease) > 0, f"renewal of {lease}")
            assert renewer.holds(lease)
        every[0].release(held[0])
        until(lambda: not renewer.holds(held[0]), "what is lost is dropped")
    assert threading.active_count() == before


def remaining(ledger: Ledger, lease: Lease) -> float:
    """Return for how many seconds a lease will last."""
    with ledger.engine.begin() as tx:
        row = lease.table.row(tx, lease)
    assert row is not None
    return row.expires_at - Retrainings(ledger).now()
