"""Decide on a challenger that has won, where a person promotes: approve it, or reject it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tuner.core.environment import identity, is_gone
from tuner.core.errors import LeaseLost, UsageError
from tuner.core.failpoints import reach
from tuner.ledger import Ledger, Retraining, Retrainings, events
from tuner.ledger.database import Addresses, tracking_client
from tuner.ledger.events import Act
from tuner.ledger.retrainings import EVALUATE, LOG, PROMOTED, REJECTED
from tuner.observability import notify
from tuner.operations.context import acting
from tuner.retraining import result, versions
from tuner.retraining.stages import held_back
from tuner.tracking.mlflow.registry import CANARY, CHAMPION, Registry


def approve(
    ledger: Ledger, places: Addresses, name: str, run_key: str | None = None, reason: str = ""
) -> dict[str, Any]:
    """Make a proposed challenger or a canary the champion: that of a run key, or the newest one.

    Return what `tuner retrain --json` prints. Raise `NotFoundError` if none waits or its weights
    are not those that the ledger knows, and `UsageError` if another champion than the one that it
    was compared with is in use, or a person has rolled back from it.
    """
    return _decide(ledger, places, name, run_key, PROMOTED, reason)


def reject(
    ledger: Ledger, places: Addresses, name: str, run_key: str | None = None, reason: str = ""
) -> dict[str, Any]:
    """Decide that a proposed challenger or a canary does not become the champion.

    Return what `approve` does.
    """
    return _decide(ledger, places, name, run_key, REJECTED, reason)


def _decide(
    ledger: Ledger, places: Addresses, name: str, run_key: str | None, outcome: str, reason: str
) -> dict[str, Any]:
    store, act = Retrainings(ledger), acting(reason)
    held = store.claim_undecided(ledger.study(name).name, run_key, identity(), is_gone)
    done = "Approved" if outcome == PROMOTED else "Rejected"
    who = events.called(act.by.os_user, events.login(ledger))
    sentence = f"{done} by {who}" + (f": {reason.strip()}" if reason else ".")
    action = events.APPROVED if outcome == PROMOTED else events.REJECTED
    tags = {"tuner.approved_by": who, "tuner.approval_reason": act.reason or ""}
    ended = decide(ledger, places, held, outcome, sentence, (action, act), tags)
    notify.try_to_deliver(ledger)
    return result.as_json(ended)


def decide(
    ledger: Ledger,
    places: Addresses,
    held: Retraining,
    outcome: str,
    reason: str,
    act: tuple[str, Act],
    tags: Mapping[str, str],
) -> Retraining:
    """Promote or reject a claimed retraining that is undecided, and return it as it has ended.

    `tags` are of a promoted version. Raise as `approve` does; then it stays undecided.
    """
    study, store = ledger.study(held.study), Retrainings(ledger)
    registry = Registry(tracking_client(places), held.model)
    try:
        if outcome == PROMOTED:
            _promote(ledger, store, registry, held, tags)
        registry.remove_alias(CANARY, int(held.result[LOG]["version"]))
        ended = replace(held, outcome=outcome, reason=reason)
        notices = result.notices(study.spec.retrain, ended)
        return store.end(held, outcome, reason, notices, act)
    except BaseException:
        store.release(held)
        raise


def _promote(
    ledger: Ledger,
    store: Retrainings,
    registry: Registry,
    held: Retraining,
    tags: Mapping[str, str],
) -> None:
    """Move the alias, unless an interrupted call has moved it."""
    mine, compared = int(held.result[LOG]["version"]), held.result[EVALUATE]["champion"]
    champion = registry.champion()
    now = None if champion is None else champion.number
    if why := held_back(ledger, registry.model, mine):
        raise UsageError(why)
    if now not in (mine, compared):
        raise UsageError(
            f"version {mine} of {registry.model!r} was compared with {_named(compared)}, and "
            f"{_named(now)} is the champion now; retrain with a new key, or reject it"
        )
    versions.read(ledger, registry, registry.version(mine))  # refuse what cannot be loaded
    registry.tag(mine, {key: value for key, value in tags.items() if value})
    if now == mine:
        return
    if store.renew([held.lease]):
        raise LeaseLost("another process decides on it; its result counts")
    registry.set_alias(CHAMPION, mine)
    reach("approve.promoted")


def _named(version: int | None) -> str:
    return "no champion" if version is None else f"version {version}"
