"""From the ledger into MLflow: one parent run a study, one child run a trial, every finite point.

What a run has is worked out in `run_content`, how it gets there is a writer's (`run_writers`,
`run_tables`). Here is the order: a note in the ledger, then the thing, then how far it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient
from sqlalchemy import Engine

from tuner.core.failpoints import reach
from tuner.core.outcome import FAILED, RUNNING
from tuner.ledger import Reader, StudyRecord, TrialRecord
from tuner.ledger.database import tracking_reached
from tuner.ledger.publications import Note, Publications
from tuner.observability import metrics
from tuner.tracking.backlog import Backlog, Mark, OpenTrial, batches
from tuner.tracking.bulk import writes_in_bulk
from tuner.tracking.mlflow import study_run as parents
from tuner.tracking.mlflow.bulk_writer import TableWriter, tables_engine, unknown
from tuner.tracking.mlflow.client_writer import ClientWriter, RunEnd, RunWriter, all_runs
from tuner.tracking.mlflow.run_content import (
    PARENT,
    STATUS,
    TRACEBACK,
    last_points,
    milliseconds,
    new_run,
    outcome_tags,
    points_of,
    shown_tags,
)
from tuner.tracking.mlflow.run_verdicts import RunVerdicts

log = logging.getLogger(__name__)

DESCRIBE_SECONDS = 5.0
"""How often a study's parent run is described anew while its trials run."""


class Told(NamedTuple):
    """What a study's parent run has been told."""

    at: float = -DESCRIBE_SECONDS  # on this process's clock
    improvements: int = 0
    silent: int = 0


class RunPublisher:
    """Writes runs to wherever MLflow keeps them, into its tables where they are known."""

    target = "mlflow"

    def __init__(
        self,
        client: MlflowClient,
        publications: Publications,
        ledger: Reader,
        artifacts: Path | None,
        *,
        in_bulk: bool = True,
    ) -> None:
        self.backlog = Backlog(ledger.engine, self.target)
        self._client = client
        self._publications = publications
        self._ledger = ledger
        self._artifacts = artifacts  # None: the server says where
        self._tables: Engine | None = tables_engine(client.tracking_uri) if in_bulk else None
        self._experiments: dict[int, str] = {}
        self._described: dict[int, Told] = {}
        self._verdicts: dict[int, RunVerdicts] = {}
        self._doubtful: set[int] = set()  # studies that may have second runs

    def due(self, mark: Mark) -> bool | None:
        """Tell whether there is anything to publish; None: only what may wait for a while."""
        if mark.external_id is None or mark.study_id in self._doubtful:
            return True
        if any(map(_due, self.backlog.open(mark))):
            return True
        told = self._described.get(mark.study_id, Told())
        if mark.published == mark.revision and mark.silent == told.silent:
            return False
        # a study at rest is described at once, one in motion from time to time
        return True if not mark.live or time.monotonic() >= told.at + DESCRIBE_SECONDS else None

    def publish(self, study: StudyRecord, mark: Mark, *, waiting: bool) -> None:
        """Publish what is new of a claimed study, and with `waiting` also what may wait.

        Raises `UnavailableError`.
        """
        with tracking_reached(self._client.tracking_uri):
            try:
                self._publish(study, mark, waiting=waiting)
            except Exception:
                self._experiments.pop(study.id, None)  # perhaps it is there no more
                raise

    def _publish(self, study: StudyRecord, mark: Mark, *, waiting: bool) -> None:
        experiment = self._experiments.get(study.id)
        if experiment is None:
            experiment = parents.experiment_id(
                self._client, study, self._artifacts, mark.external_id
            )
            self._experiments[study.id] = experiment
        writer = self._writer()
        run_id = mark.external_id
        if run_id is None:
            with self._making(study):
                found = writer.find(study, experiment, [PARENT])
                run_id = found.get(PARENT) or parents.create(self._client, study, experiment)
                self._publications.note_study(study.id, run_id, 0)
            self._described.pop(study.id, None)
            self._verdicts.pop(study.id, None)
        due = [one for one in self.backlog.open(mark) if _due(one)]
        for batch in batches(due, writer.runs_at_once):
            trials = self.backlog.trials([one.id for one in batch])
            run_ids = {one.id: one.external_id for one in batch if one.external_id is not None}
            new = [one for one in batch if one.external_id is None]
            known = new if mark.external_id is None else [one for one in new if one.begun]
            existing = writer.find(study, experiment, [str(one.number) for one in known])
            run_ids |= self._create(writer, study, experiment, run_id, new, trials, existing)
            self._append(writer, study, batch, trials, run_ids)
            self._finish(writer, study, trials, run_ids)
        if study.id in self._doubtful:
            self.discard(study, ())
            self._doubtful.remove(study.id)
        if waiting or self.due(mark._replace(external_id=run_id)):
            improvements = parents.describe(
                self._client,
                self._ledger,
                study,
                experiment,
                run_id,
                known=self._described.get(study.id, Told()).improvements,
                at_rest=not mark.live,
            )
            self._described[study.id] = Told(time.monotonic(), improvements, mark.silent)
            verdicts = self._verdicts.setdefault(study.id, RunVerdicts(self._ledger, study))
            verdicts.tell(
                self._writer(),  # another one: this one may remember runs as they were before
                experiment,
                at_rest=waiting or not mark.live,
                held=lambda: self._publications.note(study.id, []),
            )
            self._publications.note_study(study.id, run_id, study.revision)

    def close(self) -> None:
        """Close the connections to MLflow's tables; those of its client are its own."""
        if self._tables is not None:
            self._tables.dispose()

    def _writer(self) -> RunWriter:
        """Choose anew each time: MLflow's tables may have been upgraded since."""
        if self._tables is None:  # a server's, which has no other way
            metrics.BULK_WRITER.labels(self.target).set(0.0)
        elif writes_in_bulk(self.target, unknown(self._tables)):
            return TableWriter(self._tables)
        return ClientWriter(self._client)

    def _create(
        self,
        writer: RunWriter,
        study: StudyRecord,
        experiment: str,
        parent: str,
        new: Sequence[OpenTrial],
        trials: Mapping[int, TrialRecord],
        existing: Mapping[str, str],
    ) -> dict[int, str]:
        """Create trials' runs, or finish creating those that exist; give their ids by trial."""
        if not new:
            return {}
        environments = self.backlog.environments([one.id for one in new])
        runs = [
            new_run(
                study, trials[one.id], parent, environments[one.id], existing.get(str(one.number))
            )
            for one in new
        ]
        self._publications.begin(study.id, [one.id for one in new if not one.begun])
        reach("recorder.begun")
        with self._making(study):
            made = writer.create(experiment, runs)
            run_ids = {one.id: run_id for one, run_id in zip(new, made, strict=True)}
            notes = [Note(trial_id=key, external_id=run_id) for key, run_id in run_ids.items()]
            self._publications.note(study.id, notes)
        return run_ids

    @contextmanager
    def _making(self, study: StudyRecord) -> Iterator[None]:
        """Doubt a study in which a run was perhaps made and not noted.

        Another recorder may have made that run too: the claim can be lost between the last look
        at it and MLflow's commit. Second runs are cleared away under the next claim.
        """
        try:
            yield
        except Exception:
            self._doubtful.add(study.id)
            raise

    def _append(
        self,
        writer: RunWriter,
        study: StudyRecord,
        batch: Sequence[OpenTrial],
        trials: Mapping[int, TrialRecord],
        run_ids: Mapping[int, str],
    ) -> None:
        """Publish rows, so many at once that the claim holds meanwhile."""
        reached = {one.id: one.next_step for one in batch}
        left = [one for one in trials.values() if one.steps > reached[one.id]]
        # of no step there may be an evaluation nevertheless
        left += [one for one in trials.values() if one.steps == 0 and one.state != RUNNING]
        while left:
            page = self.backlog.chunks(left, writer.rows_at_once)
            for trial, chunk in page:
                reached[trial.id] = chunk.next_step
            if not page:  # what is lacking is lost to the ledger too
                reached |= {trial.id: trial.steps for trial in left}
            points = [
                (run_ids[trial.id], points)
                for trial, chunk in page
                for points in points_of(chunk, trial)
            ]
            if points:
                writer.append(points)
            told = {trial.id for trial, _ in page} or {trial.id for trial in left}
            notes = [Note(trial_id=key, next_step=reached[key]) for key in sorted(told)]
            self._publications.note(study.id, notes)
            left = [trial for trial in left if reached[trial.id] < trial.steps]

    def _finish(
        self,
        writer: RunWriter,
        study: StudyRecord,
        trials: Mapping[int, TrialRecord],
        run_ids: Mapping[int, str],
    ) -> None:
        ended = [one for one in trials.values() if one.state != RUNNING]
        if not ended:
            return
        writer.prepare_end(
            {
                run_ids[one.id]: (outcome_tags(one) | shown_tags(one), list(last_points(one)))
                for one in ended
            }
        )
        failed = [one.id for one in ended if one.state == FAILED]
        for trial_id, text in self.backlog.tracebacks(failed).items() if failed else ():
            self._put_traceback(run_ids[trial_id], text)
        writer.end(
            [
                RunEnd(
                    run_id=run_ids[one.id],
                    status=STATUS[one.state],
                    time=milliseconds(one.ended_at or 0.0),
                )
                for one in ended
            ]
        )
        self._publications.note(study.id, [Note(trial_id=one.id, final=True) for one in ended])

    def _put_traceback(self, run_id: str, text: str) -> None:
        """Put a traceback beside a run. Where that fails nothing waits for it: the ledger has it.

        Each kind of artifact store has errors of its own; that a server is away, what follows says.
        """
        try:
            self._client.log_text(run_id, text, TRACEBACK)
        except Exception as error:
            log.warning("the traceback of run %s is not among its artifacts: %s", run_id, error)

    def discard(self, study: StudyRecord, numbers: Collection[int]) -> None:
        """Delete the runs of some trials, and of others all but one, so that they can be anew.

        MLflow keeps what is deleted until its own garbage collection.
        """
        with tracking_reached(self._client.tracking_uri):
            parent, _ = self._publications.study(study.id)
            known = {parent, *self._publications.external_ids(study.id).values()}
            experiment = parents.experiment_id(self._client, study, self._artifacts, parent)
            # kept for publishing again, when the parent run is no longer noted
            self._experiments[study.id] = experiment
            kept: set[str] = set()
            # published ones first, so that of two runs of a trial the other one goes
            runs = all_runs(self._client, study, experiment)
            for run in sorted(runs, key=lambda run: run.info.run_id not in known):
                key = run.data.tags["tuner.trial"]
                if key in kept or (key.isdecimal() and int(key) in numbers):
                    self._client.delete_run(run.info.run_id)
                kept.add(key)


def _due(trial: OpenTrial) -> bool:
    """Tell whether there is something to publish of a trial."""
    if not trial.running:
        return True
    return trial.drawn and (trial.external_id is None or trial.steps > trial.next_step)
