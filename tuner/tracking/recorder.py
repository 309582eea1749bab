"""The recorder: publishes the ledger into Optuna's tables and into MLflow, and never gives up.

It holds nothing that the ledger does not hold, so it may be killed anywhere, and any other
recorder goes on. A study is published to a target by one recorder at a time; no transaction of
the ledger is open while Optuna or MLflow is called. Each target has a thread of its own, so that
one that hangs or is away keeps nothing from the other.
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
from tuner.core.errors import ConnectionLostError, TunerError, UnavailableError
from tuner.ledger import Reader, StudyRecord
from tuner.ledger.database import Addresses, optuna_storage, reached, tracking_client
from tuner.ledger.publications import CLAIM_SECONDS, Publications
from tuner.observability import metrics
from tuner.tracking.mlflow.artifacts import served
from tuner.tracking.mlflow.deletion import erase_runs
from tuner.tracking.mlflow.publisher import RunPublisher
from tuner.tracking.optuna.publisher import TrialPublisher
from tuner.tracking.projection import Projection, Publisher

POLL_SECONDS = 0.5
RETRY_SECONDS = 1.0, 15.0
"""How long to wait before what could not be reached is tried again: at first, and at most."""
LAST_TRIES = 3
"""How often a connection to a database may be lost while the rest is published."""

log = logging.getLogger(__name__)


class Recorder:
    """Publishes studies from one ledger to Optuna and MLflow, one after the other.

    `in_bulk` lets it write into tables that it knows, instead of through their libraries.
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
            ui=served(places.tracking),
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
        """Publish what is new and no other recorder is publishing; tell whether there was anything.

        Raises the first error after every study and both targets had their turn.
        """
        moved, errors = False, []
        for projection in self.projections.values():
            try:
                moved = projection.publish(names) or moved
            except TunerError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return moved

    def behind(self, names: Sequence[str] = ()) -> bool:
        """Tell whether there is anything to publish, by whomever."""
        return any(projection.behind(names) for projection in self.projections.values())

    def project_again(
        self, study: StudyRecord, *, without: Collection[int] = (), trials_anew: bool = False
    ) -> None:
        """Publish a study as if nothing were published; what is there already stays as it is.

        Except the runs of the trials `without`, and second runs of a trial, which are deleted
        first, and with `trials_anew` all that Optuna has of the study. Raises `UnavailableError`
        when another recorder does not finish with the study.
        """
        with self.claimed(study):
            self._runs.discard(study, without)
            if trials_anew:
                self._trials.discard(study)
            for projection in self.projections.values():
                projection.publications.forget(study.id)
                projection.finish(study)

    def close(self) -> None:
        """Close the connections to both targets."""
        for projection in self.projections.values():
            projection.close()

    def erase(self, study: StudyRecord) -> None:
        """Delete all that Optuna and MLflow have of a claimed study, as far as they have it."""
        erase_runs(self._client, study)
        self._trials.erase(study)

    @contextmanager
    def claimed(self, study: StudyRecord) -> Iterator[None]:
        """Let no other recorder publish a study. Raises `UnavailableError` when one does on."""
        try:
            for publications in self._publications.values():
                self._claim(study, publications)
            yield
        finally:
            for publications in self._publications.values():
                publications.release(study.id)

    def _claim(self, study: StudyRecord, publications: Publications) -> None:
        deadline = time.monotonic() + 2 * CLAIM_SECONDS
        while not publications.claim(study.id):
            if time.monotonic() > deadline:
                raise UnavailableError(f"another recorder is publishing {study.title!r}; try later")
            time.sleep(POLL_SECONDS)


def _publications(engine: Engine, target: str) -> Publications:
    """Return this process's records of what it publishes to a target."""
    return Publications(engine, target, identity(), heartbeat=partial(metrics.turned, target))


def open_trials(engine: Engine, places: Addresses) -> Projection:
    """Open Optuna's tables. Raises `UnavailableError`."""
    publications = _publications(engine, TrialPublisher.target)
    with reached(places.ledger):
        storage, ui = optuna_storage(places), served(places.tracking)
        publisher = TrialPublisher(storage, publications, engine, ui=ui)
    return Projection(Reader(engine), publications, publisher)


def open_runs(engine: Engine, places: Addresses) -> Projection:
    """Open MLflow. Raises `UnavailableError`."""
    # it writes a traceback at each try; we say what is the matter, once
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    publications, ledger = _publications(engine, RunPublisher.target), Reader(engine)
    publisher = RunPublisher(tracking_client(places), publications, ledger, places.artifacts)
    return Projection(ledger, publications, publisher)


def record(
    engine: Engine, places: Addresses, *, names: Sequence[str], closing: threading.Event
) -> None:
    """Publish until `closing` is set and nothing is left to publish.

    What cannot be reached is tried again until then, and `UnavailableError` raised only after it;
    `NotFoundError` likewise where there is no study of a name.
    """
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    outages = Outages()

    def serve(target: str, opens: Callable[[Engine, Addresses], Projection]) -> None:
        def opened() -> Projection:
            for name in names:
                Reader(engine).study(name)
            return opens(engine, places)

        try:
            with metrics.looping(target):
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
    """Publish to one target, opened when it can be, until `closing` is set and nothing is left."""
    projection: Projection | None = None
    tries = last_tries = 0
    while True:
        metrics.turned(target)
        last = closing.is_set()  # looked at before publishing, so that nothing slips through
        wait = POLL_SECONDS
        try:
            projection = projection or opens()
            moved = projection.publish(names, waiting=last)
            outages.over()
            metrics.reached(target)
            tries = 0
            if moved and last:
                continue
            if last and not projection.behind(names):
                projection.close()
                return
        except TunerError as error:
            if last:
                last_tries += 1
                if last_tries > LAST_TRIES or not isinstance(error, ConnectionLostError):
                    raise
            outages.say(str(error))
            metrics.reached(target, away=True)
            first, most = RETRY_SECONDS
            # with jitter, so that many recorders do not come back at the same moment
            wait = min(first * 2**tries, most) * random.uniform(0.5, 1.0)  # noqa: S311
            tries = min(tries + 1, 10)
        if last:  # another recorder is publishing the rest
            time.sleep(wait)
        else:
            closing.wait(wait)


class Outages:
    """Says each outage once in the log, not at each try, whichever thread meets it."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}  # by thread, since it last got through
        self._lock = threading.Lock()

    def say(self, what: str) -> None:
        """Say it, unless this thread has said something already, or another one the same."""
        me = threading.current_thread().name
        with self._lock:
            if me not in self._said and what not in self._said.values():
                log.warning("%s; trying on", what)
            self._said[me] = what

    def over(self) -> None:
        """This thread has got through."""
        with self._lock:
            self._said.pop(threading.current_thread().name, None)
