"""Whether a target's tables are known, so that rows can be written in bulk; else a warning.

Without that everything arrives all the same, through the target's library, but slower by a
factor: 17 for MLflow's runs (`benchmarks/publishing.py`).
"""

from __future__ import annotations

import logging

from tuner.observability import metrics

log = logging.getLogger(__name__)
_logged: set[str] = set()


def writes_in_bulk(target: str, unknown: str | None) -> bool:
    """Return whether to write a target's rows in bulk, given why its tables are not known.

    The reason is logged once by a process, and what was chosen is among its metrics.
    """
    metrics.BULK_WRITER.labels(target).set(float(unknown is None))
    if unknown is not None and unknown not in _logged:
        _logged.add(unknown)
        log.warning("%s", unknown)
    return unknown is None
