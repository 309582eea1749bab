"""One try at one trial: what its trainer measures is committed, under a lease.

The clock decides only when rows are committed and when a checkpoint is saved; neither changes a
curve. While the database is away, rows go into a spill file; decisions and outcomes wait.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tenacity import Retrying, retry_if_exception_type, stop_when_event_set, wait_random_exponential

from tuner import curves, failure, metrics
from tuner.checkpoint_folders import folder_of
from tuner.curves import Chunk
from tuner.errors import ConnectionLostError
from tuner.failpoints import reach
from tuner.ledger import (
    INTERRUPTED,
    OUT_OF_MEMORY,
    RAISED,
    CheckpointRecord,
    Claim,
    Ledger,
    Report,
    StudyRecord,
)
from tuner.logs import logger
from tuner.outcome import COMPLETED, DIVERGED, FAILED, PRUNED, Outcome
from tuner.search import Decision
from tuner.training import checkpoint as checkpoint_files
from tuner.training import memory
from tuner.training.trainer import Event, Status, Task, Trainer, seed_of
from tuner.worker.spill import Spill

COMMIT_SECONDS = 1.0
"""How long measured rows may wait for their commit."""
AWAY_SECONDS = 2.0
"""How long until a database that is away is asked again whether it takes rows."""
LONGEST_SECONDS = 5.0
"""The longest pause between two tries of what must wait for the database."""

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What all attempts of a worker at one study have in common."""

    ledger: Ledger
    impatient: Ledger  # the same one, for what need not wait
    study: StudyRecord
    checkpoints: Path
    spill: Path
    worker: str  # its identity
    stop: threading.Event  # it was told to stop


class Attempt:
    """One try at one trial, from its admission to its end."""

    def __init__(self, here: Surroundings, trainer: Trainer, claim: Claim) -> None:
        self._here = here
        self._trainer = trainer
        self._ledger = here.ledger
        self._study = here.study
        self.lease = claim.lease
        self.number = claim.trial.number
        self.failed = False  # the trial, by this attempt
        self._params = claim.trial.params
        self._saved = claim.checkpoint
        self._endings = claim.endings
        now = time.monotonic()
        self._epoch = claim.lease.started_at - now  # from this clock to the database's
        self._committed_at = self._checkpointed_at = now
        self._step = claim.checkpoint.step if claim.checkpoint else 0  # where the member is
        self._measured: list[Chunk] = []  # not yet committed
        self._spill = Spill(here.spill)
        self._reported = {report.step for report in claim.trial.reports}
        self.log = logger(__name__).bind(
            study=here.study.name,
            trial=self.number,
            attempt=claim.lease.number,
            worker=here.worker,
        )

    def admit(self, params: Mapping[str, Any]) -> bool:
        """Give the trial a slot, from its checkpoint if it has one; False if that failed it."""
        task = Task(
            number=self.number,
            seed=seed_of(self._study.spec, self.number),
            params=params,
            halvings=self._endings.get(OUT_OF_MEMORY, 0),
        )
        try:
            if not self._admit_saved(task):
                self._trainer.admit(task)
        except Exception as error:
            self.fail(error)
            return False
        self.log.info("trial taken up", step=self._step, lr=params["lr"])
        return True

    def _admit_saved(self, task: Task) -> bool:
        if self._saved is None:
            return False
        path = self._here.checkpoints / self._saved.path
        try:
            snapshot = checkpoint_files.read(path, self._saved.digest)
            self._trainer.admit(replace(task, snapshot=snapshot))
        except (OSError, ValueError) as error:
            self.log.warning(
                f"trial {self.number} begins anew, its checkpoint is unusable: {error}"
            )
            self._step, self._saved = 0, None
            return False
        return True

    def take(self, event: Event) -> bool:
        """Take in what was measured and commit what is due; tell whether the trial has ended.

        At a rung nothing is committed before the decision: see `undecided` and `decided`.
        """
        metrics.STEPS.inc(len(event.times))
        self._step = event.next_step
        self._measured.append(self._chunk(event))
        match event.status:
            case Status.TRAINING:
                self._commit_when_due()
                return False
            case Status.AT_RUNG:
                return False
            case Status.FINISHED:
                value, spec = event.value, self._study.spec
                assert value is not None
                how = event.reason or f"ran all {spec.training.steps} steps"
                where = "at best" if spec.study.value == "best" else "at the end"
                reason = _sentence(f"{how}; {spec.study.metric} {value:.4g} {where}")
                self._finish(Outcome(kind=COMPLETED, reason=reason, value=value))
            case Status.DIVERGED:
                reason, stopped = _sentence(event.reason), event.stopped_step
                self._finish(Outcome(kind=DIVERGED, reason=reason, stopped_step=stopped))
            case Status.FAILED:
                self._finish(Outcome(kind=FAILED, reason=_sentence(event.reason)))
        return True

    def undecided(self, event: Event) -> bool:
        """Tell whether a decision is due; not where a resumed attempt comes by a rung again."""
        if event.status is not Status.AT_RUNG:
            return False
        if event.next_step in self._reported:
            self._commit_when_due()
            return False
        return True

    def decided(self, event: Event, decision: Decision) -> bool:
        """Commit a report and the decision on it; tell whether the trial was pruned."""
        step, value = event.next_step, event.value
        assert value is not None
        report = Report(step=step, value=value, pruned=decision.prune, reason=decision.reason)
        reach("report.before_commit")
        if decision.prune:
            outcome = Outcome(kind=PRUNED, reason=decision.reason, value=value)
            self._finish(outcome, report, decision.attrs)
        else:
            rows = self._take_measured()
            self.waiting(
                lambda: self._ledger.report(self.lease, rows, report, attrs=decision.attrs)
            )
            self._spill.clear()
            self._reported.add(step)
        return decision.prune

    def leave(self) -> None:
        """Commit, save a checkpoint, and give the lease back: the worker was told to stop."""
        if self._commit():
            self._save_checkpoint()
        self._ledger.release(self.lease, INTERRUPTED, "the worker was told to stop")
        self.log.info("trial left to the next worker", step=self._step)

    def give_back(self) -> None:
        """Give the lease back as the trial is, from its last checkpoint on."""
        reason = "memory was too short for so many trials at a time"
        self.waiting(lambda: self._ledger.release(self.lease, INTERRUPTED, reason))

    def fail(self, error: Exception) -> None:
        """End the attempt with an exception, and the trial too, unless it may be tried again."""
        if memory.ran_out(error):
            self._run_out_of_memory()
            return
        self.log.debug("the workload raised", exc_info=error)
        sentence = failure.sentence(error)
        if self._endings.get(RAISED, 0) < self._study.spec.budget.retries.failed:
            self.log.warning(f"trial {self.number} will be tried again: {sentence}")
            self.waiting(lambda: self._ledger.release(self.lease, RAISED, sentence))
        else:
            self._finish(Outcome(kind=FAILED, reason=sentence))

    def waiting(self, call: Callable[[], R]) -> R:
        """Make a call that must wait for the database; until the worker is told to stop."""

        def say(_: object) -> None:
            metrics.turned("worker")
            self.log.warning(f"trial {self.number} waits for the database", step=self._step)

        retrying = Retrying(
            retry=retry_if_exception_type(ConnectionLostError),
            wait=wait_random_exponential(multiplier=0.1, max=LONGEST_SECONDS),
            stop=stop_when_event_set(self._here.stop),
            before_sleep=say,
            reraise=True,
        )
        return retrying(call)

    def _finish(
        self,
        outcome: Outcome,
        report: Report | None = None,
        attrs: Mapping[str, object] | None = None,
    ) -> None:
        reach("outcome.before_commit")
        rows = self._take_measured()
        self.waiting(
            lambda: self._ledger.finish(self.lease, outcome, chunk=rows, report=report, attrs=attrs)
        )
        reach("outcome.committed")
        metrics.TRIALS_ENDED.labels(outcome.kind).inc()
        self.failed = outcome.kind == FAILED
        self._spill.clear()
        self.log.info(
            "trial ended",
            outcome=outcome.kind,
            reason=outcome.reason,
            value=outcome.value,
            step=self._step,
        )
        # all of it: attempts that were killed may have left files that the ledger does not know
        shutil.rmtree(folder_of(self._here.checkpoints, self._study, self.number), True)

    def _run_out_of_memory(self) -> None:
        """Leave the trial to an attempt with half the micro-batch, or fail it."""
        spec, rows = self._study.spec, self._study.workload["training_rows"]
        if rows is None:
            self._finish(Outcome(kind=FAILED, reason="The train function ran out of memory."))
            return
        halvings = self._endings.get(OUT_OF_MEMORY, 0)
        batch = rows if spec.training.batch_size == "full" else spec.training.batch_size
        largest = -(-min(batch, rows) // (spec.training.accumulate * 2**halvings))
        if largest == 1 or halvings >= spec.budget.retries.out_of_memory:
            reason = f"Out of memory, even with micro-batches of {largest}."
            self._finish(Outcome(kind=FAILED, reason=reason))
            return
        memory.make_room()
        said = f"out of memory with micro-batches of {largest}; the next attempt halves them"
        self.log.warning(f"trial {self.number}: {said}")
        self.waiting(lambda: self._ledger.release(self.lease, OUT_OF_MEMORY, said))

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

    def _take_measured(self) -> Chunk:
        """Give all that is not committed, also what was spilled, which stays until it is."""
        spilled = self._spill.read()
        chunk = curves.join([*([spilled] if spilled else []), *self._measured])
        self._measured = []
        return chunk

    def _commit_when_due(self) -> None:
        now = time.monotonic()
        if now - self._checkpointed_at >= self._study.spec.training.checkpoint_seconds:
            if self._commit():
                self._save_checkpoint()
        elif now - self._committed_at >= COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> bool:
        """Commit what was measured; False if it was spilled instead, as the database is away."""
        now = time.monotonic()
        if not self._measured and not self._spill:
            return True
        if now < self._committed_at:  # it was away a moment ago
            return False
        reach("chunk.before_commit")
        rows = self._take_measured()
        try:
            self._here.impatient.append(self.lease, rows)
        except ConnectionLostError as error:
            self._put_aside(rows, error)
            return False
        self._spill.clear()
        reach("chunk.committed")
        self._committed_at = time.monotonic()
        return True

    def _put_aside(self, rows: Chunk, error: ConnectionLostError) -> None:
        """Spill rows; where there is no room, wait until the ledger takes them."""
        spilled = self._spill.read()
        fresh = rows.after(spilled.next_step) if spilled else rows
        if self._spill.add(fresh):
            metrics.CHUNKS_SPILLED.inc()
            self.log.warning(f"rows are kept in a file: {error}", step=self._step)
            self._committed_at = time.monotonic() + AWAY_SECONDS
            return
        self.log.warning("no room to keep rows; training waits for the database", step=self._step)
        self.waiting(lambda: self._ledger.append(self.lease, rows))
        self._spill.clear()

    def _save_checkpoint(self) -> None:
        """Save the trainer's state; the rows up to it are committed already."""
        if self._step == (self._saved.step if self._saved else 0):
            return  # nothing was trained since
        folder = folder_of(self._here.checkpoints, self._study, self.number)
        file = folder / f"{self._step}-{self.lease.number}.pt"
        try:
            digest = checkpoint_files.write(file, self._trainer.snapshot(self.number))
        except OSError as error:  # such as a full disk; the rows are safe, only time would be lost
            self.log.warning(f"trial {self.number} has no checkpoint of step {self._step}: {error}")
            return
        finally:
            self._checkpointed_at = time.monotonic()
        reach("checkpoint.renamed")
        path = file.relative_to(self._here.checkpoints).as_posix()
        record = CheckpointRecord(step=self._step, path=path, digest=digest)
        try:
            needless = self._ledger.save_checkpoint(self.lease, record)
        except ConnectionLostError as error:  # the last one, and the next one, will do
            self.log.warning(f"a checkpoint is not noted: {error}", step=self._step)
            return
        for old in needless:
            (self._here.checkpoints / old).unlink(missing_ok=True)
        self._saved = record


def _sentence(reason: str) -> str:
    return f"{reason[:1].upper()}{reason[1:]}."
