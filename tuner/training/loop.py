"""Former name of `tuner.training.trial`, kept for train functions that import it."""

from tuner.training.trial import StopTrial, Trial

__all__ = ["StopTrial", "Trial"]
