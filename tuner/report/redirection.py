"""Redirection of prints, warnings and log handlers to a console, above its live table."""

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


class ConsoleStream(io.TextIOBase):
    """A stream that replaces a terminal's; a console prints its lines above the live display.

    An unfinished line is kept until it ends. Text before a carriage return is dropped, as a
    terminal would overwrite it. A forked process writes to the terminal directly, since it does not
    share the console's locks.
    """

    def __init__(self, console: Console, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # rich's consoles write to it
        self._console = console
        self._unfinished = ""
        self._process = os.getpid()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the terminal."""
        return self.rich_proxied_file.encoding

    def fileno(self) -> int:
        """Return the terminal's descriptor."""
        return self.rich_proxied_file.fileno()

    def isatty(self) -> bool:
        """Return False: only the console may move the cursor."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Print the finished lines, and keep the last one until it ends."""
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
        """Print an unfinished line, if there is one."""
        if self._unfinished:
            self._print(self._unfinished.rstrip("\r"))
            self._unfinished = ""

    def _print(self, line: str) -> None:
        self._console.print(Text.from_ansi(line), soft_wrap=True)


def _overwritten(line: str) -> str:
    """Return the visible part of a line: the text after its last carriage return."""
    return line.rpartition("\r")[2] or line


@contextmanager
def redirect_output(console: Console) -> Iterator[None]:
    """Print this process's lines for the terminal with a console, while the body runs."""
    before = {"stdout": sys.stdout, "stderr": sys.stderr}
    proxies = {
        name: ConsoleStream(console, stream) for name, stream in before.items() if stream.isatty()
    }
    by_stream = {
        id(stream): proxy
        for name, proxy in proxies.items()
        for stream in (before[name], getattr(sys, f"__{name}__"))
    }
    vars(sys).update(proxies)
    _redirect_handlers(by_stream)
    try:
        yield
    finally:
        vars(sys).update(
            {name: before[name] for name in proxies if getattr(sys, name) is proxies[name]}
        )
        _redirect_handlers({id(proxy): before[name] for name, proxy in proxies.items()})
        for proxy in proxies.values():
            proxy.finish()


def _redirect_handlers(streams: Mapping[int, TextIO | ConsoleStream]) -> None:
    """Set the streams of log handlers that write to one of `streams`, keyed by id."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and id(handler.stream) in streams:
                handler.setStream(streams[id(handler.stream)])
