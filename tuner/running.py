"""Running studies here: a worker in this process, and a recorder in one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.ledger import Ledger
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
    """Train trials here and publish them, until all is done or a signal comes."""
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
