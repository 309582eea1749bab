"""The exceptions, named by what the caller should do.

    TunerError                     base of all of ours; carries an exit code
    ├── UsageError                 fix the command or the study file (exit code 2)
    │   ├── StudyFileError         every mistake of a study file, at once
    │   └── WorkloadError          the workload cannot be imported, built or trusted
    │       └── WorkloadCodeError  its code raised; `__cause__` is the exception
    ├── NotFoundError              there is no such study or trial (exit code 2)
    ├── UnavailableError           start or repair the database or the tracking server (exit code 4)
    │   ├── ConnectionLostError    try again: the connection was lost or refused
    │   └── SchemaError            migrate the database, or upgrade tuner (exit code 4)
    │       └── MigratedError      start again: the database was migrated under this process
    ├── UnreadableError            repair or delete the row that cannot be read (exit code 1)
    ├── OutputError                free some space, or name another output folder (exit code 1)
    └── LeaseLost                  stop working on the attempt: another worker has it (exit code 1)

A trial that diverges, is pruned or fails raises no exception: its end is an `Outcome`, a value
with a kind and a reason.
"""

from __future__ import annotations


class TunerError(Exception):
    """Base of all errors that tuner raises on purpose; `str(error)` is a message for users."""

    exit_code = 1


class UsageError(TunerError):
    """The request cannot be fulfilled as it was made."""

    exit_code = 2


class StudyFileError(UsageError):
    """A file with mistakes; `problems` has one line for each, including the file's name."""

    def __init__(self, source: str, problems: list[str], what: str = "study file") -> None:
        self.source = source
        self.problems = problems
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__("\n".join([f"{count} in the {what}; nothing was created:", *problems]))


class WorkloadError(UsageError):
    """A workload that cannot be imported, is not allowed, or returns an unexpected type."""


class WorkloadCodeError(WorkloadError):
    """The workload's code raised; `__cause__` is the exception, of whatever type."""


class NotFoundError(UsageError):
    """There is no study or trial of that name."""


class UnavailableError(TunerError):
    """The database or the tracking server cannot be used."""

    exit_code = 4


class ConnectionLostError(UnavailableError):
    """The database cannot be reached; a transaction under way may be committed or not."""


class SchemaError(UnavailableError):
    """The database has a schema that this version does not know."""


class MigratedError(SchemaError):
    """The database was migrated while this process used it; whatever it would write is refused."""


class UnreadableError(TunerError):
    """A row of the ledger has content that tuner never writes."""


class OutputError(TunerError):
    """A report or another output cannot be written; the data is safe in the ledger."""


class LeaseLost(TunerError):  # noqa: N818 - an event, not an error of the caller
    """The fencing token was refused: the lease expired and another worker has the trial."""
