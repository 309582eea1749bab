"""A study belongs to the person who submitted it; others are asked before they change it.

This protects from mistakes, not from people: whoever may change a study in the database can answer
yes. On PostgreSQL the server says who has logged in; the user of the operating system is what the
process says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tuner.core.errors import UsageError
from tuner.ledger import Reader, events, projects
from tuner.ledger.events import Event
from tuner.operations.context import acting

Ask: TypeAlias = Callable[[str], None]
"""Gets a sentence on whose study is about to be changed; returns if it may be, else raises."""


def refuse(whose: str) -> None:
    """Raise `UsageError`, for a program, which nobody can ask."""
    raise UsageError(
        f"{whose}; say yes to change it all the same (--yes, in Python yes=True), or let the "
        "project be shared (`tuner project NAME --shared`)"
    )


def agree(_whose: str) -> None:
    """Change whatever is anybody's."""


def asking(*, yes: bool) -> Ask:
    """Return who answers for a program: `agree` if it says yes itself."""
    return agree if yes else refuse


def check(ledger: Reader, name: str, ask: Ask) -> None:
    """Ask before a study of somebody else is changed, unless its project is shared.

    Nothing is asked of a study that nobody submitted: one of an earlier version of tuner.
    """
    study = ledger.identity(name)
    submitted = events.latest(ledger, [study.name])[study.name].get(events.SUBMITTED)
    if submitted is None or _is_mine(ledger, submitted):
        return
    if not projects.project(ledger, study.project).shared:
        ask(f"study {study.name!r} was submitted by {submitted.who}")


def _is_mine(ledger: Reader, submitted: Event) -> bool:
    """Return whether the user and the login of this process submitted a study; not the machine."""
    same_user = submitted.os_user == acting().by.os_user
    return same_user and submitted.db_role == events.login(ledger)
