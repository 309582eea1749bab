"""How a trial failed, as a sentence; and the cause, which is what two failures have in common."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tuner.errors import TunerError, WorkloadCodeError
from tuner.texts import printable

_SENTENCE = re.compile(r"The training code raised (\w+)(?:: .*)? \(([^()]*:\d+)\)\.", re.DOTALL)


LONGEST = 1000
"""Characters of an exception's message that are kept."""


class Cause(NamedTuple):
    """The type of an exception and the place that raised it; messages differ between trials."""

    error: str
    place: str  # file:line

    def __str__(self) -> str:
        return f"{self.error} at {self.place}"


def sentence(error: BaseException) -> str:
    """Say in one sentence that training code raised, what, and where."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    name = re.sub(r"[()]", "", Path(frame.filename).name)
    message = printable((str(error).splitlines() or [""])[0])[:LONGEST]
    what = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"The training code raised {what} ({name}:{frame.lineno})."


@contextmanager
def workload_code() -> Iterator[None]:
    """Raise whatever a workload's code raises in the body as `WorkloadCodeError`.

    That includes `SystemExit` and its like: they must not end a process that trains for others.
    Ctrl-C must, and our own errors are passed on.
    """
    try:
        yield
    except (KeyboardInterrupt, TunerError):
        raise
    except BaseException as error:
        raise WorkloadCodeError(sentence(error)) from error


def cause(reason: str | None) -> Cause | None:
    """Read the cause from what `sentence` made; None of any other reason."""
    found = _SENTENCE.fullmatch(reason or "")
    return None if found is None else Cause(found[1], found[2])
