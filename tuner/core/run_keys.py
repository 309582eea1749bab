"""Run keys of retrainings: the key of an instant, and the time that a key names.

A format is one of `strftime`, such as `%Y-%m-%d`. What follows it in a key after a space, as in
`2026-03-04 again`, makes another key of the same time.
"""

from __future__ import annotations

from datetime import UTC, datetime

from tuner.core import cron
from tuner.core.curves import LATEST


def key_of(at: float, zone: str, key_format: str | None) -> str:
    """Return the run key of an instant: in a format, its time in a zone, else its time in UTC."""
    if key_format is None:
        return cron.run_key(at)
    return datetime.fromtimestamp(at, cron.zone_of(zone)).strftime(key_format)


def time_of(key: str, key_format: str | None) -> float | None:
    """Return the time that a key names, in seconds since 1970; None if it names none.

    Without a format, it is one of ISO 8601, such as 2026-03-04 or 2026-03-04T06:00:00Z. Times
    without a zone are compared as if they were in UTC.
    """
    if key_format is not None:
        words = len(key_format.split(" "))
        found = _parsed(" ".join(key.split(" ")[:words]), key_format)
    else:
        word = key.split(" ", 1)[0]
        found = _parsed(word, None) if word[4:5] == "-" else None
    if found is None:
        return None
    at = (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    return at if 0 <= at <= LATEST else None


def iso(at: float) -> str:
    """Return a time in ISO 8601, in UTC; a day without an hour is that day."""
    moment = datetime.fromtimestamp(at, UTC)
    return moment.date().isoformat() if moment.time() == datetime.min.time() else cron.run_key(at)


def _parsed(text: str, key_format: str | None) -> datetime | None:
    try:
        if key_format is None:
            return datetime.fromisoformat(text)
        return datetime.strptime(text, key_format)
    except (ValueError, OverflowError):
        return None
