"""The scheduler: writes down the ticks of timetables, and retrains for each, once.

Any number of them may run. What one leaves that dies, another takes up: a tick is a row, and a
retraining goes on under the tick's time as its key.
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
from tuner.worker.lease_renewer import Keeper

POLL_SECONDS = 0.5
AWAY_SECONDS = 5.0
"""How long until a run is tried again that could not reach MLflow."""

log = logger(__name__)

Retrain = Callable[[RunRecord], Mapping[str, Any]]
"""Retrains for a tick; gives what `tuner retrain --json` prints."""


def schedule(
    ledger: Ledger,
    places: Addresses,
    *,
    prefixes: Sequence[str],
    stop: threading.Event,
    once: bool = False,
) -> None:
    """Run what timetables want until told to stop; with `once`, until nothing waits.

    Ticks are written down and leases reaped in threads of their own, so a long retraining delays
    no other scheduler.
    """
    store = Timetables(ledger, ledger.lease_seconds)

    def run(held: RunRecord) -> Mapping[str, Any]:
        key = key_of(held.fire_at)
        return retrain(ledger, places, held.study, key, prefixes=prefixes, stop=stop)

    log.info("scheduler started", scheduler=identity())
    with Keeper(ledger, places.checkpoints).working(), _ticking(store, stop):
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
            _run(store, held, run, stop)
    log.info("scheduler ended", scheduler=identity())


def _run(store: Timetables, held: RunRecord, run: Retrain, stop: threading.Event) -> None:
    """Retrain for one tick, and commit how that ended."""
    at = key_of(held.fire_at)
    reach("scheduler.claimed")
    with _kept(store, held):
        try:
            found = run(held)
            outcome, reason = str(found["outcome"]), str(found["reason"])
        except (UnavailableError, KeyboardInterrupt, LeaseLost) as error:
            store.release(held)
            log.warning(f"{held.timetable}, {at}: put off: {error or 'told to stop'}")
            stop.wait(AWAY_SECONDS)
            return
        except TunerError as error:
            outcome, reason = FAILED, str(error)
        except BaseException as error:  # of the workload's: no reason to retrain nothing else
            log.exception("a retraining raised", timetable=held.timetable, at=at)
            outcome, reason = FAILED, f"{type(error).__name__}: {error}"
        reach("scheduler.retrained")
        try:
            store.end(held, outcome, reason)
        except LeaseLost as error:  # its holder finds the same result by the key
            log.warning(str(error))
            return
    log.info("run ended", timetable=held.timetable, at=at, outcome=outcome, reason=reason)


def _ticking(store: Timetables, stop: threading.Event) -> AbstractContextManager[None]:
    """Write ticks down while the body runs."""

    def tick() -> None:
        if not stop.is_set():
            store.tick()

    return repeating("scheduler", tick, POLL_SECONDS)  # beside, as a retraining may take hours


def _kept(store: Timetables, held: RunRecord) -> AbstractContextManager[None]:
    """Renew the lease on a run while the body runs."""

    def renew() -> None:
        store.renew(held)

    return repeating("run's lease", renew, store.lease_seconds / 3)
