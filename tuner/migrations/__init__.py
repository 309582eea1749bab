"""Alembic's migrations of the ledger's tables; `tuner.storage` runs them."""
