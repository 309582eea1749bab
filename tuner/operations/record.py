"""Publish the ledger into Optuna's tables and MLflow: the recorder."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

from tuner.core.processes import on_end_of, stop_on_signals
from tuner.ledger import Ledger
from tuner.ledger.database import Addresses
from tuner.observability import serving, watching
from tuner.tracking import recorder


def record(
    ledger: Ledger,
    places: Addresses,
    *,
    names: Sequence[str],
    once: bool = False,
    until_closed: bool = False,
    parent: int | None = None,
    metrics_port: int | None = None,
    metrics_host: str = "127.0.0.1",
    metrics_studies: int = 0,
) -> None:
    """Publish the studies of these names, or all, until a signal arrives.

    End when everything is published: with `once` at once, with `until_closed` after standard input
    has a byte or ends, and with `parent` after the process of that number has ended.
    """
    with stop_on_signals("publishing the rest") as closing:
        if once:
            closing.set()
        if parent is not None:
            on_end_of(parent, closing.set)
        if until_closed:
            threading.Thread(target=_set_when_closed, args=(closing,), daemon=True).start()
        with (
            serving.serving(metrics_port, metrics_host, ledger.engine, places, metrics_studies),
            watching.delivering(ledger),
        ):
            # a study may be deleted while the process that started this recorder trains it
            recorder.record(
                ledger.engine, places, names=names, closing=closing, may_be_deleted=until_closed
            )


def _set_when_closed(closing: threading.Event) -> None:
    sys.stdin.buffer.read(1)
    closing.set()
