"""The scheduler: inserts a run for each tick of a timetable, and retrains once for each run.

Any number of schedulers may run. When one dies, another resumes its run: a tick is a row, and its
retraining has the time of the tick as its run key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tuner.core.cron import key_of
from tuner.core.environment import identity, is_gone
from tuner.core.errors import LeaseLost, TunerError, UnavailableError
from tuner.core.failpoints import reach
from tuner.ledger import Ledger
from tuner.ledger.database import Addresses
from tuner.ledger.retrainings import FAILED
from tuner.ledger.timetables import RunRecord, Timetables
from tuner.observability.logs import logger
from tuner.observability.repeating import repeating
from tuner.operations.retrain import retrain
from tuner.worker.lease_renewer import LeaseRenewer

POLL_SECONDS = 0.5
AWAY_SECONDS = 5.0
"""How long to wait after the database or MLflow could not be reached."""

log = logger(__name__)

Retrain = Callable[[RunRecord], Mapping[str, Any]]
"""Retrains for a run; returns what `tuner retrain --json` prints."""


def schedule(
    ledger: Ledger,
    places: Addresses,
    *,
    prefixes: Sequence[str],
    stop: threading.Event,
    once: bool = False,
) -> None:
    """Do the runs of timetables until `stop` is set; with `once`, until none waits.

    Ticks are inserted, and leases renewed and reaped, in threads of their own, so that a long
    retraining delays no other scheduler.
    """
    store = Timetables(ledger)
    renewer = LeaseRenewer(ledger, places.checkpoints)

    def run(held: RunRecord) -> Mapping[str, Any]:
        key = key_of(held.fire_at)
        return retrain(
            ledger, places, held.study, key, prefixes=prefixes, stop=stop, renewer=renewer
        )

    log.info("scheduler started", scheduler=identity())
    with renewer.running(), _ticking(store, stop):
        while not stop.is_set():
            try:
                store.tick()
                held = store.claim(identity(), is_gone)
            except UnavailableError as error:
                log.warning(f"timetables cannot be read for now: {error}")
                stop.wait(AWAY_SECONDS)
                continue
            if held is None:
                if once:
                    break
                stop.wait(POLL_SECONDS)
                continue
            with renewer.holding(held.lease):
                _run(store, held, run, stop)
    log.info("scheduler ended", scheduler=identity())


def _run(store: Timetables, held: RunRecord, run: Retrain, stop: threading.Event) -> None:
    """Retrain for one tick, and commit how that ended."""
    at = key_of(held.fire_at)
    reach("scheduler.claimed")
    try:
        found = run(held)
        outcome, reason = str(found["outcome"]), str(found["reason"])
    except (UnavailableError, KeyboardInterrupt, LeaseLost) as error:
        store.release(held)
        log.warning(f"{held.timetable}, {at}: put off: {error or 'asked to stop'}")
        stop.wait(AWAY_SECONDS)
        return
    except TunerError as error:
        outcome, reason = FAILED, str(error)
    except BaseException as error:  # the workload's: other retrainings go on
        log.exception("a retraining raised", timetable=held.timetable, at=at)
        outcome, reason = FAILED, f"{type(error).__name__}: {error}"
    reach("scheduler.retrained")
    try:
        store.end(held, outcome, reason)
    except LeaseLost as error:  # its holder finds this result by the run key
        log.warning(str(error))
        return
    log.info("run ended", timetable=held.timetable, at=at, outcome=outcome, reason=reason)


def _ticking(store: Timetables, stop: threading.Event) -> AbstractContextManager[None]:
    """Insert runs for ticks while the body runs."""

    def tick() -> None:
        if not stop.is_set():
            store.tick()

    return repeating(
        "scheduler", tick, POLL_SECONDS
    )  # in a thread, since a retraining may take hours
