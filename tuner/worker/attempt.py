"""One attempt at a trial: what its trainer measures and what is committed of it, under a lease.

The clock decides only when rows are committed and checkpoints are saved; neither changes a curve.
While the database is away, rows go into a spill file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tuner.config import settings_of
from tuner.core import curves, failures
from tuner.core.curves import BranchCurve, Chunk
from tuner.core.errors import ConnectionLostError, LeaseLost, WorkloadCodeError
from tuner.core.failpoints import reach
from tuner.core.failures import workload_code
from tuner.core.outcome import COMPLETED, DIVERGED, FAILED, PRUNED, Outcome
from tuner.ledger import (
    INTERRUPTED,
    OUT_OF_MEMORY,
    RAISED,
    CheckpointRecord,
    Claim,
    Entry,
    Ledger,
    Report,
    StudyRecord,
    at_end,
)
from tuner.ledger.checkpoint_files import key_of, remove_file
from tuner.ledger.records import PARENT, SEED, sizes_of
from tuner.observability import metrics
from tuner.observability.logs import logger
from tuner.search import Decision
from tuner.training import checkpoint, out_of_memory
from tuner.training.branches import Branch
from tuner.training.longer import step_to_keep
from tuner.training.trainer import Event, Status, Task, Trainer, seed_of
from tuner.training.trainer_choice import Trained
from tuner.worker import extending
from tuner.worker.checkpoints import Sender, clear
from tuner.worker.commits import Commits
from tuner.worker.spill import Spill


@dataclass(frozen=True, kw_only=True)
class AttemptContext:
    """What all attempts of a worker at one study share."""

    ledger: Ledger
    commits: Commits
    study: StudyRecord
    sender: Sender
    spill: Path
    worker: str  # its identity
    environment: Callable[[], Mapping[str, Any]]  # as measured now
    trained: Trained


@dataclass(frozen=True, kw_only=True)
class _Sending:
    """A checkpoint on its way to where checkpoints are kept."""

    record: CheckpointRecord  # without its digest
    digest: Future[str]


class Attempt:
    """One attempt at a trial, from its admission to its end."""

    def __init__(self, context: AttemptContext, trainer: Trainer, claim: Claim) -> None:
        self._context = context
        self._trainer = trainer
        self._ledger = context.ledger
        self._study = context.study
        self.lease = claim.lease
        self.number = claim.trial.number
        self.admitted = False  # it has a slot
        self.failed = False  # the trial, by this attempt
        self.raised: str | None = None  # the reason, if the workload's code failed in it
        self.ended_well = False  # the trial, in any outcome but a failure
        self._params = claim.trial.params
        self._own_seed = claim.trial.attrs.get(SEED)
        self._saved = claim.checkpoint
        self._sending: _Sending | None = None  # nothing refers to it yet
        self._endings = claim.endings
        now = time.monotonic()
        self._epoch = claim.lease.started_at - now  # from this clock to the database's
        self._checkpointed_at = now
        self._step = claim.checkpoint.step if claim.checkpoint else 0  # where the member is
        self._measured: list[Chunk] = []  # not yet committed
        self._spill = Spill(context.spill)
        self._undecided = False  # it is at a rung whose decision was interrupted
        self._step_to_keep = 0  # 0: none; see `tuner.training.longer`
        self._parent = claim.trial.attrs.get(PARENT)
        self._reported = {report.step for report in claim.trial.reports}
        self.log = logger(__name__).bind(
            study=context.study.name,
            trial=self.number,
            attempt=claim.lease.token,
            worker=context.worker,
        )

    def admit(self, params: Mapping[str, Any]) -> None:
        """Put the trial into a slot, from its checkpoint if it has one."""
        self._params = params
        task = Task(
            number=self.number,
            seed=seed_of(self._study.spec, self.number, self._own_seed),
            params=params,
            halvings=self._endings.get(OUT_OF_MEMORY, 0),
        )
        self._step_to_keep = step_to_keep(self._study.spec, params, self._study.horizon(params))
        if not self._admit_saved(task) and not self._admit_longer(task):
            self._trainer.admit(task)
        self.admitted = True
        self.log.info("trial taken up", step=self._step, lr=params["lr"])

    def _admit_saved(self, task: Task) -> bool:
        if self._saved is None:
            return False
        try:
            snapshot = checkpoint.read(
                self._context.sender.store, key_of(self._saved), self._saved.digest
            )
            self._trainer.admit(replace(task, snapshot=snapshot))
        except (OSError, ValueError) as error:
            self.log.warning(
                f"trial {self.number} begins at step 0, its checkpoint is unusable: {error}"
            )
            self._step, self._saved = 0, None
            self._context.commits.retry_until_stopped(
                lambda: self._ledger.begin_at_first_step(self.lease)
            )
            return False
        return True

    def _admit_longer(self, task: Task) -> bool:
        """Admit a trial that extends another one from that one's checkpoint, if it kept one."""
        if self._parent is None:
            return False
        try:
            found = extending.continuation(
                self._ledger,
                self._context.sender.store,
                self._study,
                self._parent,
                task.params,
                self._context.trained,
            )
            self._trainer.admit(replace(task, snapshot=found.snapshot))
        except (OSError, ValueError) as error:
            self.log.info(f"trial {self.number} begins at step 0: {error}")
            return False
        self.admitted = True
        # all in the time of this attempt, as its parent's is not the trial's
        curve = found.curve.delayed(self.lease.started_at)
        self._context.commits.retry_until_stopped(
            lambda: self._ledger.begin_with(self.lease, curve)
        )
        reach("extend.begun")
        self._step = curve.next_step
        return True

    @property
    def steps_to_kept(self) -> int:
        """The steps to the one whose checkpoint is kept; many if there is none ahead."""
        left = self._step_to_keep - self._step
        return left if left > 0 else sys.maxsize

    def take(self, event: Event) -> None:
        """Add what was measured to the rows to be committed."""
        metrics.STEPS.inc(len(event.times))
        self._step = event.next_step
        if len(event.times) or event.evaluations:  # a slow program measures nothing for a while
            self._measured.append(self._chunk(event))

    def undecided(self, event: Event) -> bool:
        """Return whether a decision is due: not at a rung that an earlier attempt reported."""
        return event.status is Status.AT_RUNG and event.rung not in self._reported

    def add_branch(self, branch: Branch) -> None:
        """Add a branch that began where the last event ended to the rows to be committed."""
        metrics.STEPS.inc(len(branch.losses))
        curve = BranchCurve(
            step=branch.step,
            losses=branch.losses,
            rates=branch.rates,
            time=branch.time + self._epoch,
            metrics=branch.metrics,
        )
        self._measured[-1] = replace(self._measured[-1], branches=(curve,))

    def leave_undecided(self) -> None:
        """Discard the last event, at a rung; the next attempt trains to it and decides again."""
        self._measured.pop()
        self._undecided = True

    def entry(self, event: Event, decision: Decision | None = None) -> Entry:
        """Return what is to be committed after an event: rows, a report, an outcome."""
        if decision is None:
            return self._entry(outcome=self._outcome_of(event))
        assert event.value is not None
        assert event.rung is not None
        report = Report(
            step=event.rung,
            value=event.value,
            pruned=decision.prune,
            reason=decision.reason,
        )
        outcome = Outcome(kind=PRUNED, reason=decision.reason, value=event.value)
        return self._entry(report, decision.attrs, outcome if decision.prune else None)

    def _outcome_of(self, event: Event) -> Outcome | None:
        match event.status:
            case Status.FINISHED:
                value, spec = event.value, self._study.spec
                assert value is not None
                how = event.reason or f"ran all {event.next_step} steps"
                where = "at best" if spec.study.value == "best" else "at the end"
                reason = _sentence(f"{how}; {spec.study.metric} {value:.4g} {where}")
                return self._judged(Outcome(kind=COMPLETED, reason=reason, value=value))
            case Status.DIVERGED:
                reason, stopped = _sentence(event.reason), event.stopped_step
                return Outcome(kind=DIVERGED, reason=reason, stopped_step=stopped)
            case Status.FAILED:
                return Outcome(kind=FAILED, reason=_sentence(event.reason))
        return None

    def _judged(self, outcome: Outcome) -> Outcome:
        """Return an outcome with what the trial's last metrics say."""
        if not at_end.is_judged(self._study.spec):
            return outcome
        parts = [*filter(None, [self._spill.read()]), *self._measured]
        fresh = curves.join(parts) if parts else None
        return self._context.commits.retry_until_stopped(
            lambda: at_end.judge(self._ledger, self._study, self.lease, self.number, outcome, fresh)
        )

    def _entry(
        self,
        report: Report | None = None,
        attrs: Mapping[str, Any] | None = None,
        outcome: Outcome | None = None,
        traceback: str | None = None,
    ) -> Entry:
        """Return all that is not committed, including what was spilled."""
        kept, kept_step = self._kept(outcome)
        parts = [*filter(None, [self._spill.read()]), *self._measured]
        chunk = curves.join(parts)
        if outcome is None and not len(chunk.times):  # its evaluation waits for the next row
            chunk = curves.empty(chunk.first_step)
        return Entry(
            lease=self.lease,
            chunk=chunk,
            report=report,
            attrs=attrs or {},
            outcome=outcome,
            traceback=traceback,
            kept=kept,
            kept_step=kept_step,
            environment=self._context.environment() if outcome else None,
        )

    def _kept(self, outcome: Outcome | None) -> tuple[CheckpointRecord | None, int | None]:
        """Return the checkpoint that a trial keeps after its outcome, or an earlier one's step."""
        keep, ended_well = self._step_to_keep, outcome and outcome.kind in (COMPLETED, PRUNED)
        if not keep or not ended_well:
            return None, None
        with suppress(LeaseLost):  # the commit of the outcome is refused, too
            self.record_checkpoint()
        if self._step > keep or (self._saved and self._saved.step == self._step):
            return None, min(self._step, keep)
        self._send_checkpoint()
        return self._sent(), None

    def rows(self) -> Entry | None:
        """Return the rows that are not committed; None if there are none.

        An evaluation that no row follows waits for its row, or for the outcome.
        """
        fresh = any(len(chunk.times) for chunk in self._measured)
        return self._entry() if fresh or self._spill else None

    def committed(self, entry: Entry) -> None:
        """Drop what is committed from what is to be committed."""
        if entry.outcome or len(entry.chunk.times):
            self._measured = []
            self._spill.clear()
        if entry.report:
            self._reported.add(entry.report.step)
        if entry.outcome:
            self._ended(entry.outcome)

    def _ended(self, outcome: Outcome) -> None:
        metrics.TRIALS_ENDED.labels(outcome.kind).inc()
        self.failed = outcome.kind == FAILED
        self.ended_well = not self.failed
        self.raised = outcome.reason if self.failed else None
        self.log.info(
            "trial ended",
            outcome=outcome.kind,
            reason=outcome.reason,
            value=outcome.value,
            step=self._step,
        )
        self.clear_checkpoints()

    def clear_checkpoints(self) -> None:
        """Remove the checkpoints of the trial, which has ended, but not the one that it keeps.

        Attempts that were killed may have left some that the ledger does not know, and one of this
        attempt may be on its way.
        """

        def call() -> None:
            store, trial_id = self._context.sender.store, self.lease.trial_id
            clear(store, self._ledger, self._study, trial_id, self.number)

        self._context.sender.submit(lambda: self._context.commits.retry_until_stopped(call))

    def spill(self) -> bool:
        """Spill rows into a file; return False if there is no space for them."""
        spilled, fresh = self._spill.read(), curves.join(self._measured)
        if self._spill.add(fresh.after(spilled.next_step, evaluated=False) if spilled else fresh):
            metrics.CHUNKS_SPILLED.inc()
            self._measured = []
            return True
        return False

    def save_and_release(self) -> None:
        """Save a checkpoint and release the lease, since the worker was asked to stop."""
        if self.rows() is None:
            self.save_checkpoint()
            self.record_checkpoint()  # once it has arrived
        reach("leave.before_release")
        self._ledger.release(
            self.lease,
            INTERRUPTED,
            "the worker was asked to stop",
            environment=self._context.environment(),
        )
        self.log.info("trial left to the next worker", step=self._step)

    def release(self) -> None:
        """Release the lease; the next attempt resumes from the last checkpoint."""
        reason = "memory was too short for so many trials at a time"
        self._release(INTERRUPTED, reason)

    def abandon(self) -> None:
        """Release the lease; another worker may be able to read the study."""
        self._release(INTERRUPTED, "the rows of its study cannot be used")

    def fail(self, error: BaseException) -> Entry | None:
        """Return the trial's end after an exception, or None if it was released to be retried."""
        traceback = failures.full_traceback(error)
        if out_of_memory.is_out_of_memory(error):
            return self._run_out_of_memory(traceback)
        self.log.debug("the workload raised", exc_info=error)
        sentence = failures.sentence(error, self._study.spec.workload.function)
        if self._endings.get(RAISED, 0) < self._study.spec.budget.retries.failed:
            self.log.warning(f"trial {self.number} will be tried again: {sentence}")
            if rows := self.rows():
                self._context.commits.commit_decisions([rows])
            self._release(RAISED, sentence, traceback)
            self.raised = sentence
            return None
        return self._failed(sentence, traceback)

    def _failed(self, reason: str, traceback: str) -> Entry:
        return self._entry(outcome=Outcome(kind=FAILED, reason=reason), traceback=traceback)

    def _release(self, ending: str, reason: str, traceback: str | None = None) -> None:
        self._context.commits.retry_until_stopped(
            lambda: self._ledger.release(
                self.lease, ending, reason, traceback, environment=self._context.environment()
            )
        )

    def _run_out_of_memory(self, traceback: str) -> Entry | None:
        """Release the trial to an attempt with half the micro-batch, or return its end."""
        spec, (rows, keeps_last) = self._study.spec, sizes_of(self._study.workload)
        if rows is None and spec.workload.factory is None:
            reason = "The train function ran out of memory."
            return self._failed(reason, traceback)
        halvings = self._endings.get(OUT_OF_MEMORY, 0)
        settings = settings_of(spec, self._params or {}, rows, keeps_last)
        # a loader, whose rows may be unknown, has a batch size
        sizes = [one for one in (settings.batch_size, rows) if isinstance(one, int)]
        largest = -(-min(sizes) // (settings.accumulate * 2**halvings))
        if largest == 1 or halvings >= spec.budget.retries.out_of_memory:
            reason = f"Out of memory, even with micro-batches of {largest}."
            return self._failed(reason, traceback)
        out_of_memory.release_memory()
        reason = f"out of memory with micro-batches of {largest}; the next attempt halves them"
        self.log.warning(f"trial {self.number}: {reason}")
        self._release(OUT_OF_MEMORY, reason, traceback)
        return None

    def _chunk(self, event: Event) -> Chunk:
        evaluations = event.evaluations
        names = evaluations[0].metrics if evaluations else ()
        return Chunk(
            first_step=event.first_step,
            columns=event.columns,
            times=event.times + self._epoch,
            eval_steps=np.array([one.step for one in evaluations], dtype=np.int64),
            eval_times=np.array([one.time for one in evaluations]) + self._epoch,
            metrics={name: np.array([e.metrics[name] for e in evaluations]) for name in names},
        )

    def checkpoint_due(self) -> bool:
        """Return whether it is time for a checkpoint: not while one is on its way, unless it is of
        the step that the trial keeps.
        """
        if self._step == self._step_to_keep > 0 and not (
            self._saved and self._saved.step == self._step
        ):
            return True
        age = time.monotonic() - self._checkpointed_at
        return self._sending is None and age >= self._study.spec.training.checkpoint_seconds

    def checkpoint_sent(self) -> bool:
        """Return whether a checkpoint has arrived and is not recorded."""
        return self._sending is not None and self._sending.digest.done()

    def save_checkpoint(self) -> None:
        """Save the trainer's state; the rows up to it are committed already.

        It is recorded once it is stored: at once in a folder, else at a later look. At a rung
        without a decision there is no checkpoint: it would be resumed beyond the rung.
        """
        self.record_checkpoint()
        if self._undecided:
            return
        if self._measured or self._step == (self._saved.step if self._saved else 0):
            return  # an evaluation waits for its row, or nothing was trained since
        self._send_checkpoint()
        if self.checkpoint_sent():
            self.record_checkpoint()

    def record_checkpoint(self) -> None:
        """Wait for the checkpoint that is on its way, if there is one, and commit its reference."""
        record = self._sent()
        if record is None:
            return
        reach("checkpoint.renamed")
        try:
            replaced = self._ledger.save_checkpoint(
                self.lease,
                record,
                kept_step=self._step_to_keep,
                environment=self._context.environment(),
            )
        except ConnectionLostError as error:  # the last and the next checkpoint suffice
            self.log.warning(f"a checkpoint is not recorded: {error}", step=record.step)
            return
        self._saved = record
        for old in replaced:
            self._context.sender.submit(partial(remove_file, self._context.sender.store, old))

    def _send_checkpoint(self) -> None:
        """Send the trainer's state to where checkpoints are kept."""
        record = CheckpointRecord(
            study_id=self._study.id,
            trial=self.number,
            step=self._step,
            attempt=int(self.lease.token),
            digest="",
        )
        try:
            with workload_code():
                snapshot = self._trainer.snapshot(self.number)
        except (OSError, ValueError, WorkloadCodeError) as error:
            self._has_no_checkpoint(record, error)
            return
        finally:
            self._checkpointed_at = time.monotonic()
        store, key = self._context.sender.store, key_of(record)
        sent = self._context.sender.submit(lambda: checkpoint.write(store, key, snapshot))
        self._sending = _Sending(record=record, digest=sent)

    def _sent(self) -> CheckpointRecord | None:
        """Wait for the checkpoint that is on its way; return it if it has arrived."""
        sending, self._sending = self._sending, None
        if sending is None:
            return None
        try:
            return replace(sending.record, digest=sending.digest.result())
        except (OSError, ValueError) as error:
            self._has_no_checkpoint(sending.record, error)
            return None

    def _has_no_checkpoint(self, record: CheckpointRecord, error: Exception) -> None:
        # such as a full disk; the rows are safe, only time would be lost
        self.log.warning(f"trial {self.number} has no checkpoint of step {record.step}: {error}")


def _sentence(reason: str) -> str:
    return f"{reason[:1].upper()}{reason[1:]}."
