"""The databases: addresses, engines, migrations and roles.

Environment variables, all optional, set the addresses:
- `TUNER_DATABASE_URL`: the database of the ledger and Optuna. Default: `tuner.db` in the working
  directory.
- `MLFLOW_TRACKING_URI`: the address of MLflow. Default: `mlflow.db` beside the ledger's file; on
  PostgreSQL the ledger's database, in which each of the three has its own schema.
- `TUNER_CHECKPOINTS`: the folder of checkpoints, shared by all workers, or the URL of a bucket.
  Default: `.tuner/checkpoints`.
- `TUNER_SPILL`: a local folder for curves while the database is unreachable. Default:
  `.tuner/spill`.
- `TUNER_ARTIFACTS`: the folder of MLflow's artifacts if its tables are in PostgreSQL and no MLflow
  server is used. Default: `mlartifacts`.
"""

from tuner.ledger.database.addresses import Addresses, addresses, ui_address, without_password
from tuner.ledger.database.engines import ledger_engine, reached
from tuner.ledger.database.locks import migration_lock
from tuner.ledger.database.migrate import check_schema, open_ledger, upgrade, upgrade_ledger
from tuner.ledger.database.mlflow import (
    is_database,
    is_refused,
    is_served,
    require_tracking,
    sent_once,
    tracking_client,
    tracking_reached,
    upgrade_tracking,
)
from tuner.ledger.database.optuna import optuna_storage
from tuner.ledger.database.pooling import pooled
from tuner.ledger.database.roles import Login, require_deletion
from tuner.ledger.database.schema_check import Difference, differences, ledger_differences, recreate

__all__ = [
    "Addresses",
    "Difference",
    "Login",
    "addresses",
    "check_schema",
    "differences",
    "is_database",
    "is_refused",
    "is_served",
    "ledger_differences",
    "ledger_engine",
    "migration_lock",
    "open_ledger",
    "optuna_storage",
    "pooled",
    "reached",
    "recreate",
    "require_deletion",
    "require_tracking",
    "sent_once",
    "tracking_client",
    "tracking_reached",
    "ui_address",
    "upgrade",
    "upgrade_ledger",
    "upgrade_tracking",
    "without_password",
]
