"""Check and escape text from outside before it is stored, printed or used as a name."""

from __future__ import annotations

import hashlib
import posixpath
import re

NAME_LIMIT = 250
"""The most characters of a study's name; MLflow's limit for run names."""

DEFAULT_PROJECT = "default"
"""The project of studies whose names have no slash."""
PROJECT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


def project_of(name: str) -> str:
    """Return the project of a study: what is before the first slash of its name."""
    before, slash, _ = name.partition("/")
    return before if slash and before else DEFAULT_PROJECT


def in_project(project: str, name: str) -> str:
    """Return the whole name of a study of a project."""
    if project == DEFAULT_PROJECT or name.startswith(f"{project}/"):
        return name
    return f"{project}/{name}"


def ago(seconds: float) -> str:
    """Return how long ago something was, such as `3 h ago`."""
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now" if seconds < 5 else f"{seconds:.0f} s ago"


def shortened(text: str, limit: int) -> str:
    """Cut a text to `limit` characters; a digest at its end keeps it unique."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def derived(name: str, what: str) -> str:
    """Return the name of a study derived from another study, within the limit."""
    return f"{shortened(name, NAME_LIMIT - 1 - len(what))} {what}"


def as_count(text: object) -> int | None:
    """Return the whole number that a text of up to ten digits is; None for anything else.

    Python raises for thousands of digits.
    """
    is_number = isinstance(text, str) and re.fullmatch("[0-9]{1,10}", text) is not None
    return int(str(text)) if is_number else None


def storable(text: str) -> str:
    """Escape what PostgreSQL stores in no text: the character 0, and halves of surrogate pairs."""
    return re.sub("[\\x00\\ud800-\\udfff]", lambda found: printable(found[0]), text)


def printable(text: str) -> str:
    """Escape characters that are not printable, such as control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Escape as `printable` does, but keep line ends and tabs."""
    if is_readable(text):
        return text
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def is_readable(text: str) -> bool:
    """Return whether a text has only printable characters, line ends and tabs."""
    return all(c.isprintable() or c in "\n\t" for c in text)


def is_metric_name(name: str) -> bool:
    """Return whether MLflow accepts a metric name, which it also uses as a path.

    A run with a refused name could never be published.
    """
    plain = re.fullmatch(r"[\w.\-/: ]{1,250}", name, re.ASCII) is not None
    return plain and posixpath.normpath(name) == name and not name.startswith((".", "/"))
