"""Workers: claim trials, train them and commit what they measure, under leases."""

from tuner.worker.loop import work

__all__ = ["work"]
