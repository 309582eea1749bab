"""Probing a study once, by the first worker that claims the probe; the others wait."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from tuner.core.environment import is_gone
from tuner.core.errors import LeaseLost, TunerError
from tuner.core.failpoints import reach
from tuner.ledger import Ledger, StudyRecord, ranges
from tuner.ledger.ranges import ActiveRange
from tuner.observability.logs import logger
from tuner.search.active_range import range_from_probe
from tuner.training.lr_probe.probe import probe
from tuner.training.trainer_choice import Trained
from tuner.training.workloads import Workload
from tuner.worker.lease_renewer import LeaseRenewer

log = logger(__name__)


def probed(
    ledger: Ledger, study: StudyRecord, trained: Trained, worker: str, renewer: LeaseRenewer
) -> bool:
    """Probe a study unless that is done; return False while another worker holds the probe.

    After a probe that raises, rates are drawn from the whole range: what is wrong with the workload
    shows in its trials, each with its reason.
    """
    claim = ranges.claim_probe(ledger, study, worker, is_gone)
    if claim.lease is None:
        return claim.done
    assert isinstance(trained, Workload), "the study file is refused otherwise"
    began = time.monotonic()
    try:
        with renewer.holding(claim.lease):
            reach("probe.claimed")
            result, active = _probe(trained, study)
            reach("probe.before_commit")
            ranges.finish_probe(ledger, study, claim.lease, result, active)
    except LeaseLost as error:
        log.warning(str(error))
        return False
    except BaseException:
        with suppress(TunerError):  # else the lease expires
            ranges.release_probe(ledger, study, claim.lease)
        raise
    seconds = round(time.monotonic() - began, 1)
    log.info("probed", study=study.name, seconds=seconds, why=active and active.why)
    return True


def _probe(workload: Workload, study: StudyRecord) -> tuple[dict[str, Any], ActiveRange | None]:
    """Return the result of a probe and the range that follows; None after an exception."""
    try:
        found = {name: one.as_json() for name, one in probe(workload, study.spec).items()}
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
        log.warning(f"study {study.name}: the probe raised {message}")
        return {"optimizers": {}, "error": message}, None
    return {"optimizers": found}, range_from_probe(study.spec, found)
