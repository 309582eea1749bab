"""The search: Optuna's samplers and pruners over a mirror of the ledger in memory."""

from tuner.search.search import Decision, Draw, Search

__all__ = ["Decision", "Draw", "Search"]
