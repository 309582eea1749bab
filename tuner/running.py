"""Running studies here: a worker in this process, and a recorder in one of its own."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import UsageError
from tuner.ledger import OPEN, Ledger, StudyRecord
from tuner.processes import RecorderProcess, told_to_stop
from tuner.worker import work


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How training here ended."""

    interrupted: bool  # by a signal, before all was trained
    published: bool  # all of it; False: the ledger has what Optuna or MLflow has not


def train(
    ledger: Ledger,
    checkpoints: Path,
    *,
    names: Sequence[str],
    prefixes: Sequence[str],
    until_idle: bool,
    recorder: bool,
) -> Ended:
    """Train trials here and publish them, until all is done or a signal comes.

    Raises `UsageError` when a study of `names` is paused or stopped.
    """
    for name in names:
        _refuse_closed(ledger.study(name))
    beside = RecorderProcess(names) if recorder else None
    with told_to_stop("saving the trial") as stop:
        work(
            ledger,
            checkpoints,
            names=names,
            prefixes=prefixes,
            stop=stop,
            until_idle=until_idle,
        )
        interrupted = stop.is_set()
        published = beside is None or beside.close()
    return Ended(interrupted=interrupted, published=published)


def closed_in_words(study: StudyRecord) -> str | None:
    """Say that a study is paused or stopped, why, and what to do; None when it is open."""
    if study.state == OPEN:
        return None
    return (
        f"study {study.name!r} is {study.state}: {study.reason} "
        f"`tuner resume {shlex.quote(study.name)}` opens it again"
    )


def _refuse_closed(study: StudyRecord) -> None:
    said = closed_in_words(study)
    if said is not None:
        raise UsageError(said)
