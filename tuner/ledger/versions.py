"""Versions of a study: a changed space makes a new one, which imports the earlier trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, update

from tuner.config import StudySpec
from tuner.core.errors import UsageError, WorkloadError
from tuner.core.outcome import COMPLETED, DIVERGED, PRUNED, RUNNING
from tuner.core.text import printable
from tuner.ledger.reading import read_trials
from tuner.ledger.records import OPEN, STOPPED, TrialRecord, excess_attrs, titled
from tuner.ledger.rows import cancel_if_stopped
from tuner.ledger.tables import database_time, has_live_attempt, reports, studies, trials

MOST_NAMES = 10
"""The most files of each kind that a message names."""


def create(
    tx: Connection, spec: StudySpec, version: int, *, limit: int, workload: Mapping[str, Any]
) -> int:
    """Create a version of a study and stop the earlier ones; return its id.

    Raise `UsageError` when another study has the same title in Optuna and MLflow.
    """
    name, title = spec.study.name, titled(spec.study.name, version)
    for row in tx.execute(select(studies.c.name, studies.c.version)):
        if titled(row.name, row.version) == title:
            other = f"version {row.version} of study {row.name!r}"
            raise UsageError(
                f"version {version} of study {name!r} would be called {title!r} in Optuna and "
                f"MLflow, as {other} is already; give this study another name"
            )
    study_id = tx.execute(
        insert(studies)
        .values(
            name=name,
            version=version,
            digest=spec.digest(),
            spec=spec.model_dump_json(),
            state=OPEN,
            rungs=list(spec.rungs()),
            workload=dict(workload),
            attrs={},
            limit=limit,
            reserved=0,
            next_number=0,
            revision=1,
            created_at=database_time(),
        )
        .returning(studies.c.id)
    ).scalar_one()
    if version > 1:
        _close_earlier(tx, name, version)
        _import_earlier(tx, int(study_id), spec, version)
    return int(study_id)


def refuse_other_workload(
    name: str, function: str, submitted: Mapping[str, Any], here: Mapping[str, Any]
) -> None:
    """Raise `WorkloadError` if code or data differ from those that a study was submitted with.

    Files are compared if they are known of the study; the message names those that differ.
    """
    files = _differing_files(submitted.get("files"), here.get("files"))
    parts = ("code", "data", "sampler")
    changed = [what for what in parts if here.get(what) != submitted.get(what)]
    if files and "code" not in changed:
        changed = ["code", *changed]
    if not changed:
        return
    # "digest" and a word would be taken for a header with a secret where this is printed
    digests = [f"{what}: {submitted.get(what)}, here {here.get(what)}" for what in changed]
    if files:
        digests[0] = files
    raise WorkloadError(
        f"the {' and the '.join(changed)} of {function} {'are' if changed[1:] else 'is'} not what "
        f"study {name!r} was submitted with ({'; '.join(digests)}); restore it, or submit the "
        "study under another name"
    )


def _differing_files(submitted: Mapping[str, str] | None, here: Mapping[str, str] | None) -> str:
    """Return which files differ, are missing here, or are here alone; empty if none."""
    if submitted is None or here is None:
        return ""
    both = submitted.keys() & here.keys()
    found = {
        "differs": [name for name in both if submitted[name] != here[name]],
        "missing": submitted.keys() - both,
        "new": here.keys() - both,
    }
    return "; ".join(f"{what}: {listed(sorted(names))}" for what, names in found.items() if names)


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(map(printable, names[:MOST_NAMES]))
    return f"{shown} and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else shown


def tried(tx: Connection, study_id: int) -> int:
    """Count the different parameters of a study's imported trials."""
    here = trials.c.study_id == study_id
    params = tx.scalars(select(trials.c.params).where(here, trials.c.imported)).all()
    return len({json.dumps(one, sort_keys=True) for one in params})


def _close_earlier(tx: Connection, name: str, version: int) -> None:
    """Set earlier versions to stopped: waiting trials are cancelled, running ones are not."""
    earlier = select(studies.c.id).where(studies.c.name == name, studies.c.version < version)
    tx.execute(update(studies).where(studies.c.id.in_(earlier)).values(state=STOPPED))
    waiting = select(trials.c.id).where(
        trials.c.study_id.in_(earlier),
        trials.c.state == RUNNING,
        ~has_live_attempt(trials.c.id),
    )
    for trial_id in tx.scalars(waiting).all():
        cancel_if_stopped(tx, trial_id)


def _import_earlier(tx: Connection, study_id: int, spec: StudySpec, version: int) -> None:
    """Import the trials of earlier versions that lie in the new space, under the first numbers.

    Each trial is copied from the version that trained it, so none is copied twice. Failed and
    cancelled trials are left out, and so are the attributes of samplers and pruners.
    """
    earlier = select(studies.c.id, studies.c.version).where(
        studies.c.name == spec.study.name, studies.c.version < version
    )
    number = 0
    for row in tx.execute(earlier.order_by(studies.c.version)).all():
        own = (trials.c.study_id == row.id) & ~trials.c.imported
        for trial in read_trials(tx, own & trials.c.state.in_((COMPLETED, PRUNED, DIVERGED))):
            if trial.params is not None and spec.space.contains(trial.params):
                _copy(tx, trial, row.version, study_id, number)
                number += 1
    tx.execute(update(studies).where(studies.c.id == study_id).values(next_number=number))


def _copy(tx: Connection, trial: TrialRecord, version: int, study_id: int, number: int) -> None:
    assert trial.params is not None
    copied = tx.execute(
        insert(trials)
        .values(
            study_id=study_id,
            number=number,
            imported=True,
            params=dict(trial.params),
            attrs=excess_attrs(trial.excesses),
            state=trial.state,
            reason=f"Imported from trial {trial.number} of version {version}: {trial.reason}",
            value=trial.value,
            stopped_step=trial.stopped_step,
            objectives=trial.objectives,
            violation=trial.violation,
            steps=trial.steps,
            last_time=trial.last_time,
            created_at=trial.created_at,
            ended_at=trial.ended_at,
            revision=1,
        )
        .returning(trials.c.id)
    ).scalar_one()
    for report in trial.reports:
        tx.execute(
            insert(reports).values(
                trial_id=copied,
                step=report.step,
                value=report.value,
                pruned=report.pruned,
                reason=report.reason,
            )
        )
