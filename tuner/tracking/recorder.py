"""The recorder publishes the ledger to Optuna's tables and to MLflow, retrying until it succeeds.

It keeps no state outside the ledger, so it may be killed at any point and another recorder
continues. One recorder at a time publishes a study to a target. No ledger transaction is open
during a call into Optuna or MLflow. Each target has its own thread, so that an unreachable target
does not delay the other.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from sqlalchemy import Engine

from tuner.core.environment import identity
from tuner.core.errors import ConnectionLostError, MigratedError, TunerError, UnavailableError
from tuner.ledger import Reader, StudyIdentity, StudyRecord
from tuner.ledger.database import Addresses, optuna_storage, reached, tracking_client, ui_address
from tuner.ledger.publications import CLAIM_SECONDS, Publications
from tuner.observability import metrics
from tuner.tracking.mlflow.deletion import erase_runs
from tuner.tracking.mlflow.publisher import RunPublisher
from tuner.tracking.optuna.publisher import TrialPublisher
from tuner.tracking.projection import Projection, Publisher

POLL_SECONDS = 0.5
RETRY_SECONDS = 1.0, 15.0
"""Delay before an unreachable target is tried again: initially, and at most."""
FINAL_RETRIES = 3
"""How many lost database connections are tolerated while the rest is published."""

log = logging.getLogger(__name__)


class Recorder:
    """Publishes studies from one ledger to Optuna and MLflow, in this order.

    Without `in_bulk` it uses their APIs even if it knows their tables.
    """

    def __init__(self, engine: Engine, places: Addresses, *, in_bulk: bool = True) -> None:
        ledger = Reader(engine)
        self._publications = {name: _publications(engine, name) for name in ("optuna", "mlflow")}
        with reached(places.ledger):
            storage = optuna_storage(places)
        self._trials = TrialPublisher(
            storage,
            self._publications["optuna"],
            engine,
            ui=ui_address(places.tracking),
            in_bulk=in_bulk,
        )
        self._client = tracking_client(places)
        self._runs = RunPublisher(
            self._client,
            self._publications["mlflow"],
            ledger,
            places.artifacts,
            in_bulk=in_bulk,
        )
        publishers: tuple[Publisher, ...] = (self._trials, self._runs)
        self.projections = {
            one.target: Projection(ledger, self._publications[one.target], one)
            for one in publishers
        }

    def publish(self, names: Sequence[str] = ()) -> bool:
        """Publish what is new in studies that no other recorder has claimed.

        Return whether there was anything. Raise the first error after trying every study and
        both targets.
        """
        published, errors = False, []
        for projection in self.projections.values():
            try:
                published = projection.publish(names) or published
            except TunerError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return published

    def behind(self, names: Sequence[str] = ()) -> bool:
        """Return whether anything is unpublished, also in studies that another recorder claims."""
        return any(projection.behind(names) for projection in self.projections.values())

    def republish(
        self,
        study: StudyRecord,
        *,
        delete_runs_of: Collection[int] = (),
        replace_trials: bool = False,
    ) -> None:
        """Publish a study as if nothing of it were published; existing records are completed.

        First delete duplicate runs, the runs of the trials `delete_runs_of` and, with
        `replace_trials`, the study in Optuna. Raise `UnavailableError` if another recorder does
        not release the study.
        """
        with self.claimed(study):
            self._runs.discard(study, delete_runs_of)
            if replace_trials:
                self._trials.discard(study)
            for projection in self.projections.values():
                projection.publications.forget(study.id)
                projection.finish(study)

    def close(self) -> None:
        """Close the connections to both targets."""
        for projection in self.projections.values():
            projection.close()

    def erase(self, study: StudyIdentity) -> None:
        """Delete all records of a claimed study from Optuna and MLflow."""
        erase_runs(self._client, study)
        self._trials.erase(study)

    @contextmanager
    def claimed(self, study: StudyIdentity) -> Iterator[None]:
        """Claim a study for both targets. Raise `UnavailableError` if another recorder keeps it."""
        try:
            for publications in self._publications.values():
                self._claim(study, publications)
            yield
        finally:
            for publications in self._publications.values():
                publications.release(study.id)

    def _claim(self, study: StudyIdentity, publications: Publications) -> None:
        deadline = time.monotonic() + 2 * CLAIM_SECONDS
        while not publications.claim(study.id):
            if time.monotonic() > deadline:
                raise UnavailableError(f"another recorder is publishing {study.title!r}; try later")
            time.sleep(POLL_SECONDS)


def _publications(engine: Engine, target: str) -> Publications:
    """Return this process's records of what it publishes to a target."""
    return Publications(engine, target, identity(), heartbeat=partial(metrics.heartbeat, target))


def open_trials(engine: Engine, places: Addresses) -> Projection:
    """Return the projection to Optuna's tables. Raise `UnavailableError` if unreachable."""
    publications = _publications(engine, TrialPublisher.target)
    with reached(places.ledger):
        storage, ui = optuna_storage(places), ui_address(places.tracking)
        publisher = TrialPublisher(storage, publications, engine, ui=ui)
    return Projection(Reader(engine), publications, publisher)


def open_runs(engine: Engine, places: Addresses) -> Projection:
    """Return the projection to MLflow. Raise `UnavailableError` if unreachable."""
    publications, ledger = _publications(engine, RunPublisher.target), Reader(engine)
    publisher = RunPublisher(tracking_client(places), publications, ledger, places.artifacts)
    return Projection(ledger, publications, publisher)


def record(
    engine: Engine,
    places: Addresses,
    *,
    names: Sequence[str],
    closing: threading.Event,
    may_be_deleted: bool = False,
) -> None:
    """Publish until `closing` is set and nothing is left to publish.

    Errors are retried until then. Afterwards raise `UnavailableError` for an unreachable target
    and `NotFoundError` for a study that does not exist, unless it `may_be_deleted` meanwhile.
    """
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    outages = Outages()

    def serve(target: str, opens: Callable[[Engine, Addresses], Projection]) -> None:
        def opened() -> Projection:
            for name in () if may_be_deleted else names:
                Reader(engine).study(name)
            return opens(engine, places)

        try:
            with metrics.expect_heartbeats(target):
                _serve(target, opened, names, closing, outages)
        except BaseException as error:
            ended.put(error)
        else:
            ended.put(None)

    targets = {"optuna": open_trials, "mlflow": open_runs}
    for name, opens in targets.items():
        # daemons, so that a second Ctrl-C does not wait for a target that hangs
        threading.Thread(target=serve, args=(name, opens), name=name, daemon=True).start()
    errors = []
    for _ in targets:
        error = ended.get()
        if error is not None and not isinstance(error, TunerError):
            raise error
        if error is not None:
            errors.append(error)
    if errors:
        raise errors[0]


def _serve(
    target: str,
    opens: Callable[[], Projection],
    names: Sequence[str],
    closing: threading.Event,
    outages: Outages,
) -> None:
    """Open a target and publish to it until `closing` is set and nothing is left."""
    projection: Projection | None = None
    tries = final_tries = 0
    while True:
        metrics.heartbeat(target)
        last = closing.is_set()  # read before publishing, so that the last pass sees everything
        wait = POLL_SECONDS
        try:
            projection = projection or opens()
            published = projection.publish(names, waiting=last)
            outages.clear()
            metrics.set_outage(target, active=False)
            tries = 0
            if published and last:
                continue
            if last and not projection.behind(names):
                projection.close()
                return
        except MigratedError:
            raise
        except TunerError as error:
            if last:
                final_tries += 1
                if final_tries > FINAL_RETRIES or not isinstance(error, ConnectionLostError):
                    raise
            outages.report(str(error))
            metrics.set_outage(target, active=True)
            first, limit = RETRY_SECONDS
            # with jitter, so that many recorders do not reconnect at the same moment
            wait = min(first * 2**tries, limit) * random.uniform(0.5, 1.0)  # noqa: S311
            tries = min(tries + 1, 10)
        if last:  # another recorder is publishing the rest
            time.sleep(wait)
        else:
            closing.wait(wait)


class Outages:
    """Logs each outage once, not at each attempt, across the targets' threads."""

    def __init__(self) -> None:
        self._messages: dict[str, str] = {}  # by thread, while its outage lasts
        self._lock = threading.Lock()

    def report(self, message: str) -> None:
        """Log an outage unless this thread has logged one, or another thread the same."""
        thread = threading.current_thread().name
        with self._lock:
            if thread not in self._messages and message not in self._messages.values():
                log.warning("%s; retrying", message)
            self._messages[thread] = message

    def clear(self) -> None:
        """End the outage of this thread."""
        with self._lock:
            self._messages.pop(threading.current_thread().name, None)
