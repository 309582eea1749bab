"""A study's probe, once, by whichever worker comes first; the others wait for it."""

from __future__ import annotations

import time

from tuner.core.environment import is_gone
from tuner.core.failpoints import reach
from tuner.ledger import Ledger, StudyRecord, ranges
from tuner.observability.logs import logger
from tuner.search.active_range import range_from_probe
from tuner.training.choosing import Trained
from tuner.training.lr_probe.probe import probe
from tuner.training.workloads import Workload

log = logger(__name__)


def probed(ledger: Ledger, study: StudyRecord, trained: Trained, worker: str) -> bool:
    """Probe a study if nobody has, and set its active range; False while another worker is at it.

    A probe that raises leaves the whole range: what is wrong with the workload shows in its trials,
    each with its reason.
    """
    turn = ranges.take_turn(ledger, study, worker, is_gone)
    if turn.done or turn.number is None:
        return turn.done
    assert isinstance(trained, Workload), "study files that say otherwise are refused"
    reach("probe.claimed")
    began = time.monotonic()
    try:
        found = {name: one.as_json() for name, one in probe(trained, study.spec).items()}
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        log.warning(f"study {study.name}: the probe raised {type(error).__name__}: {error}")
        said = f"{type(error).__name__}: {error}"
        ranges.finish(ledger, study, {"optimizers": {}, "error": said}, None)
        return True
    active = range_from_probe(study.spec, found)
    reach("probe.before_commit")
    ranges.finish(ledger, study, {"optimizers": found}, active)
    seconds = round(time.monotonic() - began, 1)
    log.info("probed", study=study.name, seconds=seconds, why=active and active.why)
    return True
