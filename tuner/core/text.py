"""Text that somebody else wrote: what may be stored, shown on a terminal, or be a name."""

from __future__ import annotations

import hashlib
import posixpath
import re

NAME_LIMIT = 250
"""How many characters the name of a study may have; MLflow's run names have no more."""


def shortened(text: str, limit: int) -> str:
    """Cut a text to so many characters; its digest at the end tells it from others cut alike."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def derived(name: str, what: str) -> str:
    """Name what comes of a study, as a study may be called."""
    return f"{shortened(name, NAME_LIMIT - 1 - len(what))} {what}"


def printable(text: str) -> str:
    """Escape what a terminal would obey and a database refuse: control characters and the like."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Escape as `printable` does, but keep line ends and tabs."""
    if is_readable(text):
        return text
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def is_readable(text: str) -> bool:
    """Tell whether a text is printable characters, line ends and tabs, and nothing else."""
    return all(c.isprintable() or c in "\n\t" for c in text)


def is_metric_name(name: str) -> bool:
    """Tell whether a metric may be called so; MLflow makes paths of names, and checks them alike.

    One that it refused would keep its run from ever being published.
    """
    plain = re.fullmatch(r"[\w.\-/: ]{1,250}", name, re.ASCII) is not None
    return plain and posixpath.normpath(name) == name and not name.startswith((".", "/"))
