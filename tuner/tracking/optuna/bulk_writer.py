"""Write many trials at once into Optuna's tables: the same rows that its API writes.

Only one schema version is known. The table definitions are Optuna's. A test compares the rows with
the API's, table by table. One value differs: a trial that was RUNNING gets the time when it ended,
not the time of writing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import (
    SCHEMA_VERSION,
    BaseModel,
    StudyModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
    VersionInfoModel,
)
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    bindparam,
    func,
    insert,
    or_,
    select,
    update,
)

from tuner.core.failpoints import reach
from tuner.ledger.database import Difference, differences
from tuner.ledger.database.upserts import insert as insert_or
from tuner.tracking.optuna.storage_writer import TRIAL, Found, deleted_error

VERSION = 12
"""The known schema version of Optuna's tables."""


def _table(model: Any) -> Table:
    table = model.__table__
    assert isinstance(table, Table)
    return table


STUDIES, TRIALS, VALUES = _table(StudyModel), _table(TrialModel), _table(TrialValueModel)
PARAMS, REPORTS = _table(TrialParamModel), _table(TrialIntermediateValueModel)
USER, SYSTEM = _table(TrialUserAttributeModel), _table(TrialSystemAttributeModel)


def unsupported_schema(storage: RDBStorage) -> str | None:
    """Return why the schema of the tables or of the installed Optuna is unsupported, or None."""
    info = _table(VersionInfoModel)
    with storage.engine.begin() as tx:
        versions = set(tx.scalars(select(info.c.schema_version)))
    if versions == {VERSION} and SCHEMA_VERSION == VERSION:
        return None
    return (
        f"Optuna's tables have version {', '.join(map(str, sorted(versions))) or 'none'} and the "
        f"installed Optuna's {SCHEMA_VERSION}, expected {VERSION}; trials are written through "
        "Optuna's API, which is slower; install the Optuna that this version of tuner requires, "
        "or upgrade tuner"
    )


def schema_differences(storage: RDBStorage) -> list[Difference]:
    """Return how tables of the known version differ from Optuna's definitions."""
    with storage.engine.begin() as tx:
        return differences(tx, BaseModel.metadata.sorted_tables)


class BulkTrialWriter:
    """Writes many trials in one transaction."""

    trials_at_once = 200

    def __init__(self, storage: RDBStorage) -> None:
        self._engine = storage.engine

    def find(self, study_id: int, templates: Sequence[FrozenTrial]) -> dict[int, Found]:
        """Search for these trials only."""
        if not templates:
            return {}
        with self._engine.begin() as tx:
            return _find(tx, TRIALS.c.study_id == study_id, templates)

    def create(self, study_id: int, templates: Sequence[FrozenTrial]) -> dict[int, Found]:
        """Insert missing trials with their params, attributes, reports and values."""
        with self._engine.begin() as tx:
            _lock(tx, study_id)
            in_study = TRIALS.c.study_id == study_id
            count = tx.scalar(select(func.count()).select_from(TRIALS).where(in_study)) or 0
            # the count differs if there are foreign trials, or another recorder wrote these
            there = {} if count == templates[0].number else _find(tx, in_study, templates)
            missing = [one for one in templates if one.number not in there]
            created = _insert_trials(tx, study_id, count, missing) if missing else []
        for _ in missing:
            reach("recorder.row_created")
        return there | {
            one.number: Found(trial_id, one.state.is_finished())
            for trial_id, one in zip(created, missing, strict=True)
        }

    def finish(self, templates: Mapping[int, FrozenTrial]) -> None:
        """Complete running trials; values and final states are committed together, last."""
        if not templates:
            return
        with self._engine.begin() as tx:
            known = _find(tx, TRIALS.c.trial_id.in_(list(templates)), list(templates.values()))
            for trial_id, one in templates.items():
                if one.number not in known or known[one.number].id != trial_id:
                    raise deleted_error(one)
            running = _running(tx, templates)
            _fill(tx, running, new=False)
        for _ in running:
            reach("recorder.before_final")
        with self._engine.begin() as tx:
            running = _running(tx, templates)
            _insert(tx, VALUES, _values(running))
            rows = [
                {"of_trial": key, "final": one.state, "at": _utc(one.datetime_complete)}
                for key, one in running.items()
            ]
            changed: dict[str, Any] = {
                "state": bindparam("final"),
                "datetime_complete": bindparam("at"),
            }
            here = TRIALS.c.trial_id == bindparam("of_trial")
            if rows:
                tx.execute(update(TRIALS).where(here).values(changed), rows)


def _find(
    tx: Connection, where: ColumnElement[bool], templates: Sequence[FrozenTrial]
) -> dict[int, Found]:
    """Return the trials written from templates, as `is_written_from` defines it."""
    by_name = {json.dumps(one.user_attrs[TRIAL]): one for one in templates}
    by_start = {(one.number, _utc(one.datetime_start)): one for one in templates}
    name = USER.c.value_json
    without = and_(name.is_(None), TRIALS.c.number.in_([one.number for one in templates]))
    query = (
        select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state, TRIALS.c.datetime_start, name)
        .outerjoin(USER, and_(USER.c.trial_id == TRIALS.c.trial_id, USER.c.key == TRIAL))
        .where(where, or_(name.in_(list(by_name)), without))
        .order_by(TRIALS.c.trial_id)
    )
    found: dict[int, Found] = {}
    for row in tx.execute(query):
        one = by_name.get(row.value_json) or by_start.get((row.number, row.datetime_start))
        if one is not None:
            found.setdefault(one.number, Found(row.trial_id, row.state.is_finished()))
    return found


def _insert_trials(
    tx: Connection, study_id: int, count: int, templates: Sequence[FrozenTrial]
) -> list[int]:
    """Insert trials, numbered from `count` on as Optuna numbers them; return their ids."""
    rows = [
        {
            "number": number,
            "study_id": study_id,
            "state": one.state,
            "datetime_start": _utc(one.datetime_start),
            "datetime_complete": _utc(one.datetime_complete),
        }
        for number, one in enumerate(templates, count)
    ]
    made = insert(TRIALS).returning(TRIALS.c.trial_id, sort_by_parameter_order=True)
    ids = list(tx.scalars(made, rows))
    assert ids == sorted(ids), "Optuna numbers trials in the order of their ids"
    by_id = dict(zip(ids, templates, strict=True))
    _fill(tx, by_id, new=True)
    _insert(tx, VALUES, _values(by_id))
    return ids


def _lock(tx: Connection, study_id: int) -> None:
    """Lock the row that Optuna locks while it numbers trials.

    This is an UPDATE, since SQLite's driver begins a transaction only then.
    """
    here = STUDIES.c.study_id == study_id
    tx.execute(update(STUDIES).where(here).values(study_name=STUDIES.c.study_name))


def _running(tx: Connection, templates: Mapping[int, FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the trials that are not finished, and lock them."""
    here = (TRIALS.c.trial_id.in_(list(templates)), TRIALS.c.state == TrialState.RUNNING)
    locked = update(TRIALS).where(*here).values(state=TRIALS.c.state).returning(TRIALS.c.trial_id)
    return {key: templates[key] for key in sorted(tx.scalars(locked))}


def _fill(tx: Connection, trials: Mapping[int, FrozenTrial], *, new: bool) -> None:
    """Write params (of new trials only), attributes and reports."""
    if new:
        _insert(tx, PARAMS, _params(trials))
    _insert(tx, USER, _attributes(trials, "user_attrs"), key="key", value="value_json")
    _insert(tx, SYSTEM, _attributes(trials, "system_attrs"), key="key", value="value_json")
    _insert(tx, REPORTS, _reports(trials))


def _insert(
    tx: Connection, into: Table, rows: Iterator[dict[str, Any]], *, key: str = "", value: str = ""
) -> None:
    """Insert rows; keep existing ones, or with `key` update their `value`."""
    made = insert_or(tx, into)
    given = list(rows)
    if key:
        changed = {value: made.excluded[value]}
        statement = made.on_conflict_do_update(index_elements=["trial_id", key], set_=changed)
    else:
        statement = made.on_conflict_do_nothing()
    if given:
        tx.execute(statement, given)


def _values(trials: Mapping[int, FrozenTrial]) -> Iterator[dict[str, Any]]:
    for trial_id, one in trials.items():
        for objective, value in enumerate(one.values or []):
            stored, kind = TrialValueModel.value_to_stored_repr(value)
            row = {"trial_id": trial_id, "objective": objective}
            yield row | {"value": stored, "value_type": kind}


def _params(trials: Mapping[int, FrozenTrial]) -> Iterator[dict[str, Any]]:
    for trial_id, one in trials.items():
        for name, value in one.params.items():
            distribution = one.distributions[name]
            yield {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": distribution.to_internal_repr(value),
                "distribution_json": distribution_to_json(distribution),
            }


def _attributes(trials: Mapping[int, FrozenTrial], of: str) -> Iterator[dict[str, Any]]:
    for trial_id, one in trials.items():
        for key, value in getattr(one, of).items():
            yield {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}


def _reports(trials: Mapping[int, FrozenTrial]) -> Iterator[dict[str, Any]]:
    for trial_id, one in trials.items():
        for step, value in one.intermediate_values.items():
            stored, kind = TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
            row = {"trial_id": trial_id, "step": step}
            yield row | {"intermediate_value": stored, "intermediate_value_type": kind}


def _utc(local: datetime | None) -> datetime | None:
    return None if local is None else local.astimezone(UTC).replace(tzinfo=None)
