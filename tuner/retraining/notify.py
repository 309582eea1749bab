"""Notifications of how a retraining ended, by a webhook or through Apprise."""

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
    """Check that notifications can be sent. Raises `UsageError`."""
    if not table.apprise:
        return
    notifier = _notifier()
    for address in table.apprise:
        if not notifier.add(address):
            raise UsageError(
                "[retrain.notify] apprise: expected an address that Apprise understands, such as "
                f"mailto://..., got {without_password(address)!r}"
            )


def send(table: NotifyTable, found: Mapping[str, Any]) -> None:
    """Send how a retraining ended. A notification that fails is logged, and nothing else."""
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
            log.warning("not every notification was sent through Apprise")


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
            "[retrain.notify] apprise: expected the extra `notify` to be installed; in a clone of "
            "tuner: `pip install -c constraints.txt -e '.[notify]'`"
        ) from None
    return apprise.Apprise()
