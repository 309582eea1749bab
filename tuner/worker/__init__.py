"""Workers: ask, train, commit, tell, under leases."""

from tuner.worker.loop import work

__all__ = ["work"]
