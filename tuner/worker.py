"""Ask, train, commit, tell: the work at trials, under leases.

Decisions follow logical steps. The clock decides only when rows are committed, when a checkpoint
is saved and when the worker looks whether it should stop; none of these changes a curve.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tuner import curves, failure
from tuner.checkpoint_folders import folder_of, sweep
from tuner.curves import Chunk
from tuner.environment import describe, identity, is_gone
from tuner.errors import LeaseLost, WorkloadError
from tuner.failpoints import reach
from tuner.ledger import (
    OPEN,
    OUT_OF_MEMORY,
    CheckpointRecord,
    Claim,
    Ledger,
    Report,
    StudyRecord,
    governing,
    renewing,
)
from tuner.outcome import COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING, Outcome
from tuner.search import Search
from tuner.spec import ParameterValue
from tuner.submission import load_workload
from tuner.training import checkpoint as checkpoint_files
from tuner.training import choosing, memory
from tuner.training.device import use_threads
from tuner.training.trainer import Event, Status, Task, Trainer, seed_of

LOOK_SECONDS = 0.2
"""How long a trainer trains before the worker looks around."""
COMMIT_SECONDS = 1.0
"""How long measured rows may wait for their commit."""
IDLE_SECONDS = 0.5
THREADS = 1
"""More threads make small models and samplers slower, and results depend on their number."""
HALVINGS = 6
"""How often a trial that ran out of memory is tried again with half the micro-batch."""

log = logging.getLogger(__name__)


def work(
    ledger: Ledger,
    checkpoints: Path,
    *,
    names: Sequence[str],
    prefixes: Sequence[str],
    stop: threading.Event,
    until_idle: bool,
) -> None:
    """Train trials of the open studies (of `names`, if there are any) until told to stop.

    With `until_idle`, return once there is no trial to take and nobody trains one. A study that
    was named and cannot be trained here raises `WorkloadError`; any other is left to others.
    """
    workers: dict[int, StudyWorker | None] = {}
    while not stop.is_set():
        if ledger.reap(is_gone):
            for path in ledger.forget_checkpoints():
                (checkpoints / path).unlink(missing_ok=True)
        for study in _open_studies(ledger, names):
            if study.id not in workers:
                try:
                    workers[study.id] = StudyWorker(ledger, study, checkpoints, prefixes, stop)
                except WorkloadError as error:
                    if names:
                        raise
                    log.warning("study %s is left to other workers: %s", study.name, error)
                    workers[study.id] = None
        able = [worker for worker in workers.values() if worker is not None]
        trained = [worker.train_one() for worker in able]
        if any(trained):
            continue
        if until_idle and not any(worker.others_train() for worker in able):
            return
        stop.wait(IDLE_SECONDS)


def _open_studies(ledger: Ledger, names: Sequence[str]) -> list[StudyRecord]:
    if names:
        return [ledger.study(name) for name in names]
    return [study for study in ledger.studies() if study.state == OPEN]


class StudyWorker:
    """Trains trials of one study, one at a time."""

    def __init__(
        self,
        ledger: Ledger,
        study: StudyRecord,
        checkpoints: Path,
        prefixes: Sequence[str],
        stop: threading.Event,
    ) -> None:
        self._ledger = ledger
        self._study = study
        self._checkpoints = checkpoints
        self._stop = stop
        self._worker = identity()
        settling = {"trainer": choosing.name_of(study.spec), "threads": THREADS}
        settled = ledger.settle(study.id, settling)
        use_threads(settled["threads"])
        self._environment = describe(study.spec.training.device) | {"settled": settled}
        self._trainer = choosing.trainer_for(load_workload(study, prefixes), study.spec)
        self._search = Search(study, ledger)
        sweep(checkpoints, ledger, study)

    def others_train(self) -> bool:
        """Tell whether any trial has a live attempt."""
        return self._ledger.counts(self._study.id)["running"] > 0

    def train_one(self) -> bool:
        """Take a trial and work at it until it ends or the worker is told to stop."""
        if self._stop.is_set():
            return False
        stopped = governing.break_circuit(self._ledger, self._study)
        if stopped is not None:
            log.warning("study %s: %s", stopped.name, stopped.reason)
            return False
        claim = self._ledger.claim(self._study.id, self._worker, self._environment)
        if claim is None:
            return False
        number = claim.trial.number
        attempt = _Attempt(
            self._ledger,
            self._study,
            self._search,
            self._trainer,
            claim,
            self._checkpoints,
            self._stop,
        )
        try:
            with renewing(self._ledger, claim.lease):
                attempt.run()
        except LeaseLost as lost:
            self._give_up(number, lost)
        return True

    def _give_up(self, number: int, lost: LeaseLost) -> None:
        """Leave a trial that is another's now, or has been cancelled."""
        trials = self._ledger.trials(self._study.id)
        trial = next((one for one in trials if one.number == number), None)
        if trial is not None and trial.state == RUNNING:
            log.warning("trial %d of %s: %s", number, self._study.name, lost)
            return
        shutil.rmtree(folder_of(self._checkpoints, self._study, number), ignore_errors=True)
        why = "its study was deleted" if trial is None else str(trial.reason)
        log.warning("trial %d of %s has been cancelled: %s", number, self._study.name, why)


class _Attempt:
    """One try at one trial."""

    def __init__(
        self,
        ledger: Ledger,
        study: StudyRecord,
        search: Search,
        trainer: Trainer,
        claim: Claim,
        checkpoints: Path,
        stop: threading.Event,
    ) -> None:
        self._ledger = ledger
        self._study = study
        self._search = search
        self._trainer = trainer
        self._lease = claim.lease
        self._trial = claim.trial
        self._saved = claim.checkpoint
        self._halvings = claim.out_of_memory
        self._checkpoints = checkpoints
        self._stop = stop
        now = time.monotonic()
        self._epoch = claim.lease.started_at - now  # from this clock to the database's
        self._committed_at = self._checkpointed_at = now
        self._step = claim.checkpoint.step if claim.checkpoint else 0  # where the member is
        self._block = 1  # steps that take about LOOK_SECONDS
        self._measured: list[Chunk] = []  # not yet committed
        self._reported = {report.step for report in claim.trial.reports}

    def run(self) -> None:
        """Draw if need be, then train to the outcome, or to the next checkpoint when stopped."""
        reach("ask.reserved")
        params = dict(self._trial.params or self._draw())
        try:
            self._admit(params)
        except Exception as error:
            self._fail(error)
            return
        try:
            self._train()
        finally:
            self._trainer.evict(self._trial.number)

    def _train(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                (event,) = self._trainer.advance(self._block)
            except Exception as error:
                self._fail(error)
                return
            if self._take(event):
                return
            self._pace(len(event.times), time.monotonic() - began)
        self._commit()
        self._save_checkpoint()
        self._ledger.release(self._lease, "interrupted", "the worker was told to stop")

    def _draw(self) -> dict[str, ParameterValue]:
        draw = self._search.draw(self._trial.number)
        reach("ask.drawn")
        self._ledger.draw(
            self._lease,
            draw.params,
            attrs=draw.attrs,
            study_attrs=draw.study_attrs,
            asked_revision=draw.revision,
        )
        return dict(draw.params)

    def _admit(self, params: dict[str, ParameterValue]) -> None:
        number = self._trial.number
        seed = seed_of(self._study.spec, number)
        task = Task(number=number, seed=seed, params=params, halvings=self._halvings)
        if self._saved is not None:
            path = self._checkpoints / self._saved.path
            try:
                snapshot = checkpoint_files.read(path, self._saved.digest)
                self._trainer.admit(replace(task, snapshot=snapshot))
            except (OSError, ValueError) as error:
                log.warning("trial %d begins anew, its checkpoint is unusable: %s", number, error)
                self._step, self._saved = 0, None
            else:
                return
        self._trainer.admit(task)

    def _take(self, event: Event) -> bool:
        """Commit what is due after an event; tell whether the trial has ended."""
        self._step = event.next_step
        self._measured.append(self._chunk(event))
        match event.status:
            case Status.TRAINING:
                self._commit_when_due()
                return False
            case Status.AT_RUNG:
                return self._decide(event)
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

    def _decide(self, event: Event) -> bool:
        step, value = event.next_step, event.value
        assert value is not None
        if step in self._reported:  # a resumed attempt comes by again
            self._commit_when_due()
            return False
        decision = self._search.decide(self._trial.number, step, value)
        report = Report(step=step, value=value, pruned=decision.prune, reason=decision.reason)
        reach("report.before_commit")
        if decision.prune:
            outcome = Outcome(kind=PRUNED, reason=decision.reason, value=value)
            self._finish(outcome, report, dict(decision.attrs))
        else:
            self._ledger.report(self._lease, self._take_measured(), report, attrs=decision.attrs)
        return decision.prune

    def _finish(
        self,
        outcome: Outcome,
        report: Report | None = None,
        attrs: dict[str, object] | None = None,
    ) -> None:
        reach("outcome.before_commit")
        self._ledger.finish(
            self._lease, outcome, chunk=self._take_measured(), report=report, attrs=attrs
        )
        reach("outcome.committed")
        # all of it: attempts that were killed may have left files that the ledger does not know
        shutil.rmtree(folder_of(self._checkpoints, self._study, self._trial.number), True)

    def _fail(self, error: Exception) -> None:
        """End the trial as failed: the same code on the same data would raise again.

        Out of memory is another matter, as long as there are smaller micro-batches to try.
        """
        if memory.ran_out(error):
            self._run_out_of_memory()
            return
        log.debug("trial %d failed", self._trial.number, exc_info=error)
        self._finish(Outcome(kind=FAILED, reason=failure.sentence(error)))

    def _run_out_of_memory(self) -> None:
        """Leave the trial to an attempt with half the micro-batch, or fail it."""
        spec, rows = self._study.spec, self._study.workload["training_rows"]
        if rows is None:
            self._finish(Outcome(kind=FAILED, reason="The train function ran out of memory."))
            return
        batch = rows if spec.training.batch_size == "full" else spec.training.batch_size
        largest = -(-min(batch, rows) // (spec.training.accumulate * 2**self._halvings))
        if largest == 1 or self._halvings == HALVINGS:
            reason = f"Out of memory, even with micro-batches of {largest}."
            self._finish(Outcome(kind=FAILED, reason=reason))
            return
        memory.make_room()
        said = f"out of memory with micro-batches of {largest}; the next attempt halves them"
        log.warning("trial %d: %s", self._trial.number, said)
        self._ledger.release(self._lease, OUT_OF_MEMORY, said)

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
        chunk = curves.join(self._measured)
        self._measured = []
        return chunk

    def _commit_when_due(self) -> None:
        now = time.monotonic()
        if now - self._checkpointed_at >= self._study.spec.training.checkpoint_seconds:
            self._commit()
            self._save_checkpoint()
        elif now - self._committed_at >= COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        if self._measured:
            reach("chunk.before_commit")
            self._ledger.append(self._lease, self._take_measured())
            reach("chunk.committed")
        self._committed_at = time.monotonic()

    def _save_checkpoint(self) -> None:
        """Save the trainer's state; the rows up to it are committed already."""
        if self._step == (self._saved.step if self._saved else 0):
            return  # nothing was trained since
        number = self._trial.number
        folder = folder_of(self._checkpoints, self._study, number)
        file = folder / f"{self._step}-{self._lease.number}.pt"
        try:
            digest = checkpoint_files.write(file, self._trainer.snapshot(number))
        except OSError as error:  # such as a full disk; the rows are safe, only time would be lost
            log.warning("trial %d has no checkpoint of step %d: %s", number, self._step, error)
            return
        finally:
            self._checkpointed_at = time.monotonic()
        reach("checkpoint.renamed")
        path = file.relative_to(self._checkpoints).as_posix()
        self._saved = CheckpointRecord(step=self._step, path=path, digest=digest)
        for needless in self._ledger.save_checkpoint(self._lease, self._saved):
            (self._checkpoints / needless).unlink(missing_ok=True)

    def _pace(self, steps: int, seconds: float) -> None:
        """Choose how many steps to ask for next."""
        if steps == self._block:
            faster = max(1, round(steps * LOOK_SECONDS / max(seconds, 1e-6)))
            self._block = min(2 * self._block, faster)


def _sentence(reason: str) -> str:
    return f"{reason[:1].upper()}{reason[1:]}."
