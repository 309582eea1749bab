"""Check and escape text from outside before it is stored, printed or used as a name."""

from __future__ import annotations

import hashlib
import posixpath
import re

NAME_LIMIT = 250
"""The most characters of a study's name; MLflow's limit for run names."""


def shortened(text: str, limit: int) -> str:
    """Cut a text to `limit` characters; a digest at its end keeps it unique."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def derived(name: str, what: str) -> str:
    """Return the name of a study derived from another study, within the limit."""
    return f"{shortened(name, NAME_LIMIT - 1 - len(what))} {what}"


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
