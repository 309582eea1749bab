"""Train failed trials again: new trials with the parameters of the failed ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuner.config import Listed
from tuner.core.errors import NotFoundError, UsageError
from tuner.core.outcome import FAILED
from tuner.ledger import Ledger, adding
from tuner.operations.context import acting


def retry(
    ledger: Ledger,
    name: str,
    numbers: Sequence[int] = (),
    *,
    failed: bool = False,
    raise_budget: bool = False,
    reason: str = "",
) -> dict[str, Any]:
    """Add a trial for each of these failed trials, or for all with `failed`.

    A trial ends once: a failed one keeps its outcome, its curve and its run, and the new one has a
    number and a seed of its own. None is retried twice. Return what `tuner retry --json` prints.
    Raise `UsageError` if there is nothing to retry, the study is closed or its budget is spent.
    """
    study = ledger.study(name)
    if failed == bool(numbers):
        raise UsageError("expected --failed or the numbers of failed trials, and not both")
    if isinstance(study.spec.search.sampler, Listed):
        raise UsageError(
            f"study {name!r} trains a list of combinations, each under the same seeds, so none can "
            "be trained again under another seed; submit the list under another name"
        )
    trials = {trial.number: trial for trial in ledger.trials(study.id) if not trial.imported}
    for number in numbers:
        if number not in trials:
            raise NotFoundError(f"study {name!r} has no trial {number}")
        if trials[number].state != FAILED:
            raise UsageError(
                f"trial {number} of {name!r} is {trials[number].state}, expected a failed one"
            )
        if trials[number].params is None:
            raise UsageError(f"trial {number} of {name!r} failed before it had parameters")
    retried = adding.retry(
        ledger, study, numbers or None, raise_budget=raise_budget, act=acting(reason)
    )
    study, before = ledger.study(name), adding.retries(ledger, study)
    return {
        "study": name,
        "retried": [{"failed": old, "trial": new} for old, new in sorted(retried.items())],
        "retried_before": {
            str(old): new
            for old, new in sorted(before.items())
            if old not in retried and (not numbers or old in numbers)
        },
        "state": study.state,
        "budget": {"trials": study.limit, "reserved": study.reserved},
    }
