"""Running studies: a worker in this process or several beside it, and a recorder of its own."""

from __future__ import annotations

import logging
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tuner.core.errors import NotFoundError, UsageError, WorkloadError
from tuner.core.processes import RecorderProcess, Stop, told_to_stop
from tuner.executors import Executor
from tuner.ledger import ENDED, OPEN, Ledger, StudyRecord
from tuner.ledger.database import Addresses
from tuner.ledger.managing import BEING_DELETED
from tuner.worker import work
from tuner.worker.lease_renewer import LeaseRenewer

WORKER_STARTS = 3
"""How often a worker is started again that dies; what it leaves, the others take up."""
POLL_SECONDS = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How training here ended."""

    interrupted: bool  # by a signal, before all was trained
    published: bool  # all of it; False: the ledger has what Optuna or MLflow has not
    by_keyboard: bool = False  # that signal was Ctrl-C's


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a worker does."""

    names: tuple[str, ...]  # of studies; none: all that are open
    prefixes: tuple[str, ...]  # of modules that may be imported
    until_idle: bool
    device: str | None = None  # only studies for this one
    grace_seconds: float | None = None  # for publishing, once told to stop; None: all of it

    def arguments(self) -> list[str]:
        """Give the arguments of `tuner worker` that mean this, without a recorder."""
        studies = [argument for name in self.names for argument in ("--study", name)]
        allowed = [argument for prefix in self.prefixes for argument in ("--allow", prefix)]
        device = ["--device", self.device] if self.device else []
        idle = ["--until-idle"] if self.until_idle else []
        return [*studies, *allowed, *device, *idle, "--no-recorder", "--log", "json"]


def train(
    ledger: Ledger,
    places: Addresses,
    todo: Work,
    *,
    recorder: bool,
    renewer: LeaseRenewer | None = None,
) -> Ended:
    """Train trials here and publish them, until all is done or a signal comes.

    Raises `UsageError` when a study that is named is paused or stopped.
    """
    for name in todo.names:
        _refuse_closed(ledger.study(name))
    beside = RecorderProcess(todo.names) if recorder else None
    with told_to_stop("saving the trial") as stop, _left_on_error(beside):
        with suppress(NotFoundError):  # all that was named was deleted: there is no more to train
            work(
                ledger,
                places.checkpoints,
                names=todo.names,
                prefixes=todo.prefixes,
                stop=stop,
                until_idle=todo.until_idle,
                device=todo.device,
                spill=places.spill,
                renewer=renewer,
            )
        return _ended(stop, beside, todo.grace_seconds)


def train_with(executor: Executor, ledger: Ledger, todo: Work, workers: int) -> Ended:
    """Train with so many workers of an executor's; publish from here.

    One that dies is started again, a few times. Raises `WorkloadError` when workers refuse a study.
    """
    for name in todo.names:
        _refuse_closed(ledger.study(name))
    beside = RecorderProcess(todo.names)
    with told_to_stop("the workers save their trials") as stop, _left_on_error(beside):
        _watch(executor, todo.arguments(), workers, stop)
        return _ended(stop, beside, todo.grace_seconds)


def _watch(executor: Executor, arguments: Sequence[str], workers: int, stop: Stop) -> None:
    """Keep so many workers at work until all have ended by themselves."""
    alive = {executor.launch(arguments) for _ in range(workers)}
    starts_left, told = WORKER_STARTS, False
    refused = False
    while alive:
        if stop.wait(POLL_SECONDS) and not told:
            told = True
            for handle in alive:
                executor.cancel(handle)
        if told:
            time.sleep(POLL_SECONDS)
        for handle in sorted(alive):
            code = executor.poll(handle)
            if code is None:
                continue
            alive.discard(handle)
            refused = refused or code == UsageError.exit_code
            if code == 0 or told or refused:
                continue
            log.warning("%s ended with %d%s", handle, code, "" if starts_left else "; no more")
            if starts_left:
                starts_left -= 1
                alive.add(executor.launch(arguments))
    if refused:
        raise WorkloadError("the workers refuse the study; their logs say why")


@contextmanager
def _left_on_error(beside: RecorderProcess | None) -> Iterator[None]:
    """Let the recorder finish by itself when the body is left by an error."""
    try:
        yield
    except BaseException:
        if beside is not None:
            beside.leave()
        raise


def _ended(stop: Stop, beside: RecorderProcess | None, grace_seconds: float | None) -> Ended:
    interrupted = stop.is_set()
    if beside is not None:
        stop.doing = beside.waiting
    published = beside is None or beside.close(grace_seconds if interrupted else None)
    return Ended(
        interrupted=interrupted,
        published=published,
        by_keyboard=stop.by == signal.SIGINT,
    )


def closed_in_words(study: StudyRecord) -> str | None:
    """Say that a study is paused, stopped or has ended, why, and what to do; None when open."""
    if study.state == OPEN:
        return None
    if study.state == ENDED:
        return f"study {study.name!r} has ended: {study.reason} A larger budget goes on"
    if study.reason == BEING_DELETED:
        return f"study {study.name!r} is {study.state}: {study.reason.removesuffix('.')}"
    return (
        f"study {study.name!r} is {study.state}: {study.reason} "
        f"`tuner resume {shlex.quote(study.name)}` opens it again"
    )


def _refuse_closed(study: StudyRecord) -> None:
    said = closed_in_words(study)
    if said is not None and study.state != ENDED:
        raise UsageError(said)
