"""Sending checkpoints to where they are kept, and removing those that killed workers left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from tuner.core.errors import UnavailableError
from tuner.core.file_stores import FileStore
from tuner.ledger import Reader, StudyRecord
from tuner.ledger.checkpoint_files import remove_others
from tuner.observability.logs import logger

R = TypeVar("R")

log = logger(__name__)


class Sender:
    """Writes and removes checkpoints, in the order of the calls.

    A folder is written at once. A bucket, which may be away for a minute, is written by a thread of
    its own, so that training goes on.
    """

    def __init__(self, store: FileStore) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(1, "checkpoints") if store.is_remote else None

    @contextmanager
    def running(self, stop: threading.Event) -> Iterator[None]:
        """Wait after the body until all calls are done; if it was stopped, for the one at work.

        What is not removed then, `sweep` removes later.
        """
        try:
            yield
        finally:
            if self._thread is not None:
                self._thread.shutdown(cancel_futures=stop.is_set())

    def submit(self, call: Callable[[], R]) -> Future[R]:
        """Do a call that uses the store; return its result, which a bucket has later."""
        if self._thread is not None:
            return self._thread.submit(call)
        done: Future[R] = Future()
        try:
            done.set_result(call())
        except (OSError, ValueError) as error:
            done.set_exception(error)
        return done


def require(checkpoints: FileStore) -> None:
    """Raise `UnavailableError` if checkpoints cannot be listed: a worker could resume nothing."""
    try:
        checkpoints.names("")
    except OSError as error:
        raise UnavailableError(f"the checkpoints cannot be read: {error}") from error


def clear(
    checkpoints: FileStore, ledger: Reader, study: StudyRecord, trial_id: int, number: int
) -> None:
    """Remove the checkpoints of a trial that has ended, but not the one that it keeps."""
    keeps = study.spec.training.keep_checkpoint
    kept = ledger.last_checkpoint(trial_id) if keeps else None
    remove_others(checkpoints, study, number, kept)


def sweep(checkpoints: FileStore, ledger: Reader, study: StudyRecord) -> None:
    """Remove the checkpoints of trials that ended, which killed workers left."""
    try:
        numbers = checkpoints.names(str(study.id))
    except OSError as error:  # they take space; no trial depends on it
        log.warning(f"study {study.name}: its checkpoints cannot be listed: {error}")
        return
    if not numbers:
        return
    for trial_id, number in ledger.ended(study.id):
        if str(number) in numbers:
            clear(checkpoints, ledger, study, trial_id, number)
