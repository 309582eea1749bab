"""Telling somebody how a retraining ended: a webhook, or whatever Apprise knows."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from tuner.config import NotifyTable
from tuner.core.errors import UsageError
from tuner.ledger.database import without_password
from tuner.observability.logs import logger

SECONDS = 10.0
"""How long a webhook may take."""

log = logger(__name__)


def check(table: NotifyTable) -> None:
    """Refuse what could not be told at the end. Raises `UsageError`."""
    if not table.apprise:
        return
    notifier = _notifier()
    for address in table.apprise:
        if not notifier.add(address):
            raise UsageError(
                "[retrain.notify] apprise: expected an address that Apprise understands, such as "
                f"mailto://..., got {without_password(address)!r}"
            )


def tell(table: NotifyTable, found: Mapping[str, Any]) -> None:
    """Say how a retraining ended. What cannot be told is logged: it has ended anyway."""
    if found["outcome"] not in table.on:
        return
    if table.webhook is not None:
        try:
            _post(table.webhook, found)
        except (OSError, ValueError) as error:
            log.warning(f"the webhook {without_password(table.webhook)} was not reached: {error}")
    if table.apprise:
        notifier = _notifier()
        for address in table.apprise:
            notifier.add(address)
        title = f"{found['model']}: {found['outcome']} ({found['run_key']})"
        if not notifier.notify(title=title, body=found["reason"]):
            log.warning("not everybody could be told through Apprise")


def _post(address: str, found: Mapping[str, Any]) -> None:
    request = urllib.request.Request(  # noqa: S310 - a study file has http and https only
        address,
        data=json.dumps(found).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=SECONDS):  # noqa: S310
        pass


def _notifier() -> Any:
    try:
        import apprise  # noqa: PLC0415 - optional
    except ImportError:
        raise UsageError(
            "[retrain.notify] apprise: expected the extra to be installed; "
            "`pip install tuner-lr[notify]`"
        ) from None
    return apprise.Apprise()
