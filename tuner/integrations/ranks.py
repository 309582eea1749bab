"""One trial trained by several ranks: the first one reports, and all stop together."""

from __future__ import annotations

import os
from collections.abc import Callable

from tuner.training.programs.current import ProgramStopped
from tuner.training.trial import StopTrial, Trial


def expect_rates_without_feedback(trial: Trial, ranks: int) -> None:
    """Raise `ValueError` for a schedule that reacts to metrics, which one of several ranks has."""
    if ranks > 1 and trial.params["schedule"] == "plateau":
        raise ValueError(
            'schedule: expected one without feedback on several ranks, got "plateau": only the '
            "first rank knows the metrics"
        )


def is_of_worker() -> bool:
    """Return whether a worker has started this process as a rank other than the first."""
    return int(os.environ.get("RANK", "0")) > 0


def on_first_rank(
    call: Callable[[], None], *, is_first: bool, broadcast: Callable[[bool], bool]
) -> None:
    """Call on the first rank; raise `StopTrial` on every rank if it was raised there.

    All ranks call this in step. `broadcast` returns the first rank's value on each.
    """
    stopped: StopTrial | None = None
    if is_first:
        try:
            call()
        except StopTrial as raised:
            stopped = raised
    if broadcast(stopped is not None):
        raise stopped or ProgramStopped
