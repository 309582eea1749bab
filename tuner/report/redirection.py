"""Print whole lines above a live table, whoever prints them: prints, warnings and log handlers."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.text import Text


class LinesAbove(io.TextIOBase):
    """A stream in place of a terminal's: a console prints its lines above what is live there.

    An unfinished line waits for its end. What a carriage return would overwrite, as progress bars
    do, is left out. A forked process writes to the terminal: the console's locks are not its own.
    """

    def __init__(self, console: Console, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # where rich's consoles write to
        self._console = console
        self._unfinished = ""
        self._process = os.getpid()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The terminal's."""
        return self.rich_proxied_file.encoding

    def fileno(self) -> int:
        """Return the terminal's descriptor."""
        return self.rich_proxied_file.fileno()

    def isatty(self) -> bool:
        """Return False: nobody else may move the cursor."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Print the lines that end in a text."""
        if os.getpid() != self._process:
            return self.rich_proxied_file.write(text)
        *lines, last = (self._unfinished + text).split("\n")
        self._unfinished = _overwritten(last)
        for line in lines:
            self._print(_overwritten(line.rstrip("\r")))
        return len(text)

    def flush(self) -> None:
        """Do nothing: lines are printed as they end."""

    def finish(self) -> None:
        """Print what waits for its end."""
        if self._unfinished:
            self._print(self._unfinished.rstrip("\r"))
            self._unfinished = ""

    def _print(self, line: str) -> None:
        self._console.print(Text.from_ansi(line), soft_wrap=True)


def _overwritten(line: str) -> str:
    """Return what is left of a line on a terminal."""
    return line.rpartition("\r")[2] or line


@contextmanager
def printed_above(console: Console) -> Iterator[None]:
    """Let all lines for a terminal, from this process, be printed by a console."""
    before = {"stdout": sys.stdout, "stderr": sys.stderr}
    ours = {name: LinesAbove(console, stream) for name, stream in before.items() if stream.isatty()}
    to_ours = {
        id(stream): proxy
        for name, proxy in ours.items()
        for stream in (before[name], getattr(sys, f"__{name}__"))
    }
    vars(sys).update(ours)
    _exchange(to_ours)
    try:
        yield
    finally:
        vars(sys).update({name: before[name] for name in ours if getattr(sys, name) is ours[name]})
        _exchange({id(proxy): before[name] for name, proxy in ours.items()})
        for proxy in ours.values():
            proxy.finish()


def _exchange(streams: Mapping[int, TextIO | LinesAbove]) -> None:
    """Give the handlers of all loggers that write to a stream another one."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and id(handler.stream) in streams:
                handler.setStream(streams[id(handler.stream)])
