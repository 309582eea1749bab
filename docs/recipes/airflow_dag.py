"""Retrain every morning with Airflow 3, and deploy only what was promoted.

The logical date is the key, so a task that is retried, cleared or backfilled retrains once. In
Airflow 3 that of a cron schedule is the day on which it fires, in UTC.
"""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

COMMAND = "tuner retrain digits --run-key {key} --json --exit-code"
KEPT, DO_NOT_RETRY = 10, 20


@task
def retrain(key: str) -> dict[str, Any]:
    """Retrain; skip what follows if the champion stays, and fail without retries if refused."""
    command = COMMAND.format(key=key).split()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, cwd="/srv/tuning")
    if done.returncode == DO_NOT_RETRY:
        raise AirflowFailException(f"refused or failed for good: {done.stdout.decode()}")
    if done.returncode == KEPT:
        raise AirflowSkipException("the champion stays, so there is nothing to deploy")
    done.check_returncode()  # anything else is retried, and resumes
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@task
def deploy(found: dict[str, Any]) -> str:
    """Deploy the champion."""
    return f"models:/{found['model']}@champion"


@dag(
    schedule="0 6 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # True: a retraining for each day since then
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
)
def retrain_digits() -> None:
    """Retrain, then deploy."""
    deploy(retrain("{{ ds }}"))


retrain_digits()
