"""The reason of a failed trial as a sentence, and its cause, by which failures are compared."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from tuner.core.errors import TunerError, WorkloadCodeError
from tuner.core.redaction import redacted
from tuner.core.text import printable

_SENTENCE = re.compile(r"The training code raised (\w+)(?:: .*)? \(([^()]*:\d+)\)\.", re.DOTALL)

LONGEST = 1000
"""The most characters of an exception's message that are stored."""
LONGEST_TRACEBACK = 20_000
"""The most characters of a traceback that are stored; the last ones are kept."""

_LIBRARIES = (
    Path(__file__).parent,
    *(Path(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib", "purelib", "platlib")),
)


class Cause(NamedTuple):
    """The type of an exception and the line that raised it; messages differ between trials."""

    error: str
    place: str  # file:line

    def __str__(self) -> str:
        return f"{self.error} at {self.place}"


def sentence(error: BaseException, workload: str = "") -> str:
    """Return a sentence with the exception of training code and the last line of the user's code.

    `workload` is the trial's, as module:function. A line of a library is named only if the
    traceback has no line of the user's code.
    """
    try:
        first = (str(error)[: 10 * LONGEST].splitlines() or [""])[0]
        message = printable(redacted(first))[:LONGEST]
    except Exception:  # raised by its __str__
        message = ""
    what = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"The training code raised {what} ({_place(error, workload.partition(':')[0])})."


def full_traceback(error: BaseException) -> str:
    """Return the printable traceback with its causes; if it is too long, its end."""
    text = "".join(traceback.format_exception(error)).rstrip()
    lines = redacted(text[-10 * LONGEST_TRACEBACK :]).split("\n")
    return "\n".join(map(printable, lines))[-LONGEST_TRACEBACK:]


@contextmanager
def workload_code() -> Iterator[None]:
    """Raise every exception of a workload's code in the body as `WorkloadCodeError`.

    That includes `SystemExit`, which must not end a process that trains other trials. Ctrl-C and
    our own errors are passed on.
    """
    try:
        yield
    except (KeyboardInterrupt, TunerError):
        raise
    except BaseException as error:
        raise WorkloadCodeError(sentence(error)) from error


def cause(reason: str | None) -> Cause | None:
    """Return the cause in a sentence of `sentence`; None for other reasons."""
    found = _SENTENCE.fullmatch(reason or "")
    return None if found is None else Cause(found[1], found[2])


def _place(error: BaseException, module: str) -> str:
    """Return file:line of the last frame of the user's code, or else of the last frame.

    An exception about another program has its `place`.
    """
    if isinstance(place := getattr(error, "place", None), str):
        return re.sub(r"[()]", "", place)
    frames = [found for one in _chain(error) for found in reversed([*_frames(one)])]
    users = (found for found in frames if _is_users(found[0], module))
    frame, line = next(users, next(iter(frames), (None, 0)))
    file = "unknown" if frame is None else Path(frame.f_code.co_filename).name
    return f"{re.sub(r'[()]', '', file)}:{line}"


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    return traceback.walk_tb(error.__traceback__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes and its contexts."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        yield found
        seen.add(id(found))
        found = found.__cause__ or found.__context__


def _is_users(frame: FrameType, module: str) -> bool:
    """Return whether a frame is of the workload's module or package, or of no library."""
    name, file = str(frame.f_globals.get("__name__")), frame.f_code.co_filename
    package = module.partition(".")[0]
    if name == module or (package not in ("", "tuner") and name.partition(".")[0] == package):
        return True
    path = Path(file)
    if file.startswith("<") or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(library) for library in _LIBRARIES)
