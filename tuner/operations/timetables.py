"""Timetables of retrainings: add, list, remove, and the results of their ticks."""

from __future__ import annotations

from typing import Any

from tuner.core.cron import Timetable, run_key
from tuner.ledger import Ledger
from tuner.ledger.timetables import TimetableRecord, Timetables
from tuner.operations.context import acting


def add(
    ledger: Ledger, study: str, when: Timetable, *, name: str | None = None, enabled: bool = True
) -> TimetableRecord:
    """Add or change the timetable of a study, by default of the study's name.

    Raise `UsageError` or `NotFoundError`.
    """
    known = ledger.study(study).name
    store = Timetables(ledger)
    return store.add(name or known, known, when, enabled=enabled, act=acting())


def timetables(ledger: Ledger) -> list[TimetableRecord]:
    """Return all timetables."""
    return Timetables(ledger).all()


def remove(ledger: Ledger, name: str) -> None:
    """Remove a timetable and its history. Raise `NotFoundError`."""
    Timetables(ledger).remove(name, acting())


def history(ledger: Ledger, name: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """Return the ticks of one timetable or of all, newest first, and the outcomes of their runs."""
    found = Timetables(ledger).history(name, limit)
    return [vars(one) | {"run_key": run_key(one.fire_at)} for one in found]


def as_json(one: TimetableRecord) -> dict[str, Any]:
    """Return what `--json` prints of a timetable."""
    about = {"name": one.name, "study": one.study, "enabled": one.enabled}
    return about | vars(one.when) | {"next": run_key(one.next_at)}
