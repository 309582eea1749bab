"""Alembic's migrations of the ledger's tables; `tuner.ledger.database` runs them."""
