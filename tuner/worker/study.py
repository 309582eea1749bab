"""A worker's part in one study: it claims trials, trains them in slots, decides and commits."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tuner.config import Average, Branching, ParameterValue, StudySpec
from tuner.core.environment import describe, identity
from tuner.core.errors import ConnectionLostError, LeaseLost, UnavailableError
from tuner.core.failpoints import reach
from tuner.core.failures import workload_code
from tuner.core.outcome import RUNNING
from tuner.ledger import AttemptLease, Claim, Drawn, Entry, Ledger, StudyRecord, ranges
from tuner.ledger.attempts import refused
from tuner.observability import metrics
from tuner.observability.logs import logger
from tuner.search import Decision, Judged, Search
from tuner.training import out_of_memory, trainer_choice
from tuner.training.branches import Branch, BranchPlan, fast_forward, same_schedule
from tuner.training.device import memory_of, name_of, use_threads
from tuner.training.trainer import ENDED, Event
from tuner.training.trainer_choice import Choice, Trained
from tuner.worker.attempt import Attempt, AttemptContext
from tuner.worker.checkpoints import Sender, sweep
from tuner.worker.commits import Commits
from tuner.worker.exclusions import FAILURES
from tuner.worker.lease_renewer import LeaseRenewer
from tuner.worker.loading import PreparedWorkload, load_workload
from tuner.worker.probing import probed
from tuner.worker.rules import Rules
from tuner.worker.shipped import provide

COMMIT_SECONDS = 1.0
"""How long measured rows wait for their commit, longer where commits are slow."""
FAST_COMMIT_SECONDS = 0.01
"""A commit that takes longer is followed by a longer pause, as training waits for it."""
LONGEST_PAUSE = 5.0
"""The longest pause between commits, in units of `COMMIT_SECONDS`."""
OUTAGE_RETRY_SECONDS = 2.0
"""How long until rows are committed again after the database was unreachable."""
LOOK_SECONDS = 0.2
"""How long a trainer trains before the worker looks at its results."""

log = logger(__name__)


class StudyWorker:
    """Trains trials of one study, as many at a time as its trainer has slots."""

    def __init__(
        self,
        ledger: Ledger,
        study: StudyRecord,
        renewer: LeaseRenewer,
        *,
        sender: Sender,
        spill: Path,
        prefixes: Sequence[str],
        stop: threading.Event,
        prepared: PreparedWorkload | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the workload and its trainer. Raise `WorkloadError` when that cannot be done."""
        self._ledger = ledger
        self._id, self._name = study.id, study.name
        self._renewer = renewer
        self._stop = stop
        self._worker = identity()
        use_threads(study.threads)
        if prepared is None:
            provide(ledger, study, sender.store, spill.with_name("code"), prefixes)
        with workload_code():
            trained = load_workload(study, prefixes, prepared)
            settled = study.settled or ledger.settle(study.id, _settled(trained, study.spec))
            use_threads(settled["threads"])
            described = describe(study.spec.training.device) | {"settled": settled}
            self._environment = described | dict(about or {})
            self._environment["device_name"] = name_of(study.spec.training.device)
            self._trained, self._spec = trained, study.spec
            self._build(trainer_choice.settled(settled))
            self._search = Search(study, ledger, prefixes)
        self._rules = Rules(ledger, self._search)
        self._commits = Commits(ledger, study.name, stop)
        self._context = AttemptContext(
            ledger=ledger,
            commits=self._commits,
            study=study,
            sender=sender,
            spill=spill,
            worker=self._worker,
            environment=self._measured_environment,
            trained=self._trained,
        )
        self._attempts: dict[int, Attempt] = {}  # by the trial's number
        self.failures = 0  # attempts in a row that failed, of all that ended here
        self.last_failure = ""  # its reason
        self._rows_due = time.monotonic() + COMMIT_SECONDS
        self._unreachable_until = -float("inf")  # the database; rows are spilled until then
        self._block = 1  # steps that take about LOOK_SECONDS
        self._probed = not study.spec.probe.enabled  # False: no trial is taken before
        sweep(sender.store, ledger, study)
        log.info("study joined", study=study.name, **settled)

    def _build(self, choice: Choice) -> None:
        self._choice = choice
        self._trainer = trainer_choice.trainer_for(self._trained, self._spec, choice)

    def _measured_environment(self) -> dict[str, Any]:
        """Return the environment of attempts that begin or end now."""
        return self._environment | memory_of(self._spec.training.device)

    def has_running_trials(self) -> bool:
        """Return whether any trial has a live attempt, or will have once a probe is done."""
        return not self._probed or self._ledger.counts(self._id)["running"] > 0

    def train(self, study: StudyRecord, may_continue: Callable[[], bool]) -> bool:
        """Claim trials and train them to their ends; return whether there was any.

        Free slots take the next trial while `may_continue`, unless too many have failed in a row.
        When the worker is asked to stop, trials are released to the next worker.
        """
        trained = self._take(study)
        while self._attempts:
            while self._may_take_more() and may_continue() and self._take(study):
                pass
            if self._stop.is_set():
                self._leave()
            else:
                self._advance()
        return trained

    def abandon(self) -> None:
        """Release all trials, since the study's rows have unexpected content."""
        for attempt in tuple(self._attempts.values()):
            self._end(attempt, attempt.abandon)

    def _may_take_more(self) -> bool:
        free = len(self._attempts) < self._trainer.capacity
        return free and self.failures < FAILURES and not self._stop.is_set()

    def _take(self, study: StudyRecord) -> bool:
        """Fill the free slots; return whether there was any trial to claim.

        Trials are claimed together, and their parameters are drawn and committed together.
        """
        if self._stop.is_set() or self._rules.is_over(study):
            return False
        self._probed = self._probed or probed(
            self._ledger, study, self._trained, self._worker, self._renewer
        )
        if not self._probed:  # another worker holds the probe
            return False
        free = self._trainer.capacity - len(self._attempts)
        claims = self._ledger.claim_together(
            self._id, self._worker, self._measured_environment(), free
        )
        for claim in claims:
            self._attempts[claim.trial.number] = Attempt(self._context, self._trainer, claim)
            self._renewer.hold(claim.lease)
        reach("ask.reserved")
        drawn = {one.trial.number: one.trial.params for one in claims if one.trial.params}
        drawn |= self._draw([one for one in claims if not one.trial.params])
        for number, params in drawn.items():
            attempt = self._attempts[number]
            try:
                attempt.admit(params)
            except LeaseLost:
                self._drop_lost([attempt.lease])
            except (KeyboardInterrupt, UnavailableError):
                raise
            except BaseException as error:
                self._fail(attempt, error)
        return bool(claims)

    def _draw(self, claims: Sequence[Claim]) -> dict[int, Mapping[str, ParameterValue]]:
        """Draw and commit the parameters of new trials; return those still held, by number."""
        if not claims:
            return {}
        wider = self._search.extension()
        if wider is not None:
            log.info("range extended", study=self._name, why=wider[1].why)
            ranges.extend(self._ledger, self._context.study, *wider)
        draws = self._commits.retry_until_stopped(
            lambda: self._search.draw_together([claim.trial.number for claim in claims])
        )
        reach("ask.drawn")
        drawn = [
            Drawn(lease=claim.lease, params=draw.params, attrs=draw.attrs)
            for claim, draw in zip(claims, draws, strict=True)
        ]
        of_study = {key: value for draw in draws for key, value in draw.study_attrs.items()}
        lost = self._commits.retry_until_stopped(
            lambda: self._ledger.draw_together(
                drawn, study_attrs=of_study, asked_revision=draws[0].revision
            )
        )
        self._drop_lost(lost)
        return {
            claim.trial.number: draw.params
            for claim, draw in zip(claims, draws, strict=True)
            if claim.lease not in lost
        }

    def _advance(self) -> None:
        metrics.heartbeat("worker")
        began = time.monotonic()
        try:
            # not past a step whose checkpoint is kept
            events = self._trainer.advance(
                min([self._block, *(one.steps_to_kept for one in self._attempts.values())])
            )
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if out_of_memory.is_out_of_memory(error) and self._choice.trainer == "cohort":
                self._shrink()
                return
            for attempt in tuple(self._attempts.values()):
                self._fail(attempt, error)
            return
        seconds = time.monotonic() - began
        whole = [event for event in events if self._take_event(event)]
        self._commit(whole)
        self._update_block_size(max((len(event.times) for event in events), default=0), seconds)

    def _take_event(self, event: Event) -> bool:
        """Take what was measured; fail the trial and return False if its workload raised."""
        attempt, error = self._attempts[event.number], event.error
        try:
            attempt.take(event)
        except Exception as unusable:  # such as metrics whose names change
            error = error or unusable
        if error is not None:
            self._fail(attempt, error)
        return error is None

    def _commit(self, events: Sequence[Event]) -> None:
        """Commit decisions and outcomes after events at once, and rows when they are due."""
        undecided = [one for one in events if self._attempts[one.number].undecided(one)]
        judged = self._judge(undecided)
        if judged is None:  # asked to stop: the next attempts judge them
            for event in undecided:
                self._attempts[event.number].leave_undecided()
            events = [event for event in events if event not in undecided]
            undecided, judged = [], {}
        # a branch may have raised, which has ended its attempt
        events = [event for event in events if event.number in self._attempts]
        decisions = self._decide([one for one in undecided if one in events], judged)
        entries = [
            self._attempts[event.number].entry(event, decisions.get(event.number))
            for event in events
            if event.number in decisions or event.status in ENDED
        ]
        if entries:
            self._settle(entries, self._commits.commit_decisions(entries))
        saving = any(
            one.checkpoint_due() or one.checkpoint_sent() for one in self._attempts.values()
        )
        if (saving or time.monotonic() >= self._rows_due) and self._commit_rows():
            for attempt in [one for one in self._attempts.values() if one.checkpoint_sent()]:
                self._handle_lost_lease(attempt, attempt.record_checkpoint)
            for attempt in [one for one in self._attempts.values() if one.checkpoint_due()]:
                self._handle_lost_lease(attempt, attempt.save_checkpoint)

    def _judge(self, events: Sequence[Event]) -> dict[int, Judged] | None:
        """Return the values of branches of members at rungs; None if asked to stop before.

        Members at the same step are branched together.
        """
        judge, judged = self._spec.judge, {}
        if not isinstance(judge, Branching):
            return {}
        averaged = isinstance(judge, Average)
        for step in sorted({event.next_step for event in events}):
            plan = BranchPlan(
                steps=judge.branch_steps(step),
                schedule=same_schedule if averaged else fast_forward,
                averaged=averaged,
            )
            branches = self._branches([e.number for e in events if e.next_step == step], plan)
            if branches is None:
                return None
            reach("branch.trained")
            for number, branch in branches.items():
                if branch is not None and branch.error is not None:
                    self._fail(self._attempts[number], branch.error)
                    continue
                if branch is not None:
                    self._attempts[number].add_branch(branch)
                judged[number] = Judged(value=self._value_of(branch), steps=plan.steps)
        return judged

    def _branches(
        self, numbers: Sequence[int], plan: BranchPlan
    ) -> dict[int, Branch | None] | None:
        """Train branches, of fewer members at a time where memory is short, else of none."""

        def goes_on() -> bool:
            metrics.heartbeat("worker")
            return not self._stop.is_set()

        try:
            found = self._trainer.branch(numbers, plan, goes_on)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not out_of_memory.is_out_of_memory(error):
                for number in numbers:
                    self._fail(self._attempts[number], error)
                return {}
        else:
            return None if found is None else {branch.number: branch for branch in found}
        out_of_memory.release_memory()
        if len(numbers) == 1:
            log.warning(f"study {self._name}: no memory for a branch of trial {numbers[0]}")
            return {numbers[0]: None}
        half = len(numbers) // 2
        first, second = (self._branches(part, plan) for part in (numbers[:half], numbers[half:]))
        return None if first is None or second is None else first | second

    def _value_of(self, branch: Branch | None) -> float | None:
        """Return the value by which a branch is compared; one that diverged is the worst."""
        if branch is None:
            return None
        value = branch.metrics[self._spec.study.metric]
        worst = math.inf if self._spec.study.direction == "minimize" else -math.inf
        return value if math.isfinite(value) else worst

    def _decide(self, events: Sequence[Event], judged: Mapping[int, Judged]) -> dict[int, Decision]:
        """Decide together on members that reached rungs in the same step."""
        if not events:
            return {}
        reports = [(event.number, _rung(event), _value(event)) for event in events]
        decisions = self._commits.retry_until_stopped(
            lambda: self._search.decide_together(reports, judged)
        )
        return {event.number: one for event, one in zip(events, decisions, strict=True)}

    def _commit_rows(self) -> bool:
        """Commit the rows of all attempts; return False while the database is unreachable."""
        if time.monotonic() < self._unreachable_until:
            return False
        entries = [entry for one in self._attempts.values() if (entry := one.rows())]
        began = time.monotonic()
        try:
            lost = self._commits.commit_rows(entries) if entries else frozenset()
        except ConnectionLostError as error:
            self._spill_rows(error)
            return False
        self._settle(entries, lost)
        now = time.monotonic()
        self._rows_due = now + pause_after(now - began)
        return True

    def _spill_rows(self, error: ConnectionLostError) -> None:
        """Spill rows into files; where there is no space, wait until the ledger takes them."""
        self._unreachable_until = time.monotonic() + OUTAGE_RETRY_SECONDS
        log.warning(f"study {self._name}: rows are kept in a file: {error}")
        left = [one for one in self._attempts.values() if one.rows() and not one.spill()]
        reach("spill.written")
        entries = [entry for attempt in left if (entry := attempt.rows())]
        if entries:
            log.warning(f"study {self._name}: no room to keep rows; training waits")
            self._settle(entries, self._commits.commit_decisions(entries))

    def _settle(self, entries: Sequence[Entry], lost: frozenset[AttemptLease]) -> None:
        """After a commit, free the slots of trials that have ended or are lost."""
        self._drop_lost(lost)
        by_lease = {attempt.lease: attempt for attempt in self._attempts.values()}
        for entry in entries:
            if entry.lease in lost:
                continue
            attempt = by_lease[entry.lease]
            attempt.committed(entry)
            if entry.outcome:
                self._forget(attempt)

    def _fail(self, attempt: Attempt, error: BaseException) -> None:
        """Fail a trial, or release it for another attempt, after its workload raised."""
        if isinstance(error, out_of_memory.TooManyTogetherError):
            attempt.log.warning(f"study {self._name}: {error}")
            self._end(attempt, attempt.release)
            return
        try:
            end = attempt.fail(error)
        except LeaseLost:
            self._drop_lost([attempt.lease])
            return
        if end is None:
            self._forget(attempt)
        else:
            self._settle([end], self._commits.commit_decisions([end]))

    def _leave(self) -> None:
        self._commit_rows()
        for attempt in tuple(self._attempts.values()):
            self._end(attempt, attempt.save_and_release)

    def _shrink(self) -> None:
        """Halve the slots after the cohort ran out of memory.

        Below one slot, use the reference trainer, which can split a batch.
        """
        slots = self._trainer.capacity // 2
        choice = replace(self._choice, slots=slots)
        if slots == 0:
            choice = replace(choice, trainer="reference", slots=1)
        now = f"{choice.slots} slot{'s' * (choice.slots > 1)} of the {choice.trainer} trainer"
        log.warning(f"study {self._name}: out of memory; from now on {now}", slots=choice.slots)
        for attempt in tuple(self._attempts.values()):
            self._end(attempt, attempt.release)
        out_of_memory.release_memory()
        with workload_code():
            self._build(choice)

    def _end(self, attempt: Attempt, how: Callable[[], None]) -> None:
        """End an attempt and free its slot."""
        self._handle_lost_lease(attempt, how)
        if attempt.number in self._attempts:
            self._forget(attempt)

    def _handle_lost_lease(self, attempt: Attempt, step: Callable[[], None]) -> None:
        """Do a step of an attempt; free its slot if its lease is lost."""
        try:
            step()
        except LeaseLost:
            self._drop_lost([attempt.lease])

    def _forget(self, attempt: Attempt) -> None:
        self._renewer.drop(attempt.lease)
        del self._attempts[attempt.number]
        if attempt.raised is not None:
            self.failures += 1
            self.last_failure = attempt.raised
        elif attempt.ended_well:
            self.failures = 0
        if attempt.failed:
            self._rules.check_failures_again()
        if attempt.admitted:
            self._trainer.evict(attempt.number)

    def _drop_lost(self, lost: Collection[AttemptLease]) -> None:
        """Drop trials that another worker has claimed or that were cancelled."""
        for attempt in [one for one in self._attempts.values() if one.lease in lost]:
            self._forget(attempt)
            self._log_loss(attempt)

    def _log_loss(self, attempt: Attempt) -> None:
        trial = self._ledger.trial(self._id, attempt.number)
        if trial is not None and trial.state == RUNNING:
            metrics.LEASES_LOST.inc()
            attempt.log.warning(f"trial {attempt.number} of {self._name}: {refused(attempt.lease)}")
            return
        attempt.clear_checkpoints()
        why = "its study was deleted" if trial is None else str(trial.reason)
        attempt.log.warning(f"trial {attempt.number} of {self._name} is over: {why}")

    def _update_block_size(self, steps: int, seconds: float) -> None:
        """Choose how many steps to ask for next."""
        if steps == self._block:
            faster = max(1, round(steps * LOOK_SECONDS / max(seconds, 1e-6)))
            self._block = min(2 * self._block, faster)


def _settled(trained: Trained, spec: StudySpec) -> dict[str, Any]:
    """Choose trainer and threads, in that order: threads are measured with the trainer."""
    choice = trainer_choice.settle(trained, spec)
    threads = trainer_choice.choose_threads(trained, spec, choice)
    return asdict(choice) | {"threads": threads.count, "threads_reason": threads.reason}


def _rung(event: Event) -> int:
    assert event.rung is not None
    return event.rung


def _value(event: Event) -> float:
    assert event.value is not None
    return event.value


def pause_after(seconds: float) -> float:
    """Return how long rows wait after a commit of so many seconds: a hundred times, within limits.

    So training waits for commits for about a hundredth of the time.
    """
    return COMMIT_SECONDS * min(max(1.0, seconds / FAST_COMMIT_SECONDS), LONGEST_PAUSE)
