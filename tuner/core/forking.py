"""File descriptors of this process that forked children must not keep open.

A program that this process starts inherits none of them (PEP 446). A child that is forked without
starting a program, such as a worker of a `DataLoader`, has a copy of each. While it lives, our
pipes do not end, our ports stay in use, and the database keeps our connections.

SQLite's files are excluded: their locks are not inherited, and a child must not touch them.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class HasDescriptor(Protocol):
    """A file, a socket or a connection."""

    def fileno(self) -> int:
        """Return the descriptor; raise when it is closed."""


_ours: weakref.WeakSet[HasDescriptor] = weakref.WeakSet()
_hooked: list[bool] = []  # not empty once the hook is registered


def keep_from_children(file: HasDescriptor) -> None:
    """Replace a file's descriptor by /dev/null in children that are forked from now on."""
    _ours.add(file)
    if not _hooked:
        _hooked.append(True)
        os.register_at_fork(after_in_child=_replace_by_null)


def _replace_by_null() -> None:
    """Replace each descriptor by /dev/null.

    Its number stays in use, since the child's copy of the object may close it at any time.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for file in tuple(_ours):
        try:
            os.dup2(null, file.fileno(), inheritable=False)
        except Exception:  # noqa: S112 - closed; libraries raise different exceptions
            continue
    os.close(null)
