"""Settings of this process that libraries read: environment variables and log levels.

`tuner.cli.main` and the Python API apply them before they import a library that reads them. A
variable that is set already stays as it is. Optuna sets its level when it is imported, so each
module that opens Optuna sets that level itself.
"""

from __future__ import annotations

import logging
import os

from tuner.core import failpoints

ENVIRONMENT = {
    # The recorder retries by itself and people wait for other commands; by default MLflow retries
    # for four minutes and waits two minutes for each answer.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # MLflow would print addresses of runs and progress bars between our output.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
LOG_LEVELS = {
    "alembic": logging.WARNING,
    "mlflow": logging.WARNING,  # in case that it is imported already
    "mlflow.store.db.utils": logging.CRITICAL,  # a traceback for every retry; we report it once
    "urllib3": logging.ERROR,  # a warning for every retry
}


def configure_libraries() -> None:
    """Set the environment variables and log levels of the libraries that this process imports."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)


def configure_program() -> None:
    """Configure the process of a command: its libraries, one numerical thread, its failpoints.

    Call it before NumPy is imported. Raise `ValueError` if `TUNER_FAILPOINTS` is invalid.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of samplers; trials set their own number
    configure_libraries()
    failpoints.arm(os.environ.get("TUNER_FAILPOINTS", ""))
