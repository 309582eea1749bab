"""Pause, resume, stop and delete a study, with everything that belongs to it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from tuner.analysis import deciding
from tuner.core.environment import is_gone
from tuner.core.errors import NotFoundError, UnreadableError, UsageError
from tuner.core.failpoints import reach
from tuner.core.text import printable
from tuner.ledger import Ledger, Retrainings, StudyRecord, managing
from tuner.ledger.checkpoint_files import remove_all, remove_file
from tuner.ledger.database import Addresses, require_deletion, tracking_client
from tuner.ledger.retrainings import DONE, LOG
from tuner.operations import status
from tuner.operations.context import acting


def pause(ledger: Ledger, name: str, reason: str = "") -> dict[str, Any]:
    """Start no more trials; running ones continue. Return the study's status."""
    act = acting(reason)
    study = managing.pause(ledger, ledger.study(name), act)
    for again in _deciding(ledger, study):
        managing.pause(ledger, again)
    return status.status(ledger, study)


def resume(ledger: Ledger, name: str, reason: str = "") -> dict[str, Any]:
    """Reopen the study. Return its status."""
    act = acting(reason)
    study = managing.resume(ledger, ledger.study(name), act)
    for again in _deciding(ledger, study):
        managing.resume(ledger, again)
    return status.status(ledger, study)


def stop(ledger: Ledger, places: Addresses, name: str, reason: str = "") -> dict[str, Any]:
    """Cancel running and waiting trials and start no more. Return the study's status."""
    why = printable(reason.strip().rstrip("."))
    sentence = "Stopped by hand" + (f": {why}." if why else ".")
    study = managing.stop(ledger, ledger.study(name), sentence, acting(reason))
    for one in (study, *_deciding(ledger, study)):
        managing.stop(ledger, one, sentence)
        for record in managing.forget_checkpoints(ledger, one):
            remove_file(places.checkpoints, record)
    return status.status(ledger, study)


def _deciding(ledger: Ledger, study: StudyRecord) -> list[StudyRecord]:
    """Return the study of the trials that decide between those of a study, if there is one."""
    found = deciding.existing(ledger, study) if study.deciding_trials else None
    return [] if found is None else [found]


def delete(
    ledger: Ledger, places: Addresses, name: str, *, force: bool = False, reason: str = ""
) -> None:
    """Delete a study everywhere.

    Raise `UsageError` while workers train it, or if it made a champion that is in use, unless
    forced. The champion stays in the registry. Raise `UnavailableError` if this login may not.

    The ledger's rows are deleted last. Until then the study exists, stopped, and an interrupted
    deletion can be repeated: every step is idempotent.
    """
    study = ledger.identity(name)
    require_deletion(ledger.engine)
    with suppress(UnreadableError):
        for again in _deciding(ledger, ledger.study(name)):
            delete(ledger, places, again.name, force=force, reason=reason)
    ledger.reap(is_gone)
    live = [attempt for attempt in ledger.attempts(study.id) if attempt.live]
    if live and not force:
        workers = ", ".join(sorted({attempt.worker for attempt in live}))
        raise UsageError(
            f"study {name!r} is being trained by {workers}; `tuner stop` it first, or delete it "
            "with --force"
        )
    if not force and (served := _served(ledger, places, study.name)):
        raise UsageError(
            f"study {name!r} made {served}; without it `tuner predict` and `tuner retrain` do not "
            "know that model's weights; delete it with --force"
        )
    managing.cancel(ledger, study, managing.BEING_DELETED)
    reach("delete.stopped")
    from tuner.tracking.recorder import Recorder  # noqa: PLC0415 - seconds, only needed now

    recorder = Recorder(ledger.engine, places)
    while True:  # every version of it
        with recorder.claimed(study):
            recorder.erase(study)
            reach("delete.erased")
            remove_all(places.checkpoints, study)
            managing.delete_study(ledger, study, acting(reason))
        try:
            study = ledger.identity(name)
        except NotFoundError:
            recorder.close()
            return


def _served(ledger: Ledger, places: Addresses, name: str) -> str | None:
    """Return the champions in use that a study's retrainings made; None if there are none."""
    known = {
        (one.model, one.result[LOG]["version"])
        for one in Retrainings(ledger).history(name)
        if one.stage == DONE and one.result.get(LOG, {}).get("version") is not None
    }
    if not known:
        return None
    from tuner.tracking.mlflow.registry import Registry  # noqa: PLC0415 - seconds, seldom needed

    client, found = tracking_client(places), []
    for model in sorted({model for model, _ in known}):
        champion = Registry(client, model).champion()
        if champion is not None and (model, champion.number) in known:
            found.append(f"version {champion.number} of model {model!r}, the champion")
    return " and ".join(found) or None
