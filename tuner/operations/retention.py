"""Remove old studies everywhere, except those that a champion came from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tuner.core.errors import UnavailableError
from tuner.ledger import Ledger, notifications
from tuner.ledger.database import Addresses
from tuner.ledger.summaries import last_activity
from tuner.operations import manage
from tuner.tracking.mlflow.deletion import purge, with_champions

DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A study that is old enough, and the reason to keep it."""

    study: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The studies that a rule removes and keeps."""

    older_than: float  # days
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
    """Find the studies without activity for `older_than` days.

    The `keep_newest` studies with the latest activity are kept, and so are those named in `keep`.
    Raise `UnavailableError` if the champions cannot be read from MLflow.
    """
    now = ledger.now()
    active = last_activity(ledger)
    newest = sorted(active, key=lambda name: active[name], reverse=True)[:keep_newest]
    old = sorted(name for name, at in active.items() if now - at >= older_than * DAY)
    champions = with_champions(places) if old else set()
    live = ledger.live_attempts()
    busy = {study.name for study in ledger.studies() if study.id in live}
    reasons = {
        **dict.fromkeys(busy, "it is being trained"),
        **dict.fromkeys(newest, f"it is one of the newest {keep_newest}"),
        **dict.fromkeys(keep, "it is named to be kept"),
        **dict.fromkeys(champions, "a model with an alias, such as a champion, comes from it"),
    }
    return Plan(
        older_than=older_than,
        remove=tuple(name for name in old if name not in reasons),
        kept=tuple(Kept(study=one, reason=reasons[one]) for one in old if one in reasons),
    )


def collect(ledger: Ledger, places: Addresses, planned: Plan) -> tuple[list[str], str | None]:
    """Remove the planned studies, and the content of notifications that are as old.

    Return the ids that MLflow purged, and why it could not.

    It may be repeated after an interruption: partly removed studies are found again.
    """
    for name in planned.remove:
        manage.delete(ledger, places, name, reason="It was old (tuner gc).")
    notifications.strip(ledger, planned.older_than * DAY)
    try:
        return purge(places), None
    except UnavailableError as error:
        return [], str(error)
