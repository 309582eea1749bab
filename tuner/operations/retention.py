"""Removing studies that are old enough, everywhere, but none that a champion came from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tuner.core.errors import UnavailableError
from tuner.ledger import Ledger, StudyRecord
from tuner.ledger.database import Addresses
from tuner.operations import manage
from tuner.tracking.mlflow.deletion import purge, with_champions

DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A study that is old enough, and why it stays."""

    study: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a rule says of the studies of a database."""

    remove: tuple[str, ...]
    kept: tuple[Kept, ...]


def plan(
    ledger: Ledger,
    places: Addresses,
    *,
    older_than: float,
    keep_newest: int = 0,
    keep: Collection[str] = (),
) -> Plan:
    """Find the studies in which nothing has happened for so many days.

    The `keep_newest` that moved last stay in any case, as do those named in `keep`. Raises
    `UnavailableError` where MLflow cannot say which champions there are.
    """
    now = ledger.now()
    moved = _last_moved(ledger)
    newest = sorted(moved, key=lambda name: moved[name], reverse=True)[:keep_newest]
    old = sorted(name for name, at in moved.items() if now - at >= older_than * DAY)
    champions = with_champions(places) if old else set()
    busy = {study.name for study in ledger.studies() if study.id in ledger.live_attempts()}
    reasons = {
        **dict.fromkeys(busy, "it is being trained"),
        **dict.fromkeys(newest, f"it is one of the newest {keep_newest}"),
        **dict.fromkeys(keep, "it is to be kept"),
        **dict.fromkeys(champions, "a model with an alias, such as a champion, comes from it"),
    }
    return Plan(
        remove=tuple(name for name in old if name not in reasons),
        kept=tuple(Kept(study=one, reason=reasons[one]) for one in old if one in reasons),
    )


def _last_moved(ledger: Ledger) -> dict[str, float]:
    """Say when something of a study, of whichever version, happened last."""
    moved: dict[str, float] = {}
    for study in ledger.studies():
        moved[study.name] = max(moved.get(study.name, 0.0), _moved(ledger, study))
    return moved


def _moved(ledger: Ledger, study: StudyRecord) -> float:
    return max(study.created_at, ledger.last_end(study.id) or 0.0)


def collect(ledger: Ledger, places: Addresses, made: Plan) -> tuple[list[str], str | None]:
    """Do what a plan says; give what MLflow removed for good, and why not where it could not.

    Interrupted, it may be run again: what is left of a study is found again.
    """
    for name in made.remove:
        manage.delete(ledger, places, name)
    try:
        return purge(places), None
    except UnavailableError as error:
        return [], str(error)
