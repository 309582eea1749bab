"""Text that somebody else wrote: what may be stored, shown on a terminal, or be a name."""

from __future__ import annotations

import posixpath
import re


def printable(text: str) -> str:
    """Escape what a terminal would obey and a database refuse: control characters and the like."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_readable(text: str) -> bool:
    """Tell whether a text is printable characters, line ends and tabs, and nothing else."""
    return all(c.isprintable() or c in "\n\t" for c in text)


def is_metric_name(name: str) -> bool:
    """Tell whether a metric may be called so; MLflow makes paths of names, and checks them alike.

    One that it refused would keep its run from ever being published.
    """
    plain = re.fullmatch(r"[\w.\-/: ]{1,250}", name, re.ASCII) is not None
    return plain and posixpath.normpath(name) == name and not name.startswith((".", "/"))
