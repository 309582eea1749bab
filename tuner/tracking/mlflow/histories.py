"""The points of runs as MLflow has them: many runs at once where its tables are known."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TypeAlias

from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.models import SqlMetric
from sqlalchemy import select

from tuner.tracking.mlflow.bulk_writer import tables_engine, unsupported_schema

History: TypeAlias = "Counter[tuple[int, float, int]]"
"""How often each point is there: step, value and time in milliseconds."""


class Histories:
    """Reads the points of runs from MLflow's tables, or through its client if they are unknown."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._engine = tables_engine(client.tracking_uri)
        if self._engine is not None and unsupported_schema(self._engine) is not None:
            self.close()

    def close(self) -> None:
        """Close the connections to the tables."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def read(self, run_ids: Sequence[str]) -> Callable[[str, str], History]:
        """Return what gives the history of a metric, by the run's id and the metric's name."""
        if self._engine is None:
            return self._asked
        found: defaultdict[tuple[str, str], History] = defaultdict(Counter)
        m = SqlMetric
        query = select(m.run_uuid, m.key, m.step, m.value, m.timestamp, m.is_nan)
        with self._engine.begin() as tx:
            for run_id, key, step, value, time, is_nan in tx.execute(
                query.where(m.run_uuid.in_(run_ids))
            ):
                found[run_id, key][step, float("nan") if is_nan else value, time] += 1
        return lambda run_id, name: found[run_id, name]

    def _asked(self, run_id: str, name: str) -> History:
        history = self._client.get_metric_history(run_id, name)
        return Counter((point.step, point.value, point.timestamp) for point in history)
