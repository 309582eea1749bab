"""Whatever a process prints while a live table is drawn stands above it, in whole lines."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import pytest
from rich.console import Console
from rich.live import Live

from tuner.report.redirection import redirect_output


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("tests.redirection")
    made.propagate = False
    yield made
    made.handlers.clear()


@contextmanager
def at_a_terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    with redirect_stdout(terminal), redirect_stderr(terminal):
        yield terminal


def drawn(body: Callable[[], object], before: Callable[[], object] = lambda: None) -> list[str]:
    """Print while a table is live; give the lines of the terminal without what moves the cursor."""
    with at_a_terminal() as terminal:
        before()
        console = Console(width=60, force_terminal=True, color_system=None)
        live = Live(
            "THE TABLE",
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with live, redirect_output(console):
            body()
    text = re.sub(r"[^\n]*\r\x1b\[2K", "", terminal.getvalue())  # what is erased again
    text = re.sub(r"\x1b\[[?0-9]*[a-zA-Z]", "", text)
    return [line for line in text.split("\n") if line]


def test_prints_logs_and_held_streams_do_not_tear_the_table(logger):
    handler = logging.StreamHandler()

    def before():  # as libraries do when they are imported
        handler.setStream(sys.stderr)
        logger.addHandler(handler)

    def body():
        logger.warning("of a handler that was there before")
        logger.addHandler(logging.StreamHandler(sys.stdout))
        logger.removeHandler(handler)
        logger.warning("of a handler that came later")
        sys.stdout.write("half a ")
        sys.stdout.write("line\n")
        sys.stderr.write("UserWarning: careful\n")  # as Python prints warnings
        sys.stderr.write("no end")

    lines = drawn(body, before)
    for whole in ("of a handler that was there before", "of a handler that came later",
                  "half a line", "UserWarning: careful", "no end"):  # fmt: skip
        assert whole in lines
    assert all(line == "THE TABLE" for line in lines if "THE TABLE" in line)
    assert lines[-1] == "THE TABLE"


def test_a_progress_bar_leaves_its_last_state_alone():
    def body():
        for percent in (0, 50, 100):
            sys.stderr.write(f"\r{percent} %")
            sys.stderr.flush()
        sys.stderr.write("\n")

    lines = drawn(body)
    assert [line for line in lines if "%" in line] == ["100 %"]


def test_what_was_there_is_there_again(logger):
    with at_a_terminal() as terminal:
        earlier = logging.StreamHandler()
        logger.addHandler(earlier)
        with redirect_output(Console()):
            later = logging.StreamHandler()
            logger.addHandler(later)
            assert terminal not in {sys.stdout, sys.stderr, earlier.stream, later.stream}
        assert sys.stdout is sys.stderr is earlier.stream is later.stream is terminal


def test_what_goes_into_a_file_still_does():
    file = io.StringIO()
    with at_a_terminal(), redirect_stdout(file), redirect_output(Console(stderr=True)):
        sys.stdout.write("a line\n")
    assert file.getvalue() == "a line\n"


def test_a_forked_process_needs_no_lock_of_ours(monkeypatch):
    def body():
        mine = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: mine + 1)
        sys.stdout.write("of a child\n")
        monkeypatch.setattr(os, "getpid", lambda: mine)

    assert "of a child" in "\n".join(drawn(body))
