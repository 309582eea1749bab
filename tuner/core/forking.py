"""Descriptors of this process that forked children must not keep.

A program that this process starts inherits none of them (PEP 446). A child that is forked and
starts no program, such as a worker of a `DataLoader`, has a copy of each: while it lives, a pipe of
ours does not end, a port of ours stays taken, and a database believes that we are still there.

SQLite's files are not among them: locks are not inherited, and a child must not touch them.
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
_hooked: list[bool] = []  # not empty once children are looked after


def keep_from_children(file: HasDescriptor) -> None:
    """Let no child that is forked from now on keep a copy of a file's descriptor."""
    _ours.add(file)
    if not _hooked:
        _hooked.append(True)
        os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    """Put nothing in the place of each descriptor.

    Its number stays taken, as the child's copy of the object may close it at any time.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in tuple(_ours):
        try:
            os.dup2(nothing, file.fileno(), inheritable=False)
        except Exception:  # noqa: S112 - it is closed; each library says so in its own way
            continue
    os.close(nothing)
