"""Leases kept alive through outages, and rows kept in a file while the database is away."""

from __future__ import annotations

import itertools
import math
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import checkpoint, claim, expire, rows, submit
from hypothesis import given
from hypothesis import strategies as st
from processes import until

import tuner.observability.repeating
from tuner.core import curves
from tuner.core.errors import UnavailableError
from tuner.core.file_stores import FolderStore
from tuner.ledger import Ledger
from tuner.observability import metrics
from tuner.observability.repeating import repeating
from tuner.worker.lease_renewer import LeaseRenewer
from tuner.worker.spill import Spill

LOOP = {"loop": "a loop"}

# --- leases


@pytest.mark.longer
def test_what_is_held_is_renewed_and_what_others_lost_is_reaped(ledger: Ledger, tmp_path: Path):
    study = submit(ledger)
    impatient = Ledger(ledger.engine, lease_seconds=0.6)
    ours, theirs = claim(impatient, study, "a:1:1"), claim(ledger, study, "b:1:1")
    expire(ledger, theirs.lease)
    renewer = LeaseRenewer(impatient, FolderStore(tmp_path))
    renewer.hold(ours.lease)
    with renewer.running():
        while ledger.attempts(study.id)[1].live:
            pass
    first, second = ledger.attempts(study.id)
    assert (first.live, second.ending) == (True, "stale")
    assert first.expires_at > first.started_at + 0.6, "renewed"


def test_who_was_out_of_touch_renews_before_reaping(ledger: Ledger, tmp_path: Path):
    """After an outage every lease has run out, and all their holders may be well."""
    study = submit(ledger)
    other = claim(ledger, study, "b:1:1")
    renewer = LeaseRenewer(ledger, FolderStore(tmp_path))
    renewer._in_touch_since = math.inf  # as a renewal that failed leaves it
    expire(ledger, other.lease)
    assert renewer.reap() == 0
    renewer._renew()  # reached again
    assert renewer.reap() == 0, "others have as long as a lease lasts"
    renewer._in_touch_since -= ledger.lease_seconds
    assert renewer.reap() == 1


@pytest.mark.longer
def test_a_checkpoint_that_cannot_be_removed_stops_no_renewal(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    study = submit(ledger, budget={"trials": 10, "retries": {"stale": 0}})
    impatient = Ledger(ledger.engine, lease_seconds=0.6)
    ours, theirs = claim(impatient, study, "a:1:1"), claim(ledger, study, "b:1:1")
    ledger.append(theirs.lease, rows(0, 10))
    ledger.save_checkpoint(theirs.lease, checkpoint(10, 1))
    (tmp_path / "1" / "1" / "10-1.pt").mkdir(parents=True)  # which nobody can unlink
    expire(ledger, theirs.lease)
    renewer = LeaseRenewer(impatient, FolderStore(tmp_path))
    renewer.hold(ours.lease)
    with renewer.running():
        until(lambda: "cannot be removed" in caplog.text, "the log")
        before = ledger.attempts(study.id)[0].expires_at
        until(lambda: ledger.attempts(study.id)[0].expires_at > before, "another renewal")


@pytest.mark.parametrize("error", [OSError("a read-only folder"), UnavailableError("away")])
def test_a_loop_survives_every_error(error, caplog, monkeypatch):
    monkeypatch.setattr(tuner.observability.repeating, "RETRY_SECONDS", 0.001)
    turns, gone_on, goes_well = itertools.count(), threading.Event(), threading.Event()
    was_well, looked = threading.Event(), threading.Event()

    def turn() -> None:
        assert looked.wait(60)
        if goes_well.is_set():
            return was_well.set()
        if next(turns) == 3:
            gone_on.set()
        raise error

    def errors() -> float:
        return metrics.REGISTRY.get_sample_value("tuner_loop_errors_total", LOOP) or 0.0

    before = errors()
    with repeating("a loop", turn, 0.001):
        began = metrics._heartbeats["a loop"]
        looked.set()
        assert gone_on.wait(60)
        is_outage = isinstance(error, UnavailableError)
        assert (metrics._heartbeats["a loop"] > began) == is_outage, (
            "an outage is no reason to restart"
        )
        assert (errors() > before) != is_outage
        goes_well.set()
        assert was_well.wait(60)
    assert caplog.text.count(f"{error}; retrying") == 1, "it is logged once"
    assert metrics.stuck_loops(0.0) == [], "what has ended is not stuck"


def test_of_two_loops_with_one_name_the_outer_one_is_still_expected_to_turn():
    with metrics.expect_heartbeats("a loop"):
        with metrics.expect_heartbeats("a loop"):
            pass
        assert metrics.stuck_loops(-1.0) == ["a loop"]
    assert metrics.stuck_loops(-1.0) == []


# --- spill files


@pytest.mark.longer
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=8))
def test_what_was_added_is_read_as_one_chunk(tmp_path_factory, sizes):
    spill = Spill(tmp_path_factory.mktemp("spill"))
    ends = np.cumsum([0, *sizes]).tolist()
    chunks = [rows(a, b) for a, b in itertools.pairwise(ends)]
    assert not spill
    assert spill.read() is None
    assert all(spill.add(chunk) for chunk in chunks)
    assert spill
    found, whole = spill.read(), curves.join(chunks)
    assert found is not None
    assert (found.first_step, found.next_step) == (0, ends[-1])
    for name, column in whole.columns.items():
        np.testing.assert_array_equal(found.columns[name], column)
    spill.clear()
    assert not spill
    assert spill.read() is None


def test_a_full_spill_takes_no_more_and_keeps_what_it_has(tmp_path: Path):
    spill = Spill(tmp_path, limit=3000)
    assert spill.add(rows(0, 5))
    assert not spill.add(rows(5, 500))
    found = spill.read()
    assert found is not None
    assert found.next_step == 5
    spill.clear()


def test_a_full_disk_takes_no_more_and_what_it_took_is_kept(tmp_path: Path):
    """The system takes a part of what is too much, and then refuses: nothing of it may stay."""
    spill = Spill(tmp_path)
    assert spill.add(rows(0, 5))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        assert not spill.add(rows(5, 60))
        assert not spill.add(rows(5, 60))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert spill.add(rows(5, 9))
    found = spill.read()
    assert found is not None
    assert found.next_step == 9
    spill.clear()


def test_its_file_goes_with_the_process(tmp_path: Path):
    spill = Spill(tmp_path / "made")
    assert spill.add(rows(0, 5))
    assert list((tmp_path / "made").iterdir()) == []
    spill.clear()


def test_a_folder_that_cannot_be_written_is_a_full_one(tmp_path: Path):
    (tmp_path / "file").touch()
    assert not Spill(tmp_path / "file" / "folder").add(rows(0, 5))


@pytest.mark.parametrize("first", [0, 7])
def test_rows_may_begin_anywhere(tmp_path: Path, first):
    spill = Spill(tmp_path)
    assert spill.add(rows(first, first + 3))
    found = spill.read()
    assert found is not None
    assert found.first_step == first
    spill.clear()
