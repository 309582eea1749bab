"""The worker: which study to train next, and when to end."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from tuner.core.environment import identity
from tuner.core.errors import (
    NotFoundError,
    TunerError,
    UnreadableError,
    WorkloadCodeError,
    WorkloadError,
)
from tuner.ledger import OPEN, Ledger, StudyRecord, projects
from tuner.ledger.database import Addresses
from tuner.ledger.decoding import log_once
from tuner.observability import metrics
from tuner.observability.logs import logger
from tuner.training.device import is_available
from tuner.worker import deciding
from tuner.worker.broken import BrokenStudy
from tuner.worker.checkpoints import Sender, require
from tuner.worker.exclusions import FAILURES, Exclusions
from tuner.worker.lease_renewer import LeaseRenewer
from tuner.worker.loading import PreparedWorkload
from tuner.worker.rules import stop_if_failing
from tuner.worker.study import StudyWorker

IDLE_SECONDS, MOST_IDLE_SECONDS = 0.5, 5.0
"""Shortest and longest time between two looks for something to train."""
IDLE_SHARE = 0.1
"""A look follows the last one after this part of the time that nothing was found."""
REAP_SECONDS = 1.0
"""How often lost attempts are reaped between trials."""
STUDIES_SECONDS = 0.5
"""How old a study's record may be when a trial of it is claimed; the claim checks its state."""

log = logger(__name__)


def work(
    ledger: Ledger,
    places: Addresses,
    *,
    names: Sequence[str],
    prefixes: Sequence[str],
    stop: threading.Event,
    until_idle: bool,
    without: Sequence[str] = (),
    device: str | None = None,
    renewer: LeaseRenewer | None = None,
    prepared: PreparedWorkload | None = None,
    race: Callable[[], int | None] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Train trials of the open studies (of `names`, if there are any) until `stop` is set.

    Studies whose names match one of the patterns `without` are left to others. With `until_idle`,
    return once no trial can be claimed and no worker trains one. A study that cannot be trained in
    this process is left to other workers, as are studies for another device than `device`, or than
    this machine has; if it was named, raise `WorkloadError` once there is nothing else to train.
    Whatever a study's code raises ends its trials, and other studies go on. A study whose trials
    fail here again and again is left alone for a while; with names or `until_idle`, it waits until
    nothing else is left. A caller that holds leases itself passes its `renewer`; `prepared` is the
    workload of one of the studies, if this process has built it already. Once the search of a study
    is over, its workers decide between its best trials. `race` adds trials of a race of the
    caller's own; it returns how many, or None if nothing is left to train. `about` is recorded
    with each attempt.
    """
    require(places.checkpoints)
    renewer = renewer or LeaseRenewer(ledger, places.checkpoints)
    sender = Sender(places.checkpoints)

    def join(study: StudyRecord) -> StudyWorker | BrokenStudy:
        where = study.spec.training.device
        if device not in (None, where) or not is_available(where):
            raise WorkloadError(
                f"study {study.name!r} is for the device {where!r}, which "
                + ("this machine does not have" if device in (None, where) else "is not asked for")
            )
        try:
            return StudyWorker(
                ledger,
                study,
                renewer,
                sender=sender,
                spill=places.spill,
                prefixes=prefixes,
                stop=stop,
                prepared=prepared,
                about=about or {},
            )
        except WorkloadCodeError as error:
            log.warning(f"study {study.name}: {error}")
            return BrokenStudy(ledger, study, error, stop)

    selector = StudySelector(ledger, names, join, without, eager=bool(names) or until_idle)
    reaped_at = -float("inf")
    idle_since: float | None = None
    with renewer.running(), metrics.expect_heartbeats("worker"), sender.running(stop):
        log.info("worker started", worker=identity(), studies=list(names) or "all that are open")
        while not stop.is_set():
            metrics.heartbeat("worker")
            if time.monotonic() - reaped_at >= REAP_SECONDS:
                renewer.reap()
                reaped_at = time.monotonic()
            if selector.train_one_turn():
                idle_since = None
                continue
            reaped_at = -float("inf")  # lost attempts may be all that is left to train
            if stop.is_set() or selector.decide() or (race is not None and race()):
                idle_since = None
                continue
            idle = until_idle and not selector.has_running_trials()
            if selector.refused and (idle or selector.refuses_all()):
                raise selector.refused[0]
            if idle:
                break
            idle_since = idle_since or time.monotonic()
            stop.wait(idle_seconds(time.monotonic() - idle_since))
        log.info("worker ended", worker=identity(), stopped=stop.is_set())


def idle_seconds(idle: float) -> float:
    """Return the time until the next look of a worker that has found nothing for `idle` seconds."""
    return min(max(IDLE_SECONDS, IDLE_SHARE * idle), MOST_IDLE_SECONDS)


class StudySelector:
    """Chooses which study this process trains next, by weighted fair share.

    Workers are shared among projects by their weights, and those of a project among its studies.
    """

    def __init__(
        self,
        ledger: Ledger,
        names: Sequence[str],
        join: Callable[[StudyRecord], StudyWorker | BrokenStudy],
        without: Sequence[str] = (),
        *,
        eager: bool = True,
    ) -> None:
        """Train studies that are left alone too, once nothing else is left, if `eager`."""
        self.refused: list[Exception] = []  # why studies that were named are not trained here
        self._without = without
        self._eager = eager
        self._exclusions = Exclusions(ledger)
        self._ledger = ledger
        self._names = names
        self._join = join
        # by the study's id; None: left to others
        self._joined: dict[int, StudyWorker | BrokenStudy | None] = {}
        self._seconds: defaultdict[int, float] = defaultdict(float)  # trained here, by study
        # by the study's id: its revision when nothing was left to decide
        self._decided: dict[int, int | None] = {}
        self._known: list[StudyRecord] = []
        self._weights: dict[str, float] = {}  # of projects
        self._known_at = -float("inf")

    def train_one_turn(self) -> bool:
        """Train the study furthest below its share; return whether there was any trial."""
        studies = sorted(self._by_fair_share(), key=self._exclusions.has)  # stable
        if any(self._train(one) for one in studies if self._eager or not self._exclusions.has(one)):
            return True
        self._known_at = -float("inf")
        return False

    def _train(self, study: StudyRecord) -> bool:
        """Train trials of a study; return whether there was any. Its faults are its own."""
        worker = self._worker_for(study)
        if worker is None:
            return False
        began = time.monotonic()
        try:
            trained = worker.train(study, partial(self._is_next, study))
        except (WorkloadError, UnreadableError) as error:
            self._abandon(study, worker)
            self._mark_untrainable(study, error)
            return False
        except TunerError:  # such as a database that is away
            raise
        except Exception as error:
            if self._names:
                raise
            log.exception(f"study {study.name}: an unexpected error")
            self._abandon(study, worker)
            self._mark_untrainable(study, error)
            return False
        self._seconds[study.id] += time.monotonic() - began
        if trained:
            self._exclude_if_failing(study, worker)
        return trained

    def _abandon(self, study: StudyRecord, worker: StudyWorker | BrokenStudy) -> None:
        """Release the trials of a study that is not trained further."""
        try:
            worker.abandon()
        except TunerError:
            raise
        except Exception:
            log.exception(f"study {study.name}: its trials could not be released")

    def _exclude_if_failing(self, study: StudyRecord, worker: StudyWorker | BrokenStudy) -> None:
        """Leave a study alone after failures in a row, unless they have stopped it."""
        if worker.failures < FAILURES:
            self._exclusions.end(study)
        elif not stop_if_failing(self._ledger, study):
            self._exclusions.add(study, worker.failures, worker.last_failure)
            if isinstance(worker, BrokenStudy) and not self._eager:
                self._joined.pop(study.id, None)  # it is built again

    def decide(self) -> bool:
        """Add the next rounds of decisions between the best trials.

        Return whether there is something new to train. If only studies of some names are trained,
        those of their decisions are, too.
        """
        new, revisions = False, {} if self._names else self._ledger.revisions_after_search()
        for study in self._studies() if self._names else self._undecided(revisions):
            going = deciding.advance(self._ledger, study)
            if going is None:
                self._decided[study.id] = revisions.get(study.id)
                continue
            if self._names and going.again.name not in self._names:
                self._names = [*self._names, going.again.name]
            again = going.again
            new = new or going.added > 0 or (again.state == OPEN and again.id not in self._joined)
            self._known_at = -float("inf")
        return new

    def _undecided(self, revisions: Mapping[int, int]) -> list[StudyRecord]:
        """Return studies without those in which nothing was left to decide as of these revisions.

        The others are read only if there are any, as most have ended long ago.
        """
        if all(self._decided.get(key) == revision for key, revision in revisions.items()):
            return []
        return [
            study
            for study in self._ledger.studies()
            if study.id in revisions and self._decided.get(study.id) != revisions[study.id]
        ]

    def has_running_trials(self) -> bool:
        """Return whether any trial of a study that can be trained here has a live attempt."""
        return any(
            worker is not None and worker.has_running_trials() for worker in self._joined.values()
        )

    def refuses_all(self) -> bool:
        """Return whether every known study is left to other workers."""
        return all(self._joined.get(study.id, study) is None for study in self._studies())

    def _is_next(self, study: StudyRecord) -> bool:
        """Return whether a free slot should take another trial of the study that is trained now."""
        others = [
            other
            for other in self._by_fair_share()
            if self._joined.get(other.id) is not None and not self._exclusions.has(other)
        ]
        return not others or others[0].id == study.id

    def _by_fair_share(self) -> list[StudyRecord]:
        """Order studies by live attempts per weight, then by time trained here per weight.

        Projects are ordered alike first, by the sums of their studies.
        """
        studies = self._studies()
        if len(studies) == 1:
            return studies
        live = self._ledger.live_attempts()
        of_projects: dict[str, list[int]] = {}
        for study in studies:
            of_projects.setdefault(study.project, []).append(study.id)

        def share(ids: Sequence[int], weight: float) -> tuple[float, float, int]:
            return (
                (sum(live.get(one, 0) for one in ids) + 1) / weight,
                sum(self._seconds[one] for one in ids) / weight,
                ids[0],
            )

        shares = {
            name: share(ids, self._weights.get(name, 1.0)) for name, ids in of_projects.items()
        }
        return sorted(
            studies,
            key=lambda one: (shares[one.project], share([one.id], one.spec.budget.weight)),
        )

    def _studies(self) -> list[StudyRecord]:
        """Return the studies, read again once they are older than `STUDIES_SECONDS`."""
        if time.monotonic() - self._known_at >= STUDIES_SECONDS:
            self._known = self._read_studies()
            if len({one.project for one in self._known}) > 1:
                found = projects.read(self._ledger)
                self._weights = {name: one.weight for name, one in found.items()}
            self._known_at = time.monotonic()
            known = {study.id for study in self._known}  # data and search of the others can go
            self._joined = {key: one for key, one in self._joined.items() if key in known}
        return self._known

    def _read_studies(self) -> list[StudyRecord]:
        if not self._names:
            return [one for one in self._ledger.trainable() if not self._is_left_out(one)]
        found, unreadable = [], []
        for name in self._names:
            try:
                found.append(self._ledger.study(name))
            except UnreadableError as error:
                log_once(str(error))
                unreadable.append(error)
            except NotFoundError:  # it was there when this worker began
                log.warning(f"study {name!r} was deleted")
                self._names = [one for one in self._names if one != name]
        if unreadable and not found:
            raise unreadable[0]
        if not found:
            raise NotFoundError("every study that this worker was to train was deleted meanwhile")
        return found

    def _is_left_out(self, study: StudyRecord) -> bool:
        return any(fnmatchcase(study.name, pattern) for pattern in self._without)

    def _worker_for(self, study: StudyRecord) -> StudyWorker | BrokenStudy | None:
        if study.id not in self._joined:
            try:
                self._joined[study.id] = self._join(study)
            except (WorkloadError, UnreadableError) as error:
                self._mark_untrainable(study, error)
            except NotFoundError:  # it was deleted just now
                return None
            except TunerError:
                raise
            except Exception as error:
                if self._names:
                    raise
                log.exception(f"study {study.name}: an unexpected error")
                self._mark_untrainable(study, error)
        return self._joined.get(study.id)

    def _mark_untrainable(self, study: StudyRecord, error: Exception) -> None:
        """Leave a study to others: for good, or for a while if what raised may be mended."""
        is_ours = not isinstance(error, TunerError)
        if not self._eager and (is_ours or isinstance(error, WorkloadCodeError)):
            self._joined.pop(study.id, None)  # it is built again
            unexpected = f"An unexpected {type(error).__name__}; its log has the traceback."
            self._exclusions.add(study, 0, unexpected if is_ours else str(error))
            return
        log.warning(f"study {study.name} is left to other workers: {error}")
        self._joined[study.id] = None
        if self._names or is_ours:
            self.refused.append(error)
