"""Probing a study once, by the first worker that claims the probe; the others wait."""

from __future__ import annotations

import time

from tuner.core.environment import is_gone
from tuner.core.errors import LeaseLost
from tuner.core.failpoints import reach
from tuner.ledger import Ledger, StudyRecord, ranges
from tuner.observability.logs import logger
from tuner.search.ranges import narrowed
from tuner.training.choosing import Trained
from tuner.training.lr_probe.probe import probe
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
    reach("probe.claimed")
    began = time.monotonic()
    with renewer.holding(claim.lease):
        try:
            found = {name: one.as_json() for name, one in probe(trained, study.spec).items()}
        except KeyboardInterrupt:
            ranges.release_probe(ledger, study, claim.lease)
            raise
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
            log.warning(f"study {study.name}: the probe raised {message}")
            result, active = {"optimizers": {}, "error": message}, None
        else:
            result, active = {"optimizers": found}, narrowed(study.spec, found)
            reach("probe.before_commit")
        try:
            ranges.finish_probe(ledger, study, claim.lease, result, active)
        except LeaseLost as error:
            log.warning(str(error))
            return False
    seconds = round(time.monotonic() - began, 1)
    log.info("probed", study=study.name, seconds=seconds, why=active and active.why)
    return True
