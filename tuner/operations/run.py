"""Train studies: a worker in this process or several others, and a recorder process."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from tuner.analysis import deciding
from tuner.config import StudySpec
from tuner.config.cluster import ClusterSpec
from tuner.core.errors import NotFoundError, UnavailableError, UsageError, WorkloadError
from tuner.core.executors import LOCAL
from tuner.core.outcome import KINDS
from tuner.core.processes import RecorderProcess, Stop, stop_on_signals
from tuner.executors import WorkerState
from tuner.ledger import Ledger, StudyRecord, launches
from tuner.ledger.database import Addresses, require_tracking
from tuner.ledger.launches import Launch
from tuner.operations import best, context, submit
from tuner.operations.ownership import Ask, refuse
from tuner.operations.workers import Fleet, executor_of, refuse_closed, worker_arguments
from tuner.report import progress
from tuner.training.programs import permission
from tuner.worker import work
from tuner.worker.lease_renewer import LeaseRenewer
from tuner.worker.loading import PreparedWorkload

WORKER_STARTS = 3
"""How many workers that died are replaced; the others continue their trials."""
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
    without: tuple[str, ...] = ()  # patterns of names of studies that are left to others
    device: str | None = None  # only studies for this device
    publish_seconds: float | None = None  # after an interruption; None: no limit
    grace_seconds: float | None = None  # to save trials after an interruption; None: no limit
    stopped_code: int = 0  # exit code where the grace is over
    about: Mapping[str, Any] = field(default_factory=dict)  # for the records of its attempts


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
    executor: str = LOCAL,
    settings: ClusterSpec | None = None,
    console: Console | None = None,
    announce: Callable[[str], None] | None = None,
    ask: Ask = refuse,
) -> Ran:
    """Submit a study, train its trials and publish them; show progress on `console`, if any.

    `announce` gets a sentence if a new version of a known study was submitted. Raise `UsageError`
    and `WorkloadError` as `submit` does, and `UnavailableError` if this login may not publish,
    before anything is created. Several workers, or those of another `executor`, are processes of
    their own; they get what `settings` say. `ask` is as in `submit`. The command of `spec` is
    allowed, since the caller's file names it.
    """
    prefixes = (*prefixes, *permission.of_file(spec))
    if executor != LOCAL:  # refused before anything is created
        executor_of(executor, settings or ClusterSpec(), context.addresses(), 0)
    prepared = submit.prepare(spec, prefixes)
    ledger, places = context.open_ledger(create=True), context.addresses()
    require_tracking(places)
    study, created = submit.submit(ledger, spec, prepared.description, ask)
    if announce is not None and created and study.version > 1:
        announce(submit.in_words(ledger, study, created=True))
    ended = train_study(
        ledger,
        places,
        study,
        prefixes,
        prepared=prepared,
        workers=workers,
        executor=executor,
        settings=settings,
        console=console,
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
    executor: str = LOCAL,
    settings: ClusterSpec | None = None,
    console: Console | None = None,
    renewer: LeaseRenewer | None = None,
    race: Callable[[], int | None] | None = None,
) -> Ended:
    """Train what is left of one study and publish it; show progress on `console`, if any.

    `race` is as in `tuner.worker.work`.
    """
    todo = Work(names=(study.name,), prefixes=tuple(prefixes), until_idle=True)
    settings = settings or ClusterSpec()
    with nullcontext() if console is None else progress.show_progress(console, ledger, study):
        if workers == 1 and executor == LOCAL:
            return train(
                ledger, places, todo, recorder=True, prepared=prepared, renewer=renewer, race=race
            )
        fleet = Fleet(
            ledger=ledger,
            study=study,
            executor=executor_of(executor, settings, places, study.id, end_with_this=True),
            resources=settings.worker,
            arguments=worker_arguments(
                todo.names, todo.prefixes, until_idle=todo.until_idle, recorder=False
            ),
        )
        return train_with(fleet, workers)


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
        refuse_closed(ledger.study(name))
    if recorder:
        require_tracking(places)
    recorder_process = RecorderProcess(_recorded(ledger, todo.names)) if recorder else None
    renewer = renewer or LeaseRenewer(ledger, places.checkpoints)
    with stop_on_signals("saving the trial") as stop, _left_on_error(recorder_process):
        if todo.grace_seconds is not None:
            renewer.leave_within(todo.grace_seconds, stop, todo.stopped_code)
        with suppress(NotFoundError):  # every named study was deleted: there is nothing to train
            work(
                ledger,
                places,
                names=todo.names,
                prefixes=todo.prefixes,
                stop=stop,
                until_idle=todo.until_idle,
                without=todo.without,
                device=todo.device,
                renewer=renewer,
                prepared=prepared,
                race=race,
                about=todo.about,
            )
        return _ended(stop, recorder_process, todo.publish_seconds)


def _recorded(ledger: Ledger, names: Sequence[str]) -> list[str]:
    """Return the studies to publish: those of these names, and those that will decide on them."""
    found = [ledger.study(name) for name in names]
    again = [deciding.place(ledger, one)[0] for one in found if one.deciding_trials]
    return [*names, *again]


def train_with(fleet: Fleet, workers: int) -> Ended:
    """Train with `workers` workers of an executor; publish from a recorder of this process.

    Workers that die are replaced, a few times. Those that another process has started for the study
    on the same engine count, and are not ended by an interruption of this one. Raise
    `WorkloadError` if workers refuse a study.
    """
    refuse_closed(fleet.study)
    recorder_process = RecorderProcess(_recorded(fleet.ledger, [fleet.study.name]))
    doing = "the workers save their trials"
    with stop_on_signals(doing) as stop, _left_on_error(recorder_process):
        _keep_running(fleet, workers, stop)
        return _ended(stop, recorder_process, None)


def _keep_running(fleet: Fleet, workers: int, stop: Stop) -> None:
    """Keep `workers` workers running until all have ended by themselves."""
    others = [] if fleet.executor.name == LOCAL else fleet.running()
    there = sum(not state.is_over for _, states in others for state in states)
    watched = [launch for launch, states in others if not all(one.is_over for one in states)]
    mine = [fleet.start(workers - there)] if there < workers else []
    watch = _Watch(fleet, [*watched, *mine])
    is_cancelled = False
    while watch.launches:
        if stop.wait(fleet.executor.poll_seconds) and not is_cancelled:
            is_cancelled = True
            for launch in mine:
                fleet.executor.cancel(launch)
            watch.launches = [one for one in watch.launches if one in mine]
        if is_cancelled:
            time.sleep(fleet.executor.poll_seconds)
        for one in watch.look():
            if is_cancelled or watch.refused or not watch.may_replace(one):
                continue
            mine.append(fleet.start(1))
            watch.launches.append(mine[-1])
    if watch.refused:
        raise WorkloadError("the workers refuse the study; see their logs for the reason")


class _Watch:
    """What an engine says of launches, from one look to the next."""

    def __init__(self, fleet: Fleet, watched: Sequence[Launch]) -> None:
        self.launches = list(watched)
        self.refused = False  # by a worker
        self._fleet = fleet
        self._over: set[str] = set()  # handles
        self._starts_left = WORKER_STARTS
        self._is_away = False

    def look(self) -> list[WorkerState]:
        """Return the workers that have failed since the last look; forget launches that are over.

        While the engine does not answer, nothing is known to have ended.
        """
        try:
            states = self._fleet.executor.poll(self.launches)
        except UnavailableError as error:
            if not self._is_away:
                log.warning("%s; its workers go on", error)
            self._is_away = True
            return []
        self._is_away = False
        new = [
            one
            for launch in self.launches
            for one in states[launch.key]
            if one.is_over and one.handle not in self._over
        ]
        self._over |= {one.handle for one in new}
        for launch in tuple(self.launches):
            if all(one.is_over for one in states[launch.key]):
                with suppress(UnavailableError):  # `tuner workers list` records it later
                    launches.ended(self._fleet.ledger, launch.key)
                self.launches.remove(launch)
        self.refused = self.refused or any(one.code == UsageError.exit_code for one in new)
        return [one for one in new if one.phase == "failed"]

    def may_replace(self, worker: WorkerState) -> bool:
        """Log that a worker has failed; return whether another one is to be started."""
        log.warning(
            "worker %s ended with %s; %s",
            worker.handle,
            worker.detail or worker.code,
            "it is replaced" if self._starts_left else "it is not replaced",
        )
        if not self._starts_left:
            return False
        self._starts_left -= 1
        return True


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
    stop: Stop, recorder_process: RecorderProcess | None, publish_seconds: float | None
) -> Ended:
    interrupted = stop.is_set()
    if recorder_process is not None:
        stop.doing = recorder_process.waiting
    limit = publish_seconds if interrupted else None
    published = recorder_process is None or recorder_process.close(limit)
    return Ended(
        interrupted=interrupted,
        published=published,
        by_keyboard=stop.by == signal.SIGINT,
    )
