"""One trial trained by several ranks: the first one reports, and all stop together."""

from __future__ import annotations

from collections.abc import Callable

from tuner.training.trial import StopTrial


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
        raise stopped or StopTrial
