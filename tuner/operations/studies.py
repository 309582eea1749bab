"""All studies of a database, or those of a project, an owner, a state, a tag or a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuner.ledger import Reader
from tuner.operations import status


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which studies to list; what is None or empty leaves none out."""

    project: str | None = None
    owners: tuple[str, ...] = ()  # users of the operating system, or database logins
    states: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()  # all of them
    since: float | None = None  # with activity since then, in seconds since 1970

    def has(self, found: dict[str, Any]) -> bool:
        """Return whether a study is wanted; one that cannot be read is listed without filters."""
        by = found.get("submitted") or {}
        return (
            self.project in (None, found.get("project"))
            and (not self.owners or bool({by.get("os_user"), by.get("db_role")} & {*self.owners}))
            and (not self.states or found["state"] in self.states)
            and {*self.tags} <= {*found.get("tags", ())}
            and (self.since is None or found.get("last_activity", 0.0) >= self.since)
        )


def studies(ledger: Reader, wanted: Wanted | None = None) -> list[dict[str, Any]]:
    """Return the states of studies, last active first, then those that cannot be read."""
    wanted = wanted or Wanted()
    readable, others = ledger.sorted_studies()
    unreadable = [status.unreadable(one) for one in others]
    known = status.statuses(ledger, readable)
    known.sort(key=lambda one: one["last_activity"], reverse=True)
    return [one for one in [*known, *unreadable] if wanted.has(one)]
