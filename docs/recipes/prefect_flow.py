"""Retrain every morning with Prefect 3; the scheduled start is the key, the same for each retry.

Run `python prefect_flow.py` to serve it.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from prefect import flow, runtime, task

COMMAND = "tuner retrain digits --run-key {key} --json --exit-code"
KEPT, DO_NOT_RETRY = 10, 20


class RefusedError(Exception):
    """The retraining was refused, or has failed for good; the same call would end the same way."""


def may_succeed(_task: object, _run: object, state: Any) -> bool:
    """Return whether a retry may help."""
    try:
        state.result()
    except RefusedError:
        return False
    except Exception:
        return True
    return True


@task(retries=3, retry_delay_seconds=300, retry_condition_fn=may_succeed)
def retrain(key: str) -> dict[str, Any]:
    """Retrain at most once per run key; return the JSON object that the command prints."""
    command = COMMAND.format(key=key).split()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, cwd="/srv/tuning")
    if done.returncode == DO_NOT_RETRY:
        raise RefusedError(done.stdout.decode())
    if done.returncode != KEPT:
        done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@flow
def retrain_digits() -> str:
    """Retrain for the date of the scheduled start."""
    return str(retrain(runtime.flow_run.scheduled_start_time.strftime("%Y-%m-%d"))["outcome"])


if __name__ == "__main__":
    retrain_digits.serve(name="retrain-digits", cron="0 6 * * *")
