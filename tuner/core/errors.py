"""The exceptions, named by what the caller should do.

    TunerError                     base of all of ours; carries an exit code
    ├── UsageError                 mend the command or the study file (exit code 2)
    │   ├── StudyFileError         every mistake of a study file, at once
    │   └── WorkloadError          the workload cannot be imported, built or trusted
    │       └── WorkloadCodeError  its code raised; the cause of the error is what it raised
    ├── NotFoundError              there is no such study or trial (exit code 2)
    ├── UnavailableError           start or mend the database or the tracking server (exit code 4)
    │   ├── ConnectionLostError    try again: the connection was lost, or there is none just now
    │   └── SchemaError            migrate the database, or upgrade tuner (exit code 4)
    ├── OutputError                make room, or name another folder for output (exit code 1)
    └── LeaseLost                  stop working on the attempt: another worker has it (exit code 1)

A trial that diverges, is pruned or fails is no exception: it is an `Outcome`, a value with a
kind and a sentence.
"""

from __future__ import annotations


class TunerError(Exception):
    """Base of all errors that tuner raises on purpose; `str(error)` is meant for a person."""

    exit_code = 1


class UsageError(TunerError):
    """What was asked for cannot be done as it was asked."""

    exit_code = 2


class StudyFileError(UsageError):
    """A study file with mistakes; `problems` has one line for each, which names the file too."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__("\n".join([f"{count} in the study file; nothing was created:", *problems]))


class WorkloadError(UsageError):
    """A workload that cannot be imported, is not allowed, or returns the wrong thing."""


class WorkloadCodeError(WorkloadError):
    """The workload's code raised something; `__cause__` is what, also where it is no Exception."""


class NotFoundError(UsageError):
    """There is no study or trial of that name."""


class UnavailableError(TunerError):
    """The database or the tracking server cannot be used as it is now."""

    exit_code = 4


class ConnectionLostError(UnavailableError):
    """The database cannot be reached just now; whatever was under way may have been done or not."""


class SchemaError(UnavailableError):
    """The database has a schema that this version does not know."""


class OutputError(TunerError):
    """A report or another output cannot be written; what it would show is safe."""


class LeaseLost(TunerError):  # noqa: N818 - it is news, not a mistake
    """The fencing token was refused: the attempt was reaped and the trial belongs to another."""
