"""Running studies here: a worker in this process, and a recorder in one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuner.ledger import Ledger
from tuner.processes import RecorderProcess, told_to_stop
from tuner.worker import work


def train(
    ledger: Ledger,
    checkpoints: Path,
    *,
    names: Sequence[str],
    prefixes: Sequence[str],
    until_idle: bool,
    recorder: bool,
) -> bool:
    """Train trials here and publish them; tell whether all was done before a signal came."""
    beside = RecorderProcess(names) if recorder else None
    with told_to_stop() as stop:
        work(
            ledger,
            checkpoints,
            names=names,
            prefixes=prefixes,
            stop=stop,
            until_idle=until_idle,
        )
        interrupted = stop.is_set()
        if beside is not None:
            beside.close()
    return not interrupted
