"""Cron expressions with time zones: next fire times, due and missed ticks.

Instants are seconds since 1970. An expression has five fields, or six with seconds first. One at
fixed times follows Debian's cron over clock changes: what is due in the hour that is left out in
spring fires once right after it, and what is due in the hour that comes twice in autumn fires once,
in the first of the two. One with `*` for the minute or the hour fires by elapsed time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from tuner.core.errors import UsageError

LATEST, ALL, SKIP, QUEUE = "latest", "all", "skip", "queue"
"""How to handle missed ticks (latest, all, skip), and ticks during an earlier run (skip, queue)."""
AT_ONCE = 1000
"""The most ticks of one call; the next call continues."""


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """When to retrain a study, and how to handle late and overlapping ticks."""

    expression: str
    zone: str  # IANA's name
    grace: float = 60.0  # seconds after which a tick that was not handled counts as missed
    catch_up: str = LATEST
    overlap: str = SKIP

    def fires(self, after: float) -> Iterator[float]:
        """Yield the instants above `after` in ascending order."""
        zone = zone_of(self.zone)
        last = after
        for moment in CronSim(self.expression, datetime.fromtimestamp(after, zone)):
            at = moment.timestamp()
            # around a clock change the library may repeat an instant, or yield an earlier one
            if at > last:
                last = at
                yield at

    def next(self, after: float) -> float:
        """Return the first instant above `after`."""
        return next(self.fires(after))


@dataclass(frozen=True, kw_only=True)
class Due:
    """The ticks that are due since a timetable was last handled."""

    run: tuple[float, ...]  # ticks to run, in ascending order
    late: int  # how many of them, the first ones, were missed and are caught up
    missed: float | None  # the last missed tick that is not run
    handled_until: float  # all ticks up to this instant are handled
    next: float  # the first tick after that


def checked(timetable: Timetable, now: float) -> Timetable:
    """Return the timetable. Raise `UsageError` if its expression or zone is invalid."""
    try:
        zone_of(timetable.zone)
    except (KeyError, ValueError, OSError):
        raise UsageError(
            f"zone: expected a name of the IANA time zone database such as Europe/Berlin or UTC, "
            f"got {timetable.zone!r}"
        ) from None
    try:
        timetable.next(now)
    except CronSimError as error:
        raise UsageError(
            "cron: expected an expression of five fields (minute, hour, day of month, month, day "
            f"of week) or six with seconds first, such as '0 6 * * *', got "
            f"{timetable.expression!r}: {error}"
        ) from None
    except (StopIteration, RuntimeError):
        raise UsageError(
            f"cron: expected an expression that fires within 50 years, got {timetable.expression!r}"
        ) from None
    return timetable


def due(timetable: Timetable, handled_until: float, now: float) -> Due:
    """Return what to do with the ticks above `handled_until` and up to `now`.

    A tick is missed if it is handled later than the grace after it. All missed ticks are run, or
    the latest one unless a tick in time follows it, or none.
    """
    in_time = max(handled_until, now - timetable.grace)
    if timetable.catch_up == ALL:
        missed = _until(timetable, handled_until, in_time)
    else:
        latest = _last(timetable, handled_until, in_time)
        missed = [] if latest is None else [latest]
    if len(missed) == AT_ONCE:  # more missed ticks may follow, before those in time
        return Due(
            run=tuple(missed),
            late=len(missed),
            missed=None,
            handled_until=missed[-1],
            next=timetable.next(missed[-1]),
        )
    fresh = _until(timetable, in_time, now)
    caught = (
        missed if timetable.catch_up == ALL or (not fresh and timetable.catch_up == LATEST) else []
    )
    reached = fresh[-1] if len(fresh) == AT_ONCE else now
    return Due(
        run=(*caught, *fresh),
        late=len(caught),
        missed=missed[-1] if missed and not caught else None,
        handled_until=reached,
        next=timetable.next(reached),
    )


def run_key(at: float) -> str:
    """Return the run key of an instant: its time in UTC, such as 2026-11-22T06:00:00Z."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _until(timetable: Timetable, after: float, until: float) -> list[float]:
    """Return the first ticks above `after` and up to `until`."""
    found = []
    for at in islice(timetable.fires(after), AT_ONCE):
        if at > until:
            break
        found.append(at)
    return found


def _last(timetable: Timetable, after: float, until: float) -> float | None:
    """Return the last tick above `after` and up to `until`; search backwards in growing spans."""
    span = 60.0
    while True:
        start = max(after, until - span)
        found = None
        for at in timetable.fires(start):
            if at > until:
                break
            found = at
        if found is not None or start == after:
            return found
        span *= 4


def zone_of(name: str) -> tzinfo:
    """Return a time zone; the library is faster with its own object for UTC."""
    return UTC if name == "UTC" else ZoneInfo(name)
