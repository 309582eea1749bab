"""The addresses and the ledger that the working directory and the environment name.

Every command uses this module, `tuner --help` too, so it imports the database when that is used.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.core.environment import person
from tuner.core.errors import UsageError
from tuner.core.text import DEFAULT_PROJECT, PROJECT_PATTERN, in_project
from tuner.operations import settings
from tuner.training.registration import ALLOWED_PREFIXES

if TYPE_CHECKING:
    from tuner.ledger import Ledger
    from tuner.ledger.database import Addresses
    from tuner.ledger.events import Act

PREFIXES = ALLOWED_PREFIXES
"""Prefixes of the modules that may be imported as workloads, unless others are named."""


def addresses() -> Addresses:
    """Return the addresses of the database, of MLflow and of the folders."""
    from tuner.ledger import database

    settings.apply(os.environ)
    return database.addresses(os.environ, Path.cwd())


def project() -> str:
    """Return the project of this process. Raise `UsageError` if it cannot be one."""
    settings.apply(os.environ)
    return checked_project(os.environ.get("TUNER_PROJECT") or DEFAULT_PROJECT)


def named_project() -> str | None:
    """Return the project that the environment or the settings name; None if they name none."""
    found = project()
    return found if os.environ.get("TUNER_PROJECT") else None


def checked_project(name: str) -> str:
    """Return the name of a project. Raise `UsageError` if it cannot be one."""
    if not re.fullmatch(PROJECT_PATTERN, name):
        raise UsageError(
            "the name of a project: expected up to 64 letters, digits, '.', '_' and '-', got "
            f"{name!r:.80}"
        )
    return name


def whole_name(name: str) -> str:
    """Return the name of a study with its project; a name with a slash has it already."""
    before, slash, after = name.partition("/")
    if slash:
        return after if before == DEFAULT_PROJECT else name
    return in_project(project(), name)


def acting(reason: str | None = None) -> Act:
    """Return what the user of this process asks for, and why, to be recorded in the ledger."""
    from tuner.ledger.events import Act

    return Act(by=person(), reason=reason)


def open_ledger(*, create: bool = False) -> Ledger:
    """Open the ledger; with `create`, create a missing one. Raise `UnavailableError`."""
    from tuner.ledger import LEASE_SECONDS, Ledger, database

    lease = float(os.environ.get("TUNER_LEASE_SECONDS", LEASE_SECONDS))
    return Ledger(database.open_ledger(addresses(), create=create), lease)
