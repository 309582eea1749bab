"""Who did what to a study, when and why."""

from __future__ import annotations

from typing import Any

from tuner.core.cron import run_key
from tuner.core.errors import NotFoundError
from tuner.ledger import Reader, events
from tuner.ledger.events import Event


def history(ledger: Reader, name: str) -> list[dict[str, Any]]:
    """Return what was done to a study of this name, oldest first, also of a deleted one.

    Raise `NotFoundError` if there never was one.
    """
    found = events.history(ledger, name)
    if not found:
        try:
            ledger.identity(name)
        except NotFoundError:
            raise NotFoundError(
                f"there is no study {name!r} and none of that name was deleted; `tuner studies` "
                "lists them"
            ) from None
    return [as_json(one) for one in found]


def as_json(event: Event) -> dict[str, Any]:
    """Return an event as `--json` prints it."""
    return {
        "at": event.happened_at,
        "action": event.action,
        "os_user": event.os_user,
        "host": event.host,
        "db_role": event.db_role,
        "reason": event.reason,
        "details": dict(event.details),
    }


def in_words(event: dict[str, Any]) -> str:
    """Return a line about an event."""
    who = f"{event['os_user']}@{event['host']}"
    if event["db_role"] is not None:
        who += f" (database login {event['db_role']})"
    details = "; ".join(
        f"{key.replace('_', ' ')}: {_value(value)}"
        for key, value in event["details"].items()
        if value not in (None, [])
    )
    shown = f"{run_key(event['at'])} {event['action']} by {who}"
    shown += f", {details}" if details else ""
    return f"{shown}. {event['reason'] or ''}".rstrip()


def _value(value: Any) -> str:
    """Return a detail: a list as its elements, a change of settings as what it was and is."""
    if isinstance(value, dict):
        pairs = (
            f"{key} {one[0]} -> {one[1]}" if isinstance(one, list) and len(one) == 2 else f"{key}"
            for key, one in value.items()
        )
        return ", ".join(pairs)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
