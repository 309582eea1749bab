"""Train studies: a worker in this process or several others, and a recorder process."""

from __future__ import annotations

import logging
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from tuner.analysis import deciding
from tuner.config import StudySpec
from tuner.core.errors import NotFoundError, UsageError, WorkloadError
from tuner.core.outcome import KINDS
from tuner.core.processes import RecorderProcess, Stop, stop_on_signals
from tuner.executors import Executor
from tuner.executors.local import LocalExecutor
from tuner.ledger import ENDED, OPEN, Ledger, StudyRecord
from tuner.ledger.database import Addresses, require_tracking
from tuner.ledger.managing import BEING_DELETED
from tuner.operations import best, context, submit
from tuner.report import progress
from tuner.training.programs import permission
from tuner.worker import work
from tuner.worker.lease_renewer import LeaseRenewer
from tuner.worker.loading import PreparedWorkload

WORKER_STARTS = 3
"""How many workers that died are replaced; the others continue their trials."""
POLL_SECONDS = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How training in this process ended."""

    interrupted: bool  # by a signal, before all was trained
    published: bool  # whether Optuna and MLflow have everything that the ledger has
    by_keyboard: bool = False  # interrupted by Ctrl-C


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a worker trains."""

    names: tuple[str, ...]  # of studies; empty: all open ones
    prefixes: tuple[str, ...]  # of modules that may be imported
    until_idle: bool
    device: str | None = None  # only studies for this device
    grace_seconds: float | None = None  # for publishing after an interruption; None: no limit

    def arguments(self) -> list[str]:
        """Return the equivalent arguments of `tuner worker`, without a recorder."""
        studies = [argument for name in self.names for argument in ("--study", name)]
        allowed = [argument for prefix in self.prefixes for argument in ("--allow", prefix)]
        device = ["--device", self.device] if self.device else []
        idle = ["--until-idle"] if self.until_idle else []
        return [*studies, *allowed, *device, *idle, "--no-recorder", "--log", "json"]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A study after `run`."""

    ledger: Ledger
    places: Addresses
    study: StudyRecord
    ended: Ended

    def as_json(self) -> dict[str, Any]:
        """Return what `tuner run --json` prints, without a report."""
        counts, shown = self.ledger.counts(self.study.id), self.places.shown()
        return (
            {
                "study": self.study.name,
                "trials": {kind: counts[kind] for kind in KINDS},
                "best": best.best(self.ledger, self.study),
                "tracking_uri": shown["mlflow"],
                "storage": shown["optuna"],
                "report": None,
            }
            | best.decision(self.ledger, self.study)
            | best.front(self.ledger, self.study)
        )


def run(
    spec: StudySpec,
    prefixes: Sequence[str],
    *,
    workers: int = 1,
    console: Console | None = None,
    announce: Callable[[str], None] | None = None,
) -> Ran:
    """Submit a study, train its trials and publish them; show progress on `console`, if any.

    `announce` gets a sentence if a new version of a known study was submitted. Raise `UsageError`
    and `WorkloadError` as `submit` does, and `UnavailableError` if this login may not publish,
    before anything is created. The command of `spec` is allowed, since the caller's file names it.
    """
    prefixes = (*prefixes, *permission.of_file(spec))
    prepared = submit.prepare(spec, prefixes)
    ledger, places = context.open_ledger(create=True), context.addresses()
    require_tracking(places)
    study, created = submit.submit(ledger, spec, prepared.description)
    if announce is not None and created and study.version > 1:
        announce(submit.in_words(ledger, study, created=True))
    ended = train_study(
        ledger, places, study, prefixes, prepared=prepared, workers=workers, console=console
    )
    try:
        study = ledger.study(study.name)
    except NotFoundError as error:
        raise NotFoundError(f"study {study.name!r} was deleted while it was trained") from error
    return Ran(ledger=ledger, places=places, study=study, ended=ended)


def train_study(
    ledger: Ledger,
    places: Addresses,
    study: StudyRecord,
    prefixes: Sequence[str],
    *,
    prepared: PreparedWorkload | None = None,
    workers: int = 1,
    console: Console | None = None,
    renewer: LeaseRenewer | None = None,
    race: Callable[[], int | None] | None = None,
) -> Ended:
    """Train what is left of one study and publish it; show progress on `console`, if any.

    `race` is as in `tuner.worker.work`.
    """
    todo = Work(names=(study.name,), prefixes=tuple(prefixes), until_idle=True)
    with nullcontext() if console is None else progress.show_progress(console, ledger, study):
        if workers == 1:
            return train(
                ledger, places, todo, recorder=True, prepared=prepared, renewer=renewer, race=race
            )
        executor = LocalExecutor(places.spill.with_name("logs") / str(study.id))
        return train_with(executor, ledger, todo, workers)


def train(
    ledger: Ledger,
    places: Addresses,
    todo: Work,
    *,
    recorder: bool,
    prepared: PreparedWorkload | None = None,
    renewer: LeaseRenewer | None = None,
    race: Callable[[], int | None] | None = None,
) -> Ended:
    """Train trials in this process and publish them, until all is done or a signal arrives.

    `prepared` is the workload of a study in `todo`, if it is built already. Raise `UsageError` if
    a named study is paused or stopped, and `UnavailableError` if this login may not publish.
    """
    for name in todo.names:
        _refuse_closed(ledger.study(name))
    if recorder:
        require_tracking(places)
    recorder_process = RecorderProcess(_recorded(ledger, todo.names)) if recorder else None
    with stop_on_signals("saving the trial") as stop, _left_on_error(recorder_process):
        with suppress(NotFoundError):  # every named study was deleted: there is nothing to train
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
                prepared=prepared,
                race=race,
            )
        return _ended(stop, recorder_process, todo.grace_seconds)


def _recorded(ledger: Ledger, names: Sequence[str]) -> list[str]:
    """Return the studies to publish: those of these names, and those that will decide on them."""
    found = [ledger.study(name) for name in names]
    again = [deciding.place(ledger, one)[0] for one in found if one.deciding_trials]
    return [*names, *again]


def train_with(executor: Executor, ledger: Ledger, todo: Work, workers: int) -> Ended:
    """Train with `workers` workers of an executor; publish from a recorder of this process.

    Workers that die are replaced, a few times. Raise `WorkloadError` if workers refuse a study.
    """
    for name in todo.names:
        _refuse_closed(ledger.study(name))
    recorder_process = RecorderProcess(_recorded(ledger, todo.names))
    doing = "the workers save their trials"
    with stop_on_signals(doing) as stop, _left_on_error(recorder_process):
        _keep_running(executor, todo.arguments(), workers, stop)
        return _ended(stop, recorder_process, todo.grace_seconds)


def _keep_running(executor: Executor, arguments: Sequence[str], workers: int, stop: Stop) -> None:
    """Keep `workers` workers running until all have ended by themselves."""
    alive = {executor.launch(arguments) for _ in range(workers)}
    starts_left, cancelled = WORKER_STARTS, False
    refused = False
    while alive:
        if stop.wait(POLL_SECONDS) and not cancelled:
            cancelled = True
            for handle in alive:
                executor.cancel(handle)
        if cancelled:
            time.sleep(POLL_SECONDS)
        for handle in sorted(alive):
            code = executor.poll(handle)
            if code is None:
                continue
            alive.discard(handle)
            refused = refused or code == UsageError.exit_code
            if code == 0 or cancelled or refused:
                continue
            log.warning(
                "%s ended with %d; %s",
                handle,
                code,
                "it is replaced" if starts_left else "it is not replaced",
            )
            if starts_left:
                starts_left -= 1
                alive.add(executor.launch(arguments))
    if refused:
        raise WorkloadError("the workers refuse the study; see their logs for the reason")


@contextmanager
def _left_on_error(recorder_process: RecorderProcess | None) -> Iterator[None]:
    """Leave the recorder to finish by itself if the body raises."""
    try:
        yield
    except BaseException:
        if recorder_process is not None:
            recorder_process.finish_in_background()
        raise


def _ended(
    stop: Stop, recorder_process: RecorderProcess | None, grace_seconds: float | None
) -> Ended:
    interrupted = stop.is_set()
    if recorder_process is not None:
        stop.doing = recorder_process.waiting
    limit = grace_seconds if interrupted else None
    published = recorder_process is None or recorder_process.close(limit)
    return Ended(
        interrupted=interrupted,
        published=published,
        by_keyboard=stop.by == signal.SIGINT,
    )


def closed_in_words(study: StudyRecord) -> str | None:
    """Return why a study is paused, stopped or ended, and what to do; None if it is open."""
    if study.state == OPEN:
        return None
    if study.state == ENDED:
        return f"study {study.name!r} has ended: {study.reason} A larger budget continues it"
    if study.reason == BEING_DELETED:
        return f"study {study.name!r} is {study.state}: {study.reason.removesuffix('.')}"
    return (
        f"study {study.name!r} is {study.state}: {study.reason} "
        f"`tuner resume {shlex.quote(study.name)}` reopens it"
    )


def _refuse_closed(study: StudyRecord) -> None:
    reason = closed_in_words(study)
    if reason is not None and study.state != ENDED:
        raise UsageError(reason)
