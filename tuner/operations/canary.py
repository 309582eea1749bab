"""Canaries: challengers that have won and are tried for a while before they are promoted.

A canary is promoted by whoever looks first after its time: a scheduler, or the next `tuner
retrain`. Until then each retraining on newer data compares it with the champion again, on rows that
neither has seen, and rejects it if it is worse; a person may reject or approve it at any time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tuner.core import run_keys
from tuner.core.environment import identity, is_gone, person
from tuner.core.errors import NotFoundError, UnavailableError, UsageError
from tuner.ledger import Ledger, Retraining, Retrainings, events
from tuner.ledger.database import Addresses
from tuner.ledger.events import Act
from tuner.ledger.retrainings import CANARY, LOG, PROMOTED, REJECTED
from tuner.operations.approve import decide
from tuner.retraining import gate, versions
from tuner.retraining.checking import Job
from tuner.training import models


def promote_due(
    ledger: Ledger, places: Addresses, model: str | None = None, now: float | None = None
) -> list[Retraining]:
    """Promote the canaries of a model, or of all, whose time is over; return how they ended.

    One that cannot be promoted is rejected: another champion is in use, a person has rolled back
    from it, or its files are lost. `now` replaces the database's clock. Raise `UnavailableError`.
    """
    return [
        _promote(ledger, places, held)
        for one in Retrainings(ledger).canaries(model)
        if _is_due(ledger, one, now) and (held := _claim(ledger, one)) is not None
    ]


def compare(job: Job) -> None:
    """Compare the model's canary on the data of a newer retraining; reject it if it is worse.

    Raise `UnavailableError`.
    """
    for one in Retrainings(job.ledger).canaries(job.registry.model):
        theirs = run_keys.time_of(one.run_key, job.spec.retrain.key_format)
        mine = job.data_time
        older = theirs is not None and mine is not None and mine < theirs
        if older or (held := _claim(job.ledger, one)) is None:
            continue
        try:
            why = _fault(job, held)
        except (NotFoundError, UsageError) as error:
            why = " ".join(str(error).split())
        except BaseException:
            Retrainings(job.ledger).release(held)
            raise
        if why is None:
            Retrainings(job.ledger).release(held)
        else:
            _end(job.ledger, job.places, held, REJECTED, f"On the data of {job.run_key!r}: {why}")


def _is_due(ledger: Ledger, one: Retraining, now: float | None) -> bool:
    hours = ledger.study(one.study).spec.retrain.canary_hours or 0.0
    at = ledger.now() if now is None else now
    return one.ended_at is not None and at >= one.ended_at + 3600 * hours


def _claim(ledger: Ledger, one: Retraining) -> Retraining | None:
    """Claim a canary; return None if another process has it, or has decided."""
    try:
        held = Retrainings(ledger).claim_undecided(one.study, one.run_key, identity(), is_gone)
    except (UnavailableError, UsageError):
        return None
    return held if held.outcome == CANARY else None


def _fault(job: Job, held: Retraining) -> str | None:
    """Return why a canary is worse than the champion on the data of a job; None if it is not."""
    champion, number = job.champion(), int(held.result[LOG]["version"])
    version = job.registry.version(number)
    known = versions.find(job.ledger, version)
    if champion is None or champion.module is None or known is None:
        return None  # nothing to compare; `decide` refuses another champion
    table = job.spec.retrain.gate
    parts = models.slices(job.workload)
    decision = gate.decide(
        table,
        job.metric,
        table.direction or job.spec.study.direction,
        champion=_rows(job, champion.module),
        challengers=[_rows(job, job.build(version, known))],
        slices=parts if table.slices is None else {key: parts[key] for key in table.slices},
        seed=job.spec.study.seed,
    )
    return decision.reason if decision.worse else None


def _rows(job: Job, module: Any) -> np.ndarray:  # [row]
    return models.row_values(module, job.workload, job.spec, job.metric)


def _promote(ledger: Ledger, places: Addresses, held: Retraining) -> Retraining:
    reason = "The canary's time has passed, and nothing worse was recorded."
    try:
        return _end(ledger, places, held, PROMOTED, reason)
    except (NotFoundError, UsageError) as error:
        again = Retrainings(ledger).claim_undecided(held.study, held.run_key, identity(), is_gone)
        return _end(ledger, places, again, REJECTED, " ".join(str(error).split()))


def _end(
    ledger: Ledger, places: Addresses, held: Retraining, outcome: str, reason: str
) -> Retraining:
    """Decide on a canary, and keep the reason for which it won."""
    whole = f"{reason} {held.reason}"
    act = (events.RETRAINED, Act(by=person(), reason=reason))
    return decide(ledger, places, held, outcome, whole, act, {})
