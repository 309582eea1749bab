"""Timetables of retrainings: add, list, remove, and the results of their ticks."""

from __future__ import annotations

from itertools import islice, pairwise
from typing import Any

from tuner.core import run_keys
from tuner.core.cron import Timetable, checked, run_key
from tuner.core.errors import NotFoundError, UnreadableError, UsageError
from tuner.ledger import Ledger
from tuner.ledger.timetables import TimetableRecord, Timetables
from tuner.operations.context import acting

TICKS = 8
"""How many ticks of a new timetable must have different run keys."""


def add(
    ledger: Ledger, study: str, when: Timetable, *, name: str | None = None, enabled: bool = True
) -> TimetableRecord:
    """Add or change the timetable of a study, by default of the study's name.

    Raise `UsageError` or `NotFoundError`.
    """
    found, store = ledger.study(study), Timetables(ledger)
    _refuse_equal_keys(when, found.spec.retrain.key_format, store.now())
    return store.add(name or found.name, found.name, when, enabled=enabled, act=acting())


def _refuse_equal_keys(when: Timetable, key_format: str | None, now: float) -> None:
    """Raise `UsageError` if two ticks that follow each other have the same run key."""
    if key_format is None:
        return
    for one, other in pairwise(islice(checked(when, now).fires(now), TICKS)):
        key = run_keys.key_of(one, when.zone, key_format)
        if key == run_keys.key_of(other, when.zone, key_format):
            raise UsageError(
                f"[retrain] key_format: {key_format!r} names the ticks {run_key(one)} and "
                f"{run_key(other)} both {key}, so the second would retrain nothing; expected a "
                "format that tells them apart, such as '%Y-%m-%dT%H:%M'"
            )


def timetables(ledger: Ledger) -> list[TimetableRecord]:
    """Return all timetables."""
    return Timetables(ledger).all()


def remove(ledger: Ledger, name: str) -> None:
    """Remove a timetable and its history. Raise `NotFoundError`."""
    Timetables(ledger).remove(name, acting())


def history(ledger: Ledger, name: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """Return the ticks of one timetable or of all, newest first, and the outcomes of their runs."""
    found = Timetables(ledger).history(name, limit)
    return [
        vars(one)
        | {"run_key": run_keys.key_of(one.fire_at, one.zone, _key_format(ledger, one.study))}
        for one in found
    ]


def as_json(ledger: Ledger, one: TimetableRecord) -> dict[str, Any]:
    """Return what `--json` prints of a timetable."""
    about = {"name": one.name, "study": one.study, "enabled": one.enabled}
    key = run_keys.key_of(one.next_at, one.when.zone, _key_format(ledger, one.study))
    return about | vars(one.when) | {"next": run_key(one.next_at), "next_key": key}


def _key_format(ledger: Ledger, study: str) -> str | None:
    """Return the format of a study's run keys; None if it has none or is gone."""
    try:
        return ledger.study(study).spec.retrain.key_format
    except (NotFoundError, UnreadableError):
        return None
