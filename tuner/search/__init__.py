"""The search: Optuna's samplers and pruners over a mirror of the ledger in memory."""

from tuner.search.regret import ENOUGH
from tuner.search.search import Decision, Draw, Search

__all__ = ["ENOUGH", "Decision", "Draw", "Search"]
