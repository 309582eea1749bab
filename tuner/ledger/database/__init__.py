"""The databases: addresses, engines, migrations and roles.

Environment variables, all optional, set the addresses:
- `TUNER_DATABASE_URL`: the ledger's and Optuna's database; `tuner.db` in the working directory. On
  PostgreSQL MLflow's tables are in it too, each of the three in a schema of its own.
- `MLFLOW_TRACKING_URI`: where runs go instead; without it `mlflow.db` beside the ledger's file.
- `TUNER_CHECKPOINTS`: the folder of checkpoints, shared by all workers; else `.tuner/checkpoints`.
- `TUNER_SPILL`: a folder of this machine for curves while the database is away; `.tuner/spill`.
- `TUNER_ARTIFACTS`: MLflow's artifacts where its tables are in PostgreSQL with no server before
  them; else `mlartifacts`.
"""

from tuner.ledger.database.addresses import Addresses, addresses, without_password
from tuner.ledger.database.engines import ledger_engine, reached
from tuner.ledger.database.locks import migration_lock
from tuner.ledger.database.migrate import check_schema, open_ledger, upgrade, upgrade_ledger
from tuner.ledger.database.mlflow import (
    is_database,
    is_served,
    sent_once,
    tracking_client,
    tracking_reached,
    upgrade_tracking,
)
from tuner.ledger.database.optuna import optuna_storage
from tuner.ledger.database.pooling import pooled
from tuner.ledger.database.schema_check import Difference, differences, ledger_differences, recreate

__all__ = [
    "Addresses",
    "Difference",
    "addresses",
    "check_schema",
    "differences",
    "is_database",
    "is_served",
    "ledger_differences",
    "ledger_engine",
    "migration_lock",
    "open_ledger",
    "optuna_storage",
    "pooled",
    "reached",
    "recreate",
    "sent_once",
    "tracking_client",
    "tracking_reached",
    "upgrade",
    "upgrade_ledger",
    "upgrade_tracking",
    "without_password",
]
