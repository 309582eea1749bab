"""The scheduler: records the ticks of timetables and runs one retraining for each tick.

Any number of schedulers may run. When one dies, another continues its work: a tick is a row, and
the run key of its retraining follows from the tick's time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tuner.core.cron import run_key
from tuner.core.environment import identity, is_gone
from tuner.core.errors import LeaseLost, MigratedError, TunerError, UnavailableError
from tuner.core.failpoints import reach
from tuner.core.run_keys import key_of
from tuner.ledger import Ledger
from tuner.ledger.database import Addresses
from tuner.ledger.retrainings import FAILED
from tuner.ledger.timetables import RunRecord, Timetables
from tuner.observability import watching
from tuner.observability.logs import logger
from tuner.observability.repeating import repeating
from tuner.operations import canary
from tuner.operations.retrain import retrain
from tuner.worker.lease_renewer import LeaseRenewer

POLL_SECONDS = 0.5
CANARY_SECONDS = 10.0
"""Time between two looks at canaries."""
OUTAGE_RETRY_SECONDS = 5.0
"""Time until a run that could not reach MLflow is tried again."""

log = logger(__name__)

Retrain = Callable[[RunRecord], Mapping[str, Any]]
"""Retrain for a tick and return what `tuner retrain --json` prints."""


def run_scheduler(
    ledger: Ledger,
    places: Addresses,
    *,
    prefixes: Sequence[str],
    stop: threading.Event,
    once: bool = False,
) -> None:
    """Run the retrainings that are due until `stop` is set; with `once`, until none is due.

    Ticks are recorded and expired leases are reaped in separate threads, so a long retraining
    delays no other scheduler.
    """
    store, look_at = Timetables(ledger), time.monotonic()
    renewer = LeaseRenewer(ledger, places.checkpoints)

    def run(held: RunRecord) -> Mapping[str, Any]:
        key_format = ledger.study(held.study).spec.retrain.key_format
        key = key_of(held.fire_at, held.zone, key_format)
        return retrain(
            ledger,
            places,
            held.study,
            key,
            prefixes=prefixes,
            stop=stop,
            renewer=renewer,
            record_postponed=False,
        )

    log.info("scheduler started", scheduler=identity())
    with renewer.running(), _recording_ticks(store, stop), watching.delivering(ledger):
        while not stop.is_set():
            try:
                store.tick()
                held = store.claim(identity(), is_gone)
            except MigratedError:
                raise
            except UnavailableError as error:
                log.warning(f"timetables cannot be read for now: {error}")
                stop.wait(OUTAGE_RETRY_SECONDS)
                continue
            if held is None:
                if time.monotonic() >= look_at:
                    _promote_canaries(ledger, places)
                    look_at = time.monotonic() + CANARY_SECONDS
                if once:
                    break
                stop.wait(POLL_SECONDS)
                continue
            with renewer.holding(held.lease):
                _run(store, held, run, stop)
    log.info("scheduler ended", scheduler=identity())


def _promote_canaries(ledger: Ledger, places: Addresses) -> None:
    try:
        for one in canary.promote_due(ledger, places):
            log.info("canary ended", run_key=one.run_key, outcome=one.outcome, reason=one.reason)
    except TunerError as error:
        log.warning(f"canaries wait: {error}")


def _run(store: Timetables, held: RunRecord, run: Retrain, stop: threading.Event) -> None:
    """Retrain for one tick and commit the outcome."""
    at = run_key(held.fire_at)
    reach("scheduler.claimed")
    try:
        found = run(held)
        outcome, reason = str(found["outcome"]), str(found["reason"])
    except (UnavailableError, KeyboardInterrupt, LeaseLost) as error:
        store.release(held)
        log.warning(f"{held.timetable}, {at}: postponed: {error or 'interrupted'}")
        stop.wait(OUTAGE_RETRY_SECONDS)
        return
    except TunerError as error:
        outcome, reason = FAILED, str(error)
    except BaseException as error:  # raised by the workload; other timetables continue
        log.exception("a retraining raised", timetable=held.timetable, at=at)
        outcome, reason = FAILED, f"{type(error).__name__}: {error}"
    reach("scheduler.retrained")
    try:
        store.end(held, outcome, reason)
    except LeaseLost as error:  # the new holder finds the same result by its run key
        log.warning(str(error))
        return
    log.info("run ended", timetable=held.timetable, at=at, outcome=outcome, reason=reason)


def _recording_ticks(store: Timetables, stop: threading.Event) -> AbstractContextManager[None]:
    """Record ticks in a thread while the body runs."""

    def tick() -> None:
        if not stop.is_set():
            store.tick()

    return repeating("scheduler", tick, POLL_SECONDS)
