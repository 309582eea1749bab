"""Retrain every morning with Airflow (2.6 or later), and deploy only what was promoted.

The logical date is the key, so a task that is retried, cleared or backfilled retrains once.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.decorators import dag
from airflow.operators.bash import BashOperator


@dag(
    schedule="0 6 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # True: a retraining for each day since then
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
)
def retrain_digits() -> None:
    """Retrain, then deploy."""
    retrain = BashOperator(
        task_id="retrain",
        bash_command="tuner retrain digits --run-key {{ ds }} --json --exit-code",
        cwd="/srv/tuning",
        append_env=True,  # TUNER_DATABASE_URL is the worker's
        skip_on_exit_code=10,  # kept: there is nothing to deploy
    )
    deploy = BashOperator(task_id="deploy", bash_command="echo models:/digits@champion")
    retrain >> deploy


retrain_digits()
