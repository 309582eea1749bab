"""The process that publishes the ledger: into Optuna's tables and into MLflow.

It holds nothing that the ledger does not hold, so it may be killed anywhere, and any other
recorder goes on. A study is published by one recorder at a time; no transaction of the ledger is
open while Optuna or MLflow is called.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from tuner.environment import identity
from tuner.errors import LeaseLost, TunerError, UnavailableError
from tuner.ledger import Reader, StudyRecord
from tuner.storage import Addresses, optuna_storage, tracking_client
from tuner.tracking.erasing import erase_runs
from tuner.tracking.publications import CLAIM_SECONDS, Publications
from tuner.tracking.runs import RunPublisher
from tuner.tracking.trials import TrialPublisher

POLL_SECONDS = 0.5
RETRY_SECONDS = 5.0
"""How long to wait before a target that could not be reached is tried again."""

log = logging.getLogger(__name__)


class Recorder:
    """Publishes studies from one ledger to Optuna and MLflow."""

    def __init__(self, engine: Engine, places: Addresses) -> None:
        self._ledger = Reader(engine)
        me = identity()
        self._publications = {name: Publications(engine, name, me) for name in ("optuna", "mlflow")}
        self._trials = TrialPublisher(optuna_storage(places), self._publications["optuna"])
        self._client = tracking_client(places)
        self._runs = RunPublisher(
            self._client,
            self._publications["mlflow"],
            self._ledger,
            artifacts_folder(places),
        )

    def publish(self, names: Sequence[str] = ()) -> bool:
        """Publish what is new and no other recorder is publishing; tell whether there was anything.

        Raises the first error after every study and both targets had their turn.
        """
        moved, errors = False, []
        for study, publisher in self._behind(names):
            publications = self._publications[publisher.target]
            if not publications.claim(study.id):
                continue
            try:
                publisher.publish(study)
                moved = True
            except LeaseLost as lost:
                log.warning("study %s: %s", study.name, lost)
            except TunerError as error:
                errors.append(error)
            finally:
                publications.release(study.id)
        if errors:
            raise errors[0]
        return moved

    def behind(self, names: Sequence[str] = ()) -> bool:
        """Tell whether there is anything to publish, by whomever."""
        return any(self._behind(names))

    def _behind(
        self, names: Sequence[str]
    ) -> Iterator[tuple[StudyRecord, TrialPublisher | RunPublisher]]:
        named = [study for name in names for study in self._ledger.versions(name)]
        studies = named or self._ledger.studies()
        for study in studies:
            for publisher in (self._trials, self._runs):
                if publisher.behind(study):
                    yield study, publisher

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
            for publisher in (self._trials, self._runs):
                self._publications[publisher.target].forget(study.id)
                while publisher.behind(study):
                    publisher.publish(study)

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


def artifacts_folder(places: Addresses) -> Path | None:
    """Give the folder of artifacts where MLflow is a file; a server has its own."""
    prefix = "sqlite:///"
    if not places.tracking.startswith(prefix):
        return None
    return Path(places.tracking.removeprefix(prefix)).resolve().parent / "mlartifacts"


def record(
    engine: Engine, places: Addresses, *, names: Sequence[str], closing: threading.Event
) -> None:
    """Publish until `closing` is set and nothing is left to publish.

    What cannot be reached is tried again until then, and `UnavailableError` only after it.
    """
    recorder = Recorder(engine, places)
    said = ""
    while True:
        last = closing.is_set()  # looked at before publishing, so that nothing slips through
        wait = POLL_SECONDS
        try:
            if recorder.publish(names):
                continue
            if last and not recorder.behind(names):
                return
        except TunerError as error:
            if last:
                raise
            if str(error) != said:
                log.warning("%s; trying on", error)
            said, wait = str(error), RETRY_SECONDS
        if last:  # another recorder is publishing the rest
            time.sleep(wait)
        else:
            closing.wait(wait)
