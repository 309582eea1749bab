"""Pause, resume, stop and delete a study by its name, with all that belongs to it."""

from __future__ import annotations

import shutil
from typing import Any

from tuner.core.environment import is_gone
from tuner.core.errors import NotFoundError, UsageError
from tuner.core.failpoints import reach
from tuner.core.text import printable
from tuner.ledger import Ledger
from tuner.ledger import managing as ledger_governing
from tuner.ledger.database import Addresses
from tuner.operations import status


def pause(ledger: Ledger, name: str) -> dict[str, Any]:
    """Let no more trials be taken up; give the study's state."""
    study = ledger_governing.pause(ledger, ledger.study(name))
    return status.of_state(ledger, study)


def resume(ledger: Ledger, name: str) -> dict[str, Any]:
    """Open the study again; give its state."""
    study = ledger_governing.resume(ledger, ledger.study(name))
    return status.of_state(ledger, study)


def stop(ledger: Ledger, places: Addresses, name: str, reason: str = "") -> dict[str, Any]:
    """Cancel the trials that run or wait and take up no more; give the study's state."""
    said = printable(reason.strip().rstrip("."))
    sentence = "Stopped by hand" + (f": {said}." if said else ".")
    study = ledger_governing.stop(ledger, ledger.study(name), sentence)
    for path in ledger_governing.forget_checkpoints(ledger, study):
        (places.checkpoints / path).unlink(missing_ok=True)
    return status.of_state(ledger, study)


def delete(ledger: Ledger, places: Addresses, name: str, *, force: bool = False) -> None:
    """Delete a study everywhere. Raises `UsageError` while somebody trains it, unless forced.

    The ledger comes last: until then the study is there, stopped, and whatever is interrupted
    can be done again. Each step finds nothing to do where it was done before.
    """
    study = ledger.study(name)
    ledger.reap(is_gone)
    live = [attempt for attempt in ledger.attempts(study.id) if attempt.live]
    if live and not force:
        workers = ", ".join(sorted({attempt.worker for attempt in live}))
        raise UsageError(
            f"study {name!r} is being trained by {workers}; `tuner stop` it first, or delete it "
            "with --force"
        )
    ledger_governing.stop(ledger, study, ledger_governing.BEING_DELETED)
    reach("delete.stopped")
    from tuner.tracking.recorder import Recorder  # noqa: PLC0415 - seconds, only needed now

    recorder = Recorder(ledger.engine, places)
    while True:  # every version of it
        with recorder.claimed(study):
            recorder.erase(study)
            reach("delete.erased")
            shutil.rmtree(places.checkpoints / str(study.id), ignore_errors=True)
            ledger_governing.delete_study(ledger, study)
        try:
            study = ledger.study(name)
        except NotFoundError:
            recorder.close()
            return
