"""The process that publishes the ledger: into Optuna's tables and into MLflow.

It holds nothing that the ledger does not hold, so it may be killed anywhere, and any other
recorder goes on. A study is published by one recorder at a time; no transaction of the ledger is
open while Optuna or MLflow is called.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Engine

from tuner.environment import identity
from tuner.ledger import Reader, StudyRecord
from tuner.storage import Addresses, optuna_storage, tracking_client, upgrade_tracking
from tuner.tracking.publications import Publications
from tuner.tracking.runs import RunPublisher
from tuner.tracking.trials import TrialPublisher

POLL_SECONDS = 0.5

log = logging.getLogger(__name__)


class Recorder:
    """Publishes studies from one ledger to Optuna and MLflow."""

    def __init__(self, engine: Engine, places: Addresses) -> None:
        upgrade_tracking(places)
        self._ledger = Reader(engine)
        self._identity = identity()
        self._publications = {name: Publications(engine, name) for name in ("optuna", "mlflow")}
        trials = TrialPublisher(optuna_storage(places), self._publications["optuna"])
        runs = RunPublisher(
            tracking_client(places),
            self._publications["mlflow"],
            self._ledger,
            artifacts_folder(places),
        )
        self._publishers = (trials, runs)

    def publish(self, names: Sequence[str] = ()) -> bool:
        """Publish all that is new once; tell whether there was anything."""
        moved = [self._publish(study) for study in self._studies(names)]
        return any(moved)

    def _studies(self, names: Sequence[str]) -> list[StudyRecord]:
        return [self._ledger.study(name) for name in names] or self._ledger.studies()

    def _publish(self, study: StudyRecord) -> bool:
        moved = False
        for publisher in self._publishers:
            publications = self._publications[publisher.target]
            if publications.claim(study.id, self._identity):
                moved |= publisher.publish(study)
        return moved

    def project_again(self, study: StudyRecord) -> None:
        """Publish a study as if nothing were published; what is there already stays as it is."""
        for publications in self._publications.values():
            publications.claim(study.id, self._identity)
            publications.forget(study.id)
        while self._publish(study):
            pass

    def release(self, names: Sequence[str] = ()) -> None:
        """Leave the studies to other recorders at once."""
        for study in self._studies(names):
            for publications in self._publications.values():
                publications.release(study.id, self._identity)


def artifacts_folder(places: Addresses) -> Path | None:
    """Give the folder of artifacts where MLflow is a file; a server has its own."""
    prefix = "sqlite:///"
    if not places.tracking.startswith(prefix):
        return None
    return Path(places.tracking.removeprefix(prefix)).resolve().parent / "mlartifacts"


def record(
    engine: Engine, places: Addresses, *, names: Sequence[str], closing: threading.Event
) -> None:
    """Publish until `closing` is set and nothing is left to publish."""
    recorder = Recorder(engine, places)
    while True:
        last = closing.is_set()  # looked at before publishing, so that nothing slips through
        moved = recorder.publish(names)
        if last and not moved:
            recorder.release(names)
            return
        if not moved:
            closing.wait(POLL_SECONDS)
