"""Ask and tell: the caller trains, and the search, the ledger and the records are tuner's.

An asked trial is claimed under a lease, as by a worker. A thread renews the lease while the caller
keeps the trial. One that is dropped, or whose process died, expires, and the next ask takes it.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from tuner.config import ParameterValue, StudySpec, settings_of
from tuner.core import curves, failures
from tuner.core.curves import Chunk
from tuner.core.environment import describe, identity
from tuner.core.errors import TunerError, UsageError
from tuner.core.outcome import COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING, Outcome
from tuner.core.processes import RecorderProcess
from tuner.core.text import printable
from tuner.ledger import INTERRUPTED, Claim, Entry, Ledger, Report, StudyRecord, at_end
from tuner.ledger.attempts import refused
from tuner.ledger.database import Addresses
from tuner.operations import submit
from tuner.search import Search
from tuner.training import objective
from tuner.training.objective import NO_EVALUATIONS
from tuner.training.rate_source import rate_source
from tuner.training.trainer import TRAIN_COLUMNS, Task, seed_of
from tuner.training.trial import StopTrial, Trial
from tuner.worker.lease_renewer import LeaseRenewer
from tuner.worker.rules import Rules

COMMIT_SECONDS = 1.0
"""How long reported rows may wait for their commit."""
WORKLOAD: Mapping[str, Any] = {
    "code": "",  # the caller's own
    "data": "",
    "data_name": "",
    "baseline_loss": None,
    "training_rows": None,
    "validation_rows": None,
}
"""The description of the workload of a study whose trials are asked for."""
SETTLED: Mapping[str, Any] = {
    "trainer": "ask and tell",
    "slots": 1,
    "reason": "its caller trains",
    "threads": 1,
    "threads_reason": "its caller trains",
}


def submitted(ledger: Ledger, spec: StudySpec) -> StudyRecord:
    """Submit a study whose trials are asked for, or return the existing one."""
    _refuse_other(spec)
    return submit.submit(ledger, spec, WORKLOAD)[0]


def _refuse_other(spec: StudySpec) -> None:
    if not spec.workload.ask_and_tell:
        raise UsageError(
            f"study {spec.study.name!r} trains {spec.workload.function}, so its workers take its "
            "trials; leave out train and factory to ask for trials and train them yourself"
        )


class Asker:
    """The trials of one study that this process has asked for. Thread-safe."""

    def __init__(
        self,
        ledger: Ledger,
        places: Addresses,
        study: StudyRecord,
        *,
        prefixes: Sequence[str] = (),
        recorder: bool = True,
    ) -> None:
        """Raise `UsageError` if workers train the study, or its own sampler is not allowed."""
        _refuse_other(study.spec)
        self.ledger = ledger
        self.study = study
        self._search = Search(study, ledger, prefixes)
        self._rules = Rules(ledger, self._search)
        self._settled = study.settled or ledger.settle(study.id, SETTLED)
        self._renewer = LeaseRenewer(ledger, places.checkpoints)
        self._held: weakref.WeakValueDictionary[int, AskedTrial] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()
        self._open = ExitStack()
        self._open.enter_context(self._renewer.running())
        self._recorder = RecorderProcess([study.name]) if recorder else None

    def ask(self) -> AskedTrial | None:
        """Return the next trial, or None if the budget is spent or the study is closed."""
        with self._lock:
            study = self.ledger.study(self.study.name)
            if study.id != self.study.id:
                raise UsageError(f"study {study.name!r} has a new version; load it again")
            self._renewer.reap()
            if self._rules.is_over(study):
                return None
            environment = describe(study.spec.training.device) | {"settled": dict(self._settled)}
            claim = self.ledger.claim(study.id, identity(), environment)
            if claim is None:
                return None
            self._renewer.hold(claim.lease)
            try:
                params = claim.trial.params or self._draw(claim)
                trial = AskedTrial(self, claim, params)
            except BaseException:
                self._renewer.drop(claim.lease)
                with suppress(TunerError):
                    self.ledger.release(claim.lease, INTERRUPTED, "its parameters were not drawn")
                raise
            # a trial that nobody keeps is not renewed, and expires
            weakref.finalize(trial, self._renewer.drop, claim.lease).atexit = False
            self._held[trial.number] = trial
            return trial

    def _draw(self, claim: Claim) -> Mapping[str, ParameterValue]:
        draw = self._search.draw(claim.trial.number)
        self.ledger.draw(
            claim.lease,
            draw.params,
            attrs=draw.attrs,
            study_attrs=draw.study_attrs,
            asked_revision=draw.revision,
        )
        return draw.params

    def decide(self, number: int, step: int, value: float) -> Any:
        """Return the pruner's decision on a trial at a rung."""
        with self._lock:
            return self._search.decide(number, step, value)

    def ended(self, trial: AskedTrial) -> None:
        """Stop renewing the lease of a trial that has ended."""
        self._renewer.drop(trial.claim.lease)
        self._held.pop(trial.number, None)
        if trial.state == FAILED:
            self._rules.check_failures_again()

    def close(self) -> bool:
        """Leave the trials that were not told to the next ask; return whether all is published."""
        with self._lock:
            for trial in list(self._held.values()):
                with suppress(TunerError):  # else it expires
                    self.ledger.release(
                        trial.claim.lease, INTERRUPTED, "the study was closed in its process"
                    )
                self._renewer.drop(trial.claim.lease)
            self._held.clear()
            self._open.close()
            recorder, self._recorder = self._recorder, None
        return recorder is None or recorder.close()


class AskedTrial:
    """A trial that the caller trains: its parameters, `report`, and what is needed for a loop."""

    def __init__(self, asker: Asker, claim: Claim, params: Mapping[str, ParameterValue]) -> None:
        spec, number = asker.study.spec, claim.trial.number
        self.asker = asker
        self.claim = claim
        self.state: str = RUNNING
        """`running`, or how the trial ended: completed, pruned, diverged or failed."""
        self.reason: str | None = None
        """Why it ended, as a sentence."""
        task = Task(number=number, seed=seed_of(spec, number), params=params)
        settings = settings_of(spec, params, None)
        self._sink = _Sink(self, spec, params, settings.steps)
        self._trial = Trial(task, spec, settings, self._sink)
        self.number = number
        self.params = self._trial.params
        """All parameters by name."""
        self.lr = self._trial.lr
        self.seed = task.seed
        self.steps = self._trial.steps
        self.rate = self._trial.rate
        self.schedule = self._trial.schedule
        self.optimizer = self._trial.optimizer
        self.evaluates = self._trial.evaluates

    def report(
        self,
        step: int,
        *,
        train_loss: Any = None,
        grad_norm: Any = None,
        lr: Any = None,
        **metrics: Any,
    ) -> bool:
        """Report a step's training loss, or metrics at a step; return whether to go on.

        Steps ascend; some may be left out. At a rung, where `evaluates(step)` is true, the pruner
        may end the trial: then the answer is False, and the trial needs no `tell`. It is False too
        after a loss or a value of the study's metric that is not finite. Raise `ValueError` for a
        report against these rules, and `LeaseLost` if the trial was given up for lost.
        """
        try:
            self._trial.report(step, train_loss=train_loss, grad_norm=grad_norm, lr=lr, **metrics)
        except StopTrial:
            return False
        return self.state == RUNNING

    def tell(
        self,
        value: float | None = None,
        *,
        failed: str | BaseException | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> str:
        """End the trial with its value, or as failed with a reason; return how it ended.

        A value that is not finite means that it diverged. `metrics` are those that the study's
        constraints need, beside the last reported ones. A trial that has ended, such as by a
        pruner, stays as it is.
        """
        if self.state != RUNNING:
            return self.state
        if (value is None) == (failed is None):
            raise UsageError("tell: expected the trial's value, or failed with a reason")
        outcome = _told(self.asker.study.spec, value, failed, self._sink.step)
        error = failed if isinstance(failed, BaseException) else None
        traceback = None if error is None else failures.full_traceback(error)
        self._sink.end(outcome, traceback, metrics or {})
        return self.state

    def __repr__(self) -> str:
        return f"<trial {self.number} of {self.asker.study.name!r}, {self.state}: {self.params}>"


def _told(
    spec: StudySpec, value: float | None, failed: str | BaseException | None, step: int
) -> Outcome:
    """Return the outcome that the caller tells."""
    if isinstance(failed, BaseException):
        return Outcome(kind=FAILED, reason=failures.sentence(failed))
    if value is None:
        return Outcome(kind=FAILED, reason=f"{printable(str(failed)).rstrip('.')}.")
    number = float(value)
    if not math.isfinite(number):
        reason = f"Its {spec.study.metric} was {number}."
        return Outcome(kind=DIVERGED, reason=reason, stopped_step=step)
    reason = f"Its caller told {spec.study.metric} {number:.4g}."
    return Outcome(kind=COMPLETED, reason=reason, value=number)


class _Sink:
    """The `ReportSink` of an asked trial: it collects rows and commits them under the lease."""

    first_step = 0

    def __init__(
        self,
        trial: AskedTrial,
        spec: StudySpec,
        params: Mapping[str, ParameterValue],
        steps: int,
    ) -> None:
        claim = trial.claim
        self._trial = weakref.ref(trial)  # the trial is dropped when its caller drops it
        self._asker = trial.asker
        self._lease = claim.lease
        self._number = claim.trial.number
        self._spec = spec
        self._rungs = frozenset(trial.asker.study.rungs)
        self._reported = {report.step for report in claim.trial.reports}
        self._steps = steps
        self.rate_source = rate_source(params, steps, spec.study.direction)
        self._epoch = claim.lease.started_at - time.monotonic()
        self._committed_at = time.monotonic()
        self._progress = NO_EVALUATIONS
        self._names: tuple[str, ...] = ()  # of metrics
        self.step = 0  # rows so far
        self._begin(0)

    def _begin(self, step: int) -> None:
        self._first = step
        self._rows: list[tuple[float, float, float, float]] = []  # loss, rate, norm, time
        self._evaluations: list[tuple[int, float, Mapping[str, float]]] = []

    def trained(self, step: int, loss: float, rate: float, grad_norm: float) -> None:
        """Add a row; rows of steps that were left out have no values."""
        self._expect(step)
        if step >= self._steps:
            raise ValueError(
                f"trial {self._number}: expected train_loss at steps below "
                f"{self._steps}, the budget of a trial, got step {step}"
            )
        self._fill(step)
        if time.monotonic() - self._committed_at >= COMMIT_SECONDS:
            self._commit()
        self._add(loss, rate, grad_norm)
        if not math.isfinite(loss):
            self._stop(Outcome(kind=DIVERGED, reason=f"The loss was {loss}.", stopped_step=step))

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add an evaluation; at a rung, commit it with the pruner's decision."""
        self._expect(step)
        metric, spec = self._spec.study.metric, self._spec
        names = self._names or tuple(metrics)
        if metric not in metrics or set(metrics) != set(names):
            expected = ", ".join(dict.fromkeys((metric, *names)))
            raise ValueError(
                f"trial {self._number}: report of step {step}: expected the metrics {expected} in "
                f"each report of metrics, got {', '.join(metrics)}"
            )
        if step > self._steps:
            raise ValueError(
                f"trial {self._number}: expected metrics at steps up to {self._steps}, the "
                f"budget of a trial, got step {step}"
            )
        if self._progress.last_step >= step:
            raise ValueError(f"trial {self._number}: expected the metrics of step {step} once")
        self._names = names
        self._fill(step)
        self._evaluations.append((step, self._now(), {name: metrics[name] for name in names}))
        wrong = objective.non_finite(spec, metrics)
        if wrong:
            reason = f"{' and '.join(wrong)} at step {step}."
            self._stop(Outcome(kind=DIVERGED, reason=reason, stopped_step=step))
        self.rate_source.evaluated(step, metrics[metric])
        self._progress = objective.with_evaluation(spec, self._progress, step, metrics[metric])
        value = objective.value_of(spec, self._progress)
        assert value is not None
        if early := objective.early_stop_reason(spec, self._progress, self._steps):
            reason = f"{early[:1].upper()}{early[1:]}."
            self._stop(Outcome(kind=COMPLETED, reason=reason, value=value))
        if step in self._rungs and step not in self._reported:
            self._decide(step, value)

    def _decide(self, step: int, value: float) -> None:
        decision = self._asker.decide(self._number, step, value)
        report = Report(step=step, value=value, pruned=decision.prune, reason=decision.reason)
        outcome = Outcome(kind=PRUNED, reason=decision.reason, value=value)
        self._commit(report, decision.attrs, outcome if decision.prune else None)
        self._reported.add(step)
        if decision.prune:
            raise StopTrial

    def due(self) -> bool:
        """Return False: the caller keeps its own state."""
        return False

    def save(self, state: Mapping[str, Any]) -> None:
        """Raise `UsageError`: the caller keeps its own state."""
        raise UsageError("a trial that was asked for has no checkpoint; its caller keeps its state")

    def yield_to_trainer(self) -> None:
        """Do nothing: the caller trains."""

    def load(self) -> dict[str, Any] | None:
        """Return no state: another caller begins at step 0."""
        return None

    def end(self, outcome: Outcome, traceback: str | None, told: Mapping[str, float]) -> None:
        """Commit what is left, and the outcome with the metrics that are told."""
        self._commit(outcome=outcome, traceback=traceback, told=told)

    def _stop(self, outcome: Outcome) -> None:
        self._commit(outcome=outcome)
        raise StopTrial

    def _expect(self, step: int) -> None:
        trial = self._trial()
        if trial is not None and trial.state != RUNNING:
            raise StopTrial
        if step < self.step:
            raise ValueError(
                f"trial {self._number}: expected step {self.step} or a later one, got {step}; "
                "steps ascend, and metrics come before the train_loss of their step"
            )

    def _fill(self, step: int) -> None:
        while self.step < step:
            self._add(math.nan, math.nan, math.nan)  # see `Chunk.reported`

    def _add(self, loss: float, rate: float, grad_norm: float) -> None:
        self._rows.append((loss, rate, grad_norm, self._now()))
        self.step += 1

    def _now(self) -> float:
        return time.monotonic() + self._epoch

    def _commit(
        self,
        report: Report | None = None,
        attrs: Mapping[str, Any] | None = None,
        outcome: Outcome | None = None,
        traceback: str | None = None,
        told: Mapping[str, float] | None = None,
    ) -> None:
        """Commit all that was reported. Raise `LeaseLost`."""
        waits = not self._rows and outcome is None  # an evaluation, for its row or the outcome
        if waits and report is None:
            return
        chunk = curves.empty(self._first) if waits else self._chunk()
        asker = self._asker
        if outcome is not None:
            outcome = at_end.judge(
                asker.ledger, asker.study, self._lease, self._number, outcome, chunk, told
            )
        entry = Entry(
            lease=self._lease,
            chunk=chunk,
            report=report,
            attrs=attrs or {},
            outcome=outcome,
            traceback=traceback,
        )
        trial = self._trial()
        if self._asker.ledger.commit([entry]).lost:
            if trial is not None:
                trial.state, trial.reason = "lost", "Its lease expired."
                self._asker.ended(trial)
            raise refused(self._lease)
        if not waits:
            self._begin(self.step)
        self._committed_at = time.monotonic()
        if outcome is not None and trial is not None:
            trial.state, trial.reason = outcome.kind, outcome.reason
            self._asker.ended(trial)

    def _chunk(self) -> Chunk:
        if not (self._rows or self._evaluations):
            return curves.empty(self._first)
        table = np.array(self._rows, dtype=float).reshape(-1, 4)
        return Chunk(
            first_step=self._first,
            columns=dict(zip(TRAIN_COLUMNS, table.T[:3].copy(), strict=True)),
            times=table[:, 3].copy(),
            eval_steps=np.array([step for step, _, _ in self._evaluations], dtype=np.int64),
            eval_times=np.array([at for _, at, _ in self._evaluations], dtype=float),
            metrics={
                name: np.array([values[name] for _, _, values in self._evaluations], dtype=float)
                for name in self._names
            },
        )
