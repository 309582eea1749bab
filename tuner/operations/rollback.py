"""Make an earlier model version the champion again."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.core.errors import NotFoundError
from tuner.ledger import Ledger, events
from tuner.ledger.database import Addresses
from tuner.ledger.retrainings import EVALUATE
from tuner.observability import notify
from tuner.operations.context import acting
from tuner.retraining import result, versions
from tuner.retraining.checking import registry_of
from tuner.tracking.mlflow.registry import CHAMPION


@dataclass(frozen=True, kw_only=True)
class RolledBack:
    """The previous and the present champion."""

    model: str
    was: int | None  # its version
    now: int


def rollback(
    ledger: Ledger, places: Addresses, name: str, to: int | None = None, reason: str = ""
) -> RolledBack:
    """Make the champion before this one the champion again, or the version `to`.

    Who did it and why is recorded, and the replaced version is not promoted again, unless a person
    rolls back to it.

    Raise `NotFoundError` if there is none, or its weights are not those that the ledger knows.
    """
    study, act = ledger.study(name), acting(reason)
    registry = registry_of(places, study)
    champion = registry.champion()
    if to is None:
        if champion is None:
            raise NotFoundError(
                f"model {registry.model!r} has no champion; name a version with --to"
            )
        made = versions.maker(ledger, champion)
        if made is None:
            raise NotFoundError(
                f"version {champion.number} of {registry.model!r} was not made by a retraining of "
                "this ledger, so the champion before it is unknown; name a version with --to"
            )
        before = made.result[EVALUATE]["champion"]
        if before is None:
            raise NotFoundError(
                f"version {champion.number} of {registry.model!r} is the first champion; there is "
                "none to go back to"
            )
        to = int(before)
    versions.read(ledger, registry, registry.version(to))  # refuse what cannot be loaded
    was = None if champion is None else champion.number
    who = events.called(act.by.os_user, events.login(ledger))
    # recorded first: if this process dies in between, the same call does the same again
    events.add(
        ledger,
        study.name,
        events.ROLLED_BACK,
        act,
        {"model": registry.model, "was": was, "now": to},
        result.rollback(study.spec.retrain, study.name, registry.model, was, to, who, act.reason),
    )
    registry.set_alias(CHAMPION, to)
    if was is not None and was != to:
        tags = {"tuner.rolled_back_by": who, "tuner.rollback_reason": reason}
        registry.tag(was, {key: value for key, value in tags.items() if value})
    notify.try_to_deliver(ledger)
    return RolledBack(model=registry.model, was=was, now=to)
