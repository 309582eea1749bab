"""The search: Optuna's samplers and pruners over an in-memory mirror of the ledger."""

from tuner.search.pruners import Judged
from tuner.search.regret import MIN_TRIALS_FOR_REGRET
from tuner.search.search import Decision, Draw, Search

__all__ = ["MIN_TRIALS_FOR_REGRET", "Decision", "Draw", "Judged", "Search"]
