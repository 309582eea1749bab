"""Check that the ledger, Optuna's tables and MLflow's runs match one to one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine

from tuner.config import Branching
from tuner.core.curves import Chunk
from tuner.core.environment import is_gone
from tuner.core.errors import UnreadableError
from tuner.core.file_stores import FileStore
from tuner.ledger import (
    AttemptRecord,
    Ledger,
    Reader,
    StudyRecord,
    TrialRecord,
    retrainings,
    timetables,
)
from tuner.ledger.checkpoint_files import key_of
from tuner.ledger.database import (
    Addresses,
    Difference,
    ledger_differences,
    optuna_storage,
    recreate,
    tracking_client,
)
from tuner.tracking.mlflow import bulk_writer as mlflow_rows
from tuner.tracking.mlflow import check as mlflow_check
from tuner.tracking.optuna import bulk_writer as optuna_rows
from tuner.tracking.optuna import check as optuna_check
from tuner.tracking.projection import UNREADABLE, Mismatch
from tuner.tracking.recorder import Recorder

DECIDING = ("tuner", "torch", "optuna", "numpy")
"""Packages that determine a trial's values; all workers should have the same versions."""
BROKEN = "curve"
"""The kind of problem for rows that the ledger has lost."""
OURS, OPTUNAS, MLFLOWS = "schema_ledger", "schema_optuna", "schema_mlflow"
"""Kinds of problems for tables that differ from their definitions."""
LEFT_ALONE = {BROKEN, UNREADABLE, optuna_check.NAME_TAKEN}
"""Kinds of problems that prevent the repair of their study."""
NOTICES = (mlflow_check.RENAMED,)
"""Kinds that users may cause on purpose; they are reported, but not as errors."""
_CLEAR = (
    "delete Optuna's study of it (`optuna delete-study --study-name NAME --storage URL`; `tuner db "
    "urls` prints the URL) and run `tuner doctor --repair`, which writes tuner's trials again"
)
_BACKUP = "restore the database from a backup, or accept it as it is"
ADVICE = {
    optuna_check.FOREIGN_TRIALS: (
        "Another program wrote trials into tuner's study in Optuna, which cannot delete single "
        "trials. They are left unchanged, and tuner's own trials are complete without them. To "
        f"remove them, {_CLEAR}."
    ),
    optuna_check.NAME_TAKEN: (
        "Optuna has a study of this name that is not tuner's, so tuner's is not published there. "
        "Submit tuner's under another name, or delete the other one with `optuna delete-study` "
        "and repair again."
    ),
    "optuna_": (
        "Optuna never changes a trial that has ended; a repair writes the whole study again, "
        f"unless that would delete trials that are not tuner's. If they are not needed, {_CLEAR}."
    ),
    "experiment_doubled": (
        "Either may have runs that are needed. Delete the one that is not needed in MLflow."
    ),
    mlflow_check.RENAMED: "Users may rename an experiment; it is identified by its id and tag.",
    "run_extra": (
        "MLflow has a run tagged with this study whose trial the ledger does not have. It is left "
        "unchanged, since its points may exist nowhere else. If it is not needed, delete it in "
        "MLflow."
    ),
    "run_": (
        "MLflow was not brought to the ledger's state. Check whether another program changes its "
        "runs and whether this login may write there, and repair again."
    ),
    BROKEN: (
        "The ledger has lost rows of this curve. No other record is known to have all of them, so "
        f"the study's records are left unchanged. To restore the rows, {_BACKUP}."
    ),
    UNREADABLE: (
        "The row has content that tuner never writes. It is left out everywhere else, and the "
        f"study's records are left unchanged. To correct it, {_BACKUP}, or delete the study with "
        "`tuner delete`."
    ),
    "budget": (
        "The ledger's count of trials differs from its trials; only a manual change causes that. "
        f"To correct it, {_BACKUP}."
    ),
    "checkpoint": (
        "A checkpoint cannot be recreated. Restore it from a backup; without it the trial resumes "
        "at an earlier checkpoint or restarts."
    ),
    "lease": (
        "Expired leases are kept for a while after a start or an outage of the database. "
        "Start a worker, or repair again in a minute."
    ),
    "schema_": (
        "Tables differ from their definitions. Run what the line above says as the owner of the "
        f"tables. If a missing table or column held data, {_BACKUP}."
    ),
    "versions": "Restart all workers with the same versions.",
}
"""Why a repair leaves a problem and what to do, by its kind or the prefix of its kind."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A mismatch."""

    kind: str
    study: str | None  # None: the whole database
    trial: int | None
    detail: str
    repaired: bool = False


def examine(engine: Engine, places: Addresses) -> list[Problem]:
    """Return all mismatches of all studies. Change nothing."""
    ledger = Reader(engine)
    schema = ledger_differences(places)
    found = [_of_schema(OURS, one) for one in schema]
    if any(one.has_rows for one in schema):
        return found  # the rest cannot be read
    storage, client = optuna_storage(places), tracking_client(places)
    found += _of_libraries(places)
    for unreadable in ledger.unreadable_studies():
        found.append(
            Problem(kind=UNREADABLE, study=unreadable.title, trial=None, detail=unreadable.why)
        )
    for name, why in retrainings.unreadable(ledger):
        found.append(Problem(kind=UNREADABLE, study=name, trial=None, detail=why))
    for why in timetables.unreadable(ledger):
        found.append(Problem(kind=UNREADABLE, study=None, trial=None, detail=why))
    for study in ledger.studies():
        try:
            mismatches = _of_study(ledger, study, places, storage, client)
        except UnreadableError as error:
            mismatches = [Mismatch(UNREADABLE, None, str(error))]
        found.extend(
            Problem(kind=one.kind, study=study.title, trial=one.trial, detail=one.detail)
            for one in mismatches
        )
    return found


def _of_study(
    ledger: Reader, study: StudyRecord, places: Addresses, storage: Any, client: Any
) -> list[Mismatch]:
    """Return all mismatches of a study; where trials cannot be read, only that."""
    if broken := ledger.unreadable_trials(study.id) + ledger.unreadable_rows(study.id):
        return [Mismatch(UNREADABLE, number, why) for number, why in broken]
    every = ledger.trials(study.id)
    ours = [trial for trial in every if not trial.imported]
    inside = list(_in_ledger(ledger, study, ours, places.checkpoints))
    without_curve = {one.trial for one in inside if one.kind == BROKEN}
    return [
        *inside,
        *optuna_check.mismatches(storage, study, every),
        *mlflow_check.mismatches(client, ledger, study, ours, without_curve=without_curve),
    ]


def repair(engine: Engine, places: Addresses) -> list[Problem]:
    """Reap expired leases and republish mismatched records; return each problem with its result.

    Records that MLflow or Optuna cannot change are deleted and written again: one run, or all of
    Optuna's trials of the study, unless some are not ours. A study whose ledger has lost rows is
    left unchanged, since MLflow may have them. `advice` explains what to do about the rest.
    """
    before = examine(engine, places)
    if not before:
        return []
    failed = recreate(places) if any(one.kind == OURS for one in before) else {}
    if any(one.has_rows for one in ledger_differences(places)):
        return before
    ledger = Ledger(engine)
    ledger.reap(is_gone)
    recorder = Recorder(engine, places)
    by_title = {study.title: study for study in ledger.studies()}
    for title in sorted({problem.study for problem in before if problem.study is not None}):
        found = [problem for problem in before if problem.study == title]
        kinds = {problem.kind for problem in found}
        if kinds & LEFT_ALONE:
            continue
        recorder.republish(
            by_title[title],
            delete_runs_of={
                p.trial
                for p in found
                if p.kind in mlflow_check.NEED_NEW_RUN and p.trial is not None
            },
            replace_trials=any(kind.startswith("optuna_") for kind in kinds)
            and optuna_check.FOREIGN_TRIALS not in kinds,
        )
    recorder.close()
    after = {_which(problem) for problem in examine(engine, places)}
    return [
        replace(problem, repaired=_which(problem) not in after, detail=_why(problem, failed))
        for problem in before
    ]


def _which(problem: Problem) -> tuple[object, ...]:
    """Return the identity of a problem."""
    schema = problem.detail if problem.study is None else None
    return problem.kind, problem.study, problem.trial, schema


def _why(problem: Problem, failed: Mapping[str, str]) -> str:
    """Return a problem's detail, with the reason if something could not be created."""
    what = problem.detail.partition(";")[0]
    return f"{what}; it could not be created: {failed[what]}" if what in failed else problem.detail


def notes(places: Addresses) -> list[str]:
    """Return notes that are not mismatches: tables that cannot be written in bulk."""
    storage, client = optuna_storage(places), tracking_client(places)
    found = [optuna_rows.unsupported_schema(storage)]
    engine = mlflow_rows.tables_engine(client.tracking_uri)
    if engine is not None:
        found.append(mlflow_rows.unsupported_schema(engine))
        engine.dispose()
    return [one for one in found if one is not None]


def _of_libraries(places: Addresses) -> Iterator[Problem]:
    """Compare Optuna's and MLflow's tables with their definitions, if these are known."""
    storage, client = optuna_storage(places), tracking_client(places)
    if optuna_rows.unsupported_schema(storage) is None:
        yield from (_of_schema(OPTUNAS, one) for one in optuna_rows.schema_differences(storage))
    engine = mlflow_rows.tables_engine(client.tracking_uri)
    if engine is None:
        return
    if mlflow_rows.unsupported_schema(engine) is None:
        yield from (_of_schema(MLFLOWS, one) for one in mlflow_rows.schema_differences(engine))
    engine.dispose()


def _of_schema(kind: str, one: Difference) -> Problem:
    remedy = "restore a backup"
    if one.statements:
        ours = "`tuner doctor --repair`, as the owner of the tables, creates it"
        theirs = f"as the owner of the tables run: {'; '.join(one.statements)}"
        remedy = ours if kind == OURS else theirs
    return Problem(kind=kind, study=None, trial=None, detail=f"{one.what}; {remedy}")


def is_healthy(problems: Sequence[Problem]) -> bool:
    """Return whether every problem is repaired or a notice."""
    return all(problem.repaired or problem.kind in NOTICES for problem in problems)


def advice(problems: Sequence[Problem]) -> list[str]:
    """Return why problems remain after a repair and what a person can do, a line for each kind."""
    lines = []
    left = {one.study for one in problems if one.kind in LEFT_ALONE}
    for kind in dict.fromkeys(one.kind for one in problems if not one.repaired):
        text = ADVICE.get(kind) or ADVICE[f"{kind.partition('_')[0]}_"]
        lines.append(f"{kind}: {text}")
    others = [one for one in problems if not one.repaired and one.kind not in ADVICE]
    if any(one.study in left for one in others):
        lines.append(
            "A study with lost or unreadable rows, or whose name is taken, is not repaired."
        )
    return lines


def _in_ledger(
    ledger: Reader, study: StudyRecord, ours: list[TrialRecord], checkpoints: FileStore
) -> Iterator[Mismatch]:
    """Compare the ledger with itself and with the folder of checkpoints."""
    if len(ours) != study.reserved:  # a limit may be lowered below what was reserved under it
        yield Mismatch("budget", None, f"{len(ours)} trials, {study.reserved} reserved")
    by_id = {trial.id: trial for trial in ours}
    for trial_id, curve in ledger.each_curve(list(by_id)):
        trial = by_id[trial_id]
        if isinstance(curve, UnreadableError):
            yield Mismatch(BROKEN, trial.number, str(curve))
            continue
        if curve.first_step != 0 or curve.next_step != trial.steps:
            detail = f"rows {curve.first_step} to {curve.next_step}, {trial.steps} expected"
            yield Mismatch(BROKEN, trial.number, detail)
        yield from _branches(study, trial, curve)
    yield from _checkpoints(ledger, study, checkpoints)
    for attempt, number in ledger.expired(study.id):
        yield Mismatch("lease", number, f"the lease of {attempt.worker} has expired")
    yield from _versions(ledger.attempts(study.id))


def _checkpoints(ledger: Reader, study: StudyRecord, checkpoints: FileStore) -> Iterator[Mismatch]:
    """Find the checkpoints that are recorded and cannot be read."""
    for record in ledger.checkpoints(study.id):
        try:
            if not checkpoints.exists(key_of(record)):
                yield Mismatch("checkpoint", record.trial, f"{record.path} is missing")
        except OSError as error:
            yield Mismatch("checkpoint", record.trial, f"{record.path} cannot be read: {error}")


def _branches(study: StudyRecord, trial: TrialRecord, curve: Chunk) -> Iterator[Mismatch]:
    """Compare the branches of a curve with the rungs at which the trial was judged by them."""
    if not isinstance(study.spec.judge, Branching) or trial.imported:
        return
    steps = [branch.step for branch in curve.branches]
    for step in sorted({step for step in steps if steps.count(step) > 1}):
        yield Mismatch(BROKEN, trial.number, f"several branches at step {step}, one expected")
    if len(steps) > len(trial.reports):
        detail = f"{len(steps)} branches, {len(trial.reports)} decisions at rungs"
        yield Mismatch(BROKEN, trial.number, detail)


def _versions(attempts: Sequence[AttemptRecord]) -> Iterator[Mismatch]:
    """Compare the versions of packages of the workers that train a study now."""
    live = [attempt for attempt in attempts if attempt.live]
    for package in DECIDING:
        found: dict[str, str] = {}  # a worker by its version
        for attempt in live:
            version = attempt.environment.get("packages", {}).get(package)
            if version is not None:
                found[version] = attempt.worker
        if len(found) > 1:
            listed = ", ".join(
                f"{version} in {worker}" for version, worker in sorted(found.items())
            )
            yield Mismatch(
                "versions", None, f"its workers have different versions of {package}: {listed}"
            )
