"""Publish the ledger to MLflow: a parent run per study, a child run per trial, all finite points.

`run_content` computes the content of runs; `bulk_writer` or `client_writer` writes it. The order
is always: record the intention in the ledger, write to MLflow, record the progress.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient
from sqlalchemy import Engine

from tuner.core.errors import UnreadableError
from tuner.core.failpoints import reach
from tuner.core.outcome import FAILED, RUNNING
from tuner.core.text import as_count
from tuner.ledger import Reader, StudyRecord, TrialRecord, events
from tuner.ledger.database import tracking_reached
from tuner.ledger.publications import Note, Publications
from tuner.observability import metrics
from tuner.tracking.backlog import Backlog, Mark, OpenTrial, batches
from tuner.tracking.bulk import writes_in_bulk
from tuner.tracking.mlflow import experiments, study_run
from tuner.tracking.mlflow.bulk_writer import BulkRunWriter, tables_engine, unsupported_schema
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
from tuner.tracking.projection import Due

log = logging.getLogger(__name__)

UPDATE_SECONDS = 5.0
"""How often a study's parent run is updated while its trials run."""


class ParentState(NamedTuple):
    """What a study's parent run shows."""

    at: float = -math.inf  # the last update, on the monotonic clock
    improvements: int = 0
    silent: int = 0


class RunPublisher:
    """Publishes runs, in bulk if MLflow's tables are accessible and their schema is known."""

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
        self._artifacts = artifacts  # None: where the server decides
        self._tables: Engine | None = tables_engine(client.tracking_uri) if in_bulk else None
        self._experiments: dict[int, str] = {}
        self._parents: dict[int, ParentState] = {}
        self._own: dict[int, dict[str, str]] = {}  # by study: checked runs by `tuner.trial`
        self._verdicts: dict[int, RunVerdicts] = {}
        self._users: dict[int, str | None] = {}  # who submitted each study
        self._uncertain: set[int] = set()  # studies that may have duplicate runs

    def due(self, mark: Mark) -> Due:
        """Return when the study must be published; the parent run's update may wait."""
        if mark.external_id is None or mark.study_id in self._uncertain:
            return Due.NOW
        if any(map(_is_due, self.backlog.open(mark))):
            return Due.NOW
        shown = self._parents.get(mark.study_id, ParentState())
        if mark.published == mark.revision and mark.silent == shown.silent:
            return Due.NOTHING
        # update at once when no trial runs, else from time to time
        is_due = not mark.live or time.monotonic() >= shown.at + UPDATE_SECONDS
        return Due.NOW if is_due else Due.LATER

    def publish(self, study: StudyRecord, mark: Mark, *, waiting: bool) -> None:
        """Publish what is new of a claimed study, with `waiting` including the parent's update.

        Raise `UnavailableError` if MLflow is unreachable.
        """
        with tracking_reached(self._client.tracking_uri):
            try:
                self._publish(study, mark, waiting=waiting)
            except Exception:
                self._experiments.pop(study.id, None)  # it may have been deleted
                raise

    def _publish(self, study: StudyRecord, mark: Mark, *, waiting: bool) -> None:
        experiment = self._experiments.get(study.id)
        if experiment is None:
            experiment = experiments.find_or_create(
                self._client, study, self._artifacts, mark.external_id
            )
            self._experiments[study.id] = experiment
        writer = self._writer()
        run_id = mark.external_id
        if run_id is not None and self._foreign(writer, study, experiment, {PARENT: run_id}):
            raise UnreadableError(
                f"the ledger names {run_id!r:.60} as its parent run, which is another one in "
                "MLflow; correct it with `tuner doctor --repair`"
            )
        if run_id is None:
            with self._uncertain_on_error(study):
                found = writer.find(study, experiment, [PARENT])
                run_id = found.get(PARENT) or study_run.create(
                    self._client, study, experiment, self._user(study)
                )
                self._publications.note_study(study.id, run_id, 0)
            self._parents.pop(study.id, None)
            self._verdicts.pop(study.id, None)
        due = [one for one in self.backlog.open(mark) if _is_due(one)]
        for some in batches(due, writer.runs_at_once):
            trials = self.backlog.trials([one.id for one in some])
            environments = self.backlog.environments(
                [trials[one.id] for one in some if one.external_id is None and one.id in trials]
            )
            batch = [
                one
                for one in some
                if one.id in (environments if one.external_id is None else trials)
            ]
            batch = self._without_foreign(writer, study, experiment, batch, trials)
            trials = {one.id: trials[one.id] for one in batch}
            run_ids = {one.id: one.external_id for one in batch if one.external_id is not None}
            new = [one for one in batch if one.external_id is None]
            known = new if mark.external_id is None else [one for one in new if one.begun]
            existing = writer.find(study, experiment, [str(one.number) for one in known])
            run_ids |= self._create(
                writer, study, experiment, run_id, new, trials, environments, existing
            )
            self._append(writer, study, batch, trials, run_ids)
            self._finish(writer, study, trials, run_ids)
        if study.id in self._uncertain:
            self.discard(study, ())
            self._uncertain.remove(study.id)
        if waiting or self.due(mark._replace(external_id=run_id)) is Due.NOW:
            self._update_summary(study, mark, experiment, run_id, waiting=waiting)

    def _user(self, study: StudyRecord) -> str | None:
        """Return who submitted a study, read once."""
        if study.id not in self._users:
            self._users[study.id] = events.submitter(self._ledger, study.name)
        return self._users[study.id]

    def _foreign(
        self, writer: RunWriter, study: StudyRecord, experiment: str, runs: Mapping[str, str]
    ) -> set[str]:
        """Return the ids of runs that are not those of this study's trials.

        This process looks once at each run that it has not created.
        """
        own = self._own.setdefault(study.id, {})
        new = {key: run_id for key, run_id in runs.items() if own.get(key) != run_id}
        foreign = writer.foreign(study, experiment, new) if new else set()
        own |= {key: run_id for key, run_id in new.items() if run_id not in foreign}
        return foreign

    def _without_foreign(
        self,
        writer: RunWriter,
        study: StudyRecord,
        experiment: str,
        batch: Sequence[OpenTrial],
        trials: Mapping[int, TrialRecord],
    ) -> list[OpenTrial]:
        """Leave out the trials for which the ledger names runs that are not theirs."""
        known = {str(one.number): one.external_id for one in batch if one.external_id is not None}
        foreign = self._foreign(writer, study, experiment, known)
        for one in batch:
            if one.external_id in foreign:
                why = f"the ledger names {one.external_id!r:.60} as its run, which is another one"
                self.backlog.leave_out(trials[one.id], UnreadableError(why))
        return [one for one in batch if one.external_id not in foreign]

    def _update_summary(
        self, study: StudyRecord, mark: Mark, experiment: str, run_id: str, *, waiting: bool
    ) -> None:
        """Update the parent run and the tags with verdicts, and record the study's revision."""
        improvements = study_run.update(
            self._client,
            self._ledger,
            study,
            experiment,
            run_id,
            known=self._parents.get(study.id, ParentState()).improvements,
            at_rest=not mark.live,
        )
        self._parents[study.id] = ParentState(time.monotonic(), improvements, mark.silent)
        verdicts = self._verdicts.setdefault(study.id, RunVerdicts(self._ledger, study))
        verdicts.update_tags(
            self._writer(),  # a new one, since a writer may cache the runs found earlier
            experiment,
            at_rest=waiting or not mark.live,
            renew_claim=lambda: self._publications.note(study.id, []),
        )
        self._publications.note_study(study.id, run_id, study.revision)

    def close(self) -> None:
        """Close the connections to MLflow's tables; the client manages its own."""
        if self._tables is not None:
            self._tables.dispose()

    def _writer(self) -> RunWriter:
        """Return a writer, chosen at each call since MLflow's tables may have been upgraded."""
        if self._tables is None:  # on a server, which is reachable through its API only
            metrics.BULK_WRITER.labels(self.target).set(0.0)
        elif writes_in_bulk(self.target, unsupported_schema(self._tables)):
            return BulkRunWriter(self._tables)
        return ClientWriter(self._client)

    def _create(
        self,
        writer: RunWriter,
        study: StudyRecord,
        experiment: str,
        parent: str,
        new: Sequence[OpenTrial],
        trials: Mapping[int, TrialRecord],
        environments: Mapping[int, Mapping[str, Any]],
        existing: Mapping[str, str],
    ) -> dict[int, str]:
        """Create the runs of trials, or complete existing ones; return their ids by trial id."""
        if not new:
            return {}
        runs = [
            new_run(
                study,
                trials[one.id],
                parent,
                environments.get(one.id, {}),
                existing.get(str(one.number)),
                self._user(study),
            )
            for one in new
        ]
        self._publications.begin(study.id, [one.id for one in new if not one.begun])
        reach("recorder.begun")
        with self._uncertain_on_error(study):
            made = writer.create(experiment, runs)
            run_ids = {one.id: run_id for one, run_id in zip(new, made, strict=True)}
            notes = [Note(trial_id=key, external_id=run_id) for key, run_id in run_ids.items()]
            self._publications.note(study.id, notes)
        self._own.setdefault(study.id, {}).update({str(one.number): run_ids[one.id] for one in new})
        return run_ids

    @contextmanager
    def _uncertain_on_error(self, study: StudyRecord) -> Iterator[None]:
        """Mark the study as uncertain on an error, since an unrecorded run may exist.

        Another recorder may create the same run: the claim can be lost between its last check and
        MLflow's commit. Duplicates are deleted under the next claim.
        """
        try:
            yield
        except Exception:
            self._uncertain.add(study.id)
            raise

    def _append(
        self,
        writer: RunWriter,
        study: StudyRecord,
        batch: Sequence[OpenTrial],
        trials: Mapping[int, TrialRecord],
        run_ids: Mapping[int, str],
    ) -> None:
        """Publish curves, in pages small enough to keep the claim."""
        reached = {one.id: one.next_step for one in batch}
        # one that has ended may have an evaluation after its last row
        unfinished = [
            one for one in trials.values() if one.steps > reached[one.id] or one.state != RUNNING
        ]
        while unfinished:
            page = self.backlog.chunks(unfinished, writer.rows_at_once)
            for trial, chunk in page:
                reached[trial.id] = chunk.next_step
            if not page:  # nothing is left, or the ledger has lost it
                reached |= {trial.id: trial.steps for trial in unfinished}
            points = [
                (run_ids[trial.id], points)
                for trial, chunk in page
                for points in points_of(chunk, trial)
            ]
            if points:
                writer.append(points)
            changed = {trial.id for trial, _ in page} or {trial.id for trial in unfinished}
            notes = [Note(trial_id=key, next_step=reached[key]) for key in sorted(changed)]
            self._publications.note(study.id, notes)
            unfinished = [
                trial
                for trial in unfinished
                if reached[trial.id] < trial.steps or trial.id not in changed
            ]

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
        """Upload a traceback to a run. A failure is only logged, since the ledger has the text.

        Artifact stores raise many kinds of errors; an unreachable server fails at the next call.
        """
        try:
            self._client.log_text(run_id, text, TRACEBACK)
        except Exception as error:
            log.warning("the traceback of run %s could not be uploaded: %s", run_id, error)

    def discard(self, study: StudyRecord, numbers: Collection[int]) -> None:
        """Delete the runs of some trials, and duplicate runs of the others.

        Deleted runs stay in MLflow's tables until `mlflow gc`.
        """
        with tracking_reached(self._client.tracking_uri):
            parent, _ = self._publications.study(study.id)
            known = {parent, *self._publications.external_ids(study.id).values()}
            experiment = experiments.find_or_create(self._client, study, self._artifacts, parent)
            # for republishing, when the parent run is no longer recorded
            self._experiments[study.id] = experiment
            kept: set[str] = set()
            # recorded runs first, so that the unrecorded duplicates are deleted
            runs = all_runs(self._client, study, experiment)
            for run in sorted(runs, key=lambda run: run.info.run_id not in known):
                key = run.data.tags["tuner.trial"]
                if key in kept or as_count(key) in numbers:
                    self._client.delete_run(run.info.run_id)
                kept.add(key)


def _is_due(trial: OpenTrial) -> bool:
    """Return whether a trial has anything to publish."""
    if not trial.running:
        return True
    return trial.drawn and (trial.external_id is None or trial.steps > trial.next_step)
