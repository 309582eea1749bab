"""A person's settings: addresses and project that are written once, in a file that only they read.

They stand for variables of the environment, which go first. The tracking server of the file belongs
to its database: the runs of another database, such as a file to try something, are not sent there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from urllib.parse import urlsplit

from tuner.core.errors import UsageError
from tuner.core.outputs import replacing, writing_into

DATABASE, TRACKING, PROJECT = "TUNER_DATABASE_URL", "MLFLOW_TRACKING_URI", "TUNER_PROJECT"
NAMES = {"database_url": DATABASE, "tracking_uri": TRACKING, "project": PROJECT}
"""The settings, and the variables that they stand for."""


def file(environment: Mapping[str, str]) -> Path | None:
    """Return the file of the settings: `TUNER_CONFIG`, or below the user's configuration.

    Return None if there is none.
    """
    named = environment.get("TUNER_CONFIG")
    if named is not None:
        return Path(named) if named else None
    if home := environment.get("XDG_CONFIG_HOME"):
        return Path(home) / "tuner" / "config.toml"
    home = environment.get("HOME")  # a service may have none
    return Path(home) / ".config" / "tuner" / "config.toml" if home else None


def read(path: Path | None) -> dict[str, str]:
    """Return the settings of a file; none if there is no file. Raise `UsageError`."""
    if path is None:
        return {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"the settings in {path} cannot be read: {error}") from error
    for key, value in found.items():
        if key not in NAMES or not isinstance(value, str):
            known = ", ".join(NAMES)
            raise UsageError(f"{path}: expected texts named {known}, got {key!r:.60}")
    return found


def write(path: Path, changes: Mapping[str, str]) -> dict[str, str]:
    """Change settings, of which an empty one is removed; return all. Raise `UsageError`.

    Nobody else may read the file: an address may have a password.
    """
    tracking = changes.get("tracking_uri")
    if tracking and urlsplit(tracking).scheme not in ("http", "https"):
        raise UsageError("the tracking server: expected an address that begins with http")
    from tuner.config import building  # takes long; most commands read settings alone
    from tuner.ledger import database

    if url := changes.get("database_url"):
        database.addresses({DATABASE: url}, path.parent)

    changed = {key: value for key, value in {**read(path), **changes}.items() if value}
    with writing_into(path.parent), replacing(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(building.toml(changed), encoding="utf-8")
    return changed


def apply(environment: MutableMapping[str, str]) -> None:
    """Set the variables that settings stand for, unless they are set. Raise `UsageError`."""
    found = read(file(environment))
    for key, name in NAMES.items():
        if key in found and key != "tracking_uri":
            environment.setdefault(name, found[key])
    if "tracking_uri" in found and _is_of_the_file(found, environment.get(DATABASE)):
        environment.setdefault(TRACKING, found["tracking_uri"])


def _is_of_the_file(found: Mapping[str, str], database: str | None) -> bool:
    """Return whether the database in use is the one whose tracking server the file names."""
    if "database_url" in found:
        return database == found["database_url"]
    return database is not None and not database.startswith("sqlite")
