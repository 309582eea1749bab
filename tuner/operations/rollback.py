"""Make an earlier model version the champion again."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.core.errors import NotFoundError
from tuner.ledger import Ledger
from tuner.ledger.database import Addresses
from tuner.ledger.retrainings import EVALUATE
from tuner.retraining import versions
from tuner.retraining.checking import registry_of
from tuner.tracking.mlflow.registry import CHAMPION


@dataclass(frozen=True, kw_only=True)
class RolledBack:
    """The previous and the present champion."""

    model: str
    was: int | None  # its version
    now: int


def rollback(ledger: Ledger, places: Addresses, name: str, to: int | None = None) -> RolledBack:
    """Make the champion before this one the champion again, or the version `to`.

    Raise `NotFoundError` if there is none, or its weights are not those that the ledger knows.
    """
    registry = registry_of(places, ledger.study(name))
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
    registry.set_alias(CHAMPION, to)
    was = None if champion is None else champion.number
    return RolledBack(model=registry.model, was=was, now=to)
