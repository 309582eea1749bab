"""Choose between writing a target's tables in bulk and using its slower API.

Bulk writing requires a known schema. MLflow's API is 17 times slower (`benchmarks/publishing.py`).
"""

from __future__ import annotations

import logging

from tuner.observability import metrics

log = logging.getLogger(__name__)
_logged: set[str] = set()


def writes_in_bulk(target: str, unsupported: str | None) -> bool:
    """Return whether to write in bulk, given the reason why the target's schema is unsupported.

    A process logs each reason once; the choice is exported as a metric.
    """
    metrics.BULK_WRITER.labels(target).set(float(unsupported is None))
    if unsupported is not None and unsupported not in _logged:
        _logged.add(unsupported)
        log.warning("%s", unsupported)
    return unsupported is None
