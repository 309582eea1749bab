"""A worker's part in one study: trials are asked for, trained in slots, decided, and told."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from tuner.checkpoint_folders import folder_of, sweep
from tuner.environment import describe, identity
from tuner.errors import LeaseLost
from tuner.failpoints import reach
from tuner.ledger import Claim, Ledger, StudyRecord, governing, limits, ranges
from tuner.logs import logger
from tuner.outcome import COMPLETED, RUNNING
from tuner.search import ENOUGH, Search
from tuner.spec import ParameterValue
from tuner.submission import load_workload
from tuner.training import choosing, memory
from tuner.training.choosing import Choice
from tuner.training.device import use_threads
from tuner.training.trainer import Event
from tuner.worker.attempt import Attempt, Surroundings
from tuner.worker.keeper import Keeper
from tuner.worker.probing import probed

LOOK_SECONDS = 0.2
"""How long a trainer trains before the worker looks around."""
REGRET_EVERY = 5
"""Completed trials between two bounds of the regret, each of which takes about a second."""
THREADS = 1
"""More threads make small models and samplers slower, and results depend on their number."""

log = logger(__name__)


class StudyWorker:
    """Trains trials of one study, as many at a time as its trainer has slots."""

    def __init__(
        self,
        ledger: Ledger,
        study: StudyRecord,
        keeper: Keeper,
        *,
        checkpoints: Path,
        spill: Path,
        prefixes: Sequence[str],
        stop: threading.Event,
    ) -> None:
        self._ledger = ledger
        self._id, self._name = study.id, study.name
        self._keeper = keeper
        self._stop = stop
        self._worker = identity()
        use_threads(THREADS)
        trained = load_workload(study, prefixes)
        settled = study.settled or ledger.settle(
            study.id, asdict(choosing.settle(trained, study.spec)) | {"threads": THREADS}
        )
        use_threads(settled["threads"])
        self._environment = describe(study.spec.training.device) | {"settled": settled}
        self._trained, self._spec = trained, study.spec
        self._build(choosing.settled(settled))
        self._search = Search(study, ledger)
        self._here = Surroundings(
            ledger=ledger,
            impatient=Ledger(ledger.engine, ledger.lease_seconds, patience=0.0),
            study=study,
            checkpoints=checkpoints,
            spill=spill,
            worker=self._worker,
            stop=stop,
        )
        self._attempts: dict[int, Attempt] = {}  # by the trial's number
        self._block = 1  # steps that take about LOOK_SECONDS
        self._asked_of_failures: int | None = None  # the limit that the failures were held against
        self._probed = not study.spec.probe.enabled  # or nobody is to wait for it
        self._regret_at = ENOUGH  # completed trials at which the regret is bounded again
        sweep(checkpoints, ledger, study)
        log.info("study joined", study=study.name, **settled)

    def _build(self, choice: Choice) -> None:
        self._choice = choice
        self._trainer = choosing.trainer_for(self._trained, self._spec, choice)

    def others_train(self) -> bool:
        """Tell whether any trial has a live attempt, or will when a probe is done."""
        return not self._probed or self._ledger.counts(self._id)["running"] > 0

    def train(self, study: StudyRecord, goes_on: Callable[[], bool]) -> bool:
        """Take trials and train them to their ends; tell whether there was any.

        Slots that become free take the next trial while `goes_on`. When the worker is told to
        stop, trials are left to the next worker.
        """
        trained = self._take_one(study)
        while self._attempts:
            while self._may_take_more() and goes_on() and self._take_one(study):
                pass
            if self._stop.is_set():
                self._leave()
            else:
                self._advance()
        return trained

    def _may_take_more(self) -> bool:
        return len(self._attempts) < self._trainer.capacity and not self._stop.is_set()

    def _take_one(self, study: StudyRecord) -> bool:
        """Claim a trial, draw its parameters if need be, and give it a slot."""
        if self._stop.is_set() or self._is_over(study):
            return False
        self._probed = self._probed or probed(self._ledger, study, self._trained, self._worker)
        if not self._probed:  # another worker is at it
            return False
        claim = self._ledger.claim(self._id, self._worker, self._environment)
        if claim is None:
            return False
        attempt = Attempt(self._here, self._trainer, claim)
        self._keeper.hold(claim.lease)
        self._attempts[attempt.number] = attempt
        reach("ask.reserved")
        admitted = False
        try:
            params = claim.trial.params or attempt.waiting(lambda: self._draw(claim))
            admitted = attempt.admit(dict(params))
        except LeaseLost as lost:
            self._give_up(attempt, lost)
        finally:
            if not admitted:
                self._forget(attempt)
        return True

    def _is_over(self, study: StudyRecord) -> bool:
        """End or stop the study where a rule of its budget says so."""
        ended = limits.end_when_due(self._ledger, study) or self._end_by_regret(study)
        if ended is not None:
            log.info("study ended", study=self._name, reason=ended.reason)
            return True
        return self._is_broken(study)

    def _is_broken(self, study: StudyRecord) -> bool:
        """Stop the study if its trials fail alike: asked at first, and after a failure here.

        Whoever had a trial that failed looks at those of all, which is too dear before each trial.
        """
        limit = study.spec.budget.stop_after_failures
        if limit == self._asked_of_failures:
            return False
        stopped = governing.break_circuit(self._ledger, study)
        self._asked_of_failures = limit
        if stopped is not None:
            log.warning(f"study {self._name}: {stopped.reason}")
        return stopped is not None

    def _end_by_regret(self, study: StudyRecord) -> StudyRecord | None:
        """End the study if hardly anything better is to be found; asked every few trials."""
        bound = study.spec.budget.regret_below
        if bound is None:
            return None
        completed = self._ledger.counts(self._id)[COMPLETED]
        if completed < self._regret_at:
            return None
        self._regret_at = completed + REGRET_EVERY
        regret = self._search.regret_bound()
        if regret >= bound:
            return None
        reason = (
            f"The best {study.spec.study.metric} is unlikely to be further than {regret:.3g} from "
            f"the best there is, after {completed} completed trials."
        )
        return limits.end(self._ledger, study, reason)

    def _draw(self, claim: Claim) -> dict[str, ParameterValue]:
        wider = self._search.extension()
        if wider is not None:
            log.info("range extended", study=self._name, why=wider[1].why)
            ranges.extend(self._ledger, self._here.study, *wider)
        draw = self._search.draw(claim.trial.number)
        reach("ask.drawn")
        self._ledger.draw(
            claim.lease,
            draw.params,
            attrs=draw.attrs,
            study_attrs=draw.study_attrs,
            asked_revision=draw.revision,
        )
        return dict(draw.params)

    def _advance(self) -> None:
        began = time.monotonic()
        try:
            events = self._trainer.advance(self._block)
        except Exception as error:
            if memory.ran_out(error) and self._trainer.capacity > 1:
                self._shrink()
                return
            for attempt in tuple(self._attempts.values()):
                self._end(attempt, partial(attempt.fail, error))
            return
        seconds = time.monotonic() - began
        at_rung = []
        for event in events:
            attempt = self._attempts[event.number]
            self._unless_lost(attempt, partial(attempt.take, event))
            if event.number in self._attempts and attempt.undecided(event):
                at_rung.append(event)
        self._decide(at_rung)
        self._pace(max((len(event.times) for event in events), default=0), seconds)

    def _decide(self, events: Sequence[Event]) -> None:
        """Decide on members that reached rungs in the same step, each beside all the others."""
        if not events:
            return
        reports = [(event.number, event.next_step, _value(event)) for event in events]
        first = self._attempts[events[0].number]
        decisions = first.waiting(lambda: self._search.decide_together(reports))
        for event, decision in zip(events, decisions, strict=True):
            attempt = self._attempts[event.number]
            self._unless_lost(attempt, partial(attempt.decided, event, decision))

    def _leave(self) -> None:
        for attempt in tuple(self._attempts.values()):
            self._end(attempt, attempt.leave)

    def _shrink(self) -> None:
        """Go on with half the slots: memory was too short for so many trials at a time."""
        slots = self._trainer.capacity // 2
        log.warning(f"study {self._name}: out of memory; from now on {slots} slots", slots=slots)
        for attempt in tuple(self._attempts.values()):
            self._end(attempt, attempt.give_back)
        memory.make_room()
        self._build(replace(self._choice, slots=slots))

    def _end(self, attempt: Attempt, how: Callable[[], None]) -> None:
        """Let an attempt end, and free its slot."""

        def ended() -> bool:
            how()
            return True

        self._unless_lost(attempt, ended)

    def _unless_lost(self, attempt: Attempt, step: Callable[[], bool]) -> None:
        """Make a step of an attempt; free its slot when it has ended or its lease is lost."""
        ended = True
        try:
            ended = step()
        except LeaseLost as lost:
            self._give_up(attempt, lost)
        finally:
            if ended:
                self._trainer.evict(attempt.number)
                self._forget(attempt)

    def _forget(self, attempt: Attempt) -> None:
        self._keeper.let_go(attempt.lease)
        self._attempts.pop(attempt.number, None)
        if attempt.failed:
            self._asked_of_failures = None

    def _give_up(self, attempt: Attempt, lost: LeaseLost) -> None:
        """Leave a trial that is another's now, or has been cancelled."""
        trial = self._ledger.trial(self._id, attempt.number)
        if trial is not None and trial.state == RUNNING:
            attempt.log.warning(f"trial {attempt.number} of {self._name}: {lost}")
            return
        folder = folder_of(self._here.checkpoints, self._here.study, attempt.number)
        shutil.rmtree(folder, ignore_errors=True)
        why = "its study was deleted" if trial is None else str(trial.reason)
        attempt.log.warning(f"trial {attempt.number} of {self._name} is over: {why}")

    def _pace(self, steps: int, seconds: float) -> None:
        """Choose how many steps to ask for next."""
        if steps == self._block:
            faster = max(1, round(steps * LOOK_SECONDS / max(seconds, 1e-6)))
            self._block = min(2 * self._block, faster)


def _value(event: Event) -> float:
    assert event.value is not None
    return event.value
