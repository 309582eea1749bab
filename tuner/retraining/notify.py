"""Notifications of how a retraining ended, by a webhook or through Apprise."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from tuner.config import NotifyTable
from tuner.config.retrain import is_variable
from tuner.core.errors import UsageError
from tuner.core.redaction import redacted, redacted_values
from tuner.observability.logs import logger
from tuner.retraining import outbound
from tuner.retraining.outbound import RefusedError

log = logger(__name__)


def check(table: NotifyTable) -> None:
    """Raise `UsageError` if notifications cannot be sent."""
    may = outbound.allowed(os.environ)
    for key, name in _names(table):
        if not is_variable(name):  # stored by an earlier version; see `send`
            continue
        try:
            url = outbound.address(name, os.environ)
            if key == "webhook":
                outbound.check_webhook(url, may)
            else:
                outbound.check_service(url, may)
                _service(url)
        except RefusedError as error:
            raise UsageError(f"[retrain.notify] {key}: {name} cannot be used: {error}") from error


def send(table: NotifyTable, found: Mapping[str, Any]) -> None:
    """Send how a retraining ended. A notification that fails is logged, and nothing else.

    An address that an earlier version stored in the study is used only if the operator lists it.
    """
    if found["outcome"] not in table.on:
        return
    may = outbound.allowed(os.environ)
    for key, name in _names(table):
        stored = not is_variable(name)
        shown = "an address stored in the study" if stored else name
        try:
            url = name if stored else outbound.address(name, os.environ)
            if key == "webhook":
                body = json.dumps(redacted_values(dict(found))).encode()
                outbound.post(url, body, may, must_be_listed=stored)
            else:
                outbound.check_service(url, may, must_be_listed=stored)
                _notify(_service(url), found)
        except (OSError, ValueError, UsageError, http.client.HTTPException) as error:
            log.warning(f"[retrain.notify] {key}: {shown} was not reached: {redacted(str(error))}")


def _names(table: NotifyTable) -> Iterator[tuple[str, str]]:
    if table.webhook is not None:
        yield "webhook", table.webhook
    for name in table.apprise:
        yield "apprise", name


def _service(url: str) -> Any:
    """Return the Apprise service of a URL, which follows no redirects."""
    apprise = _apprise()
    asset = apprise.AppriseAsset(http_redirects=False)
    service = apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)
    if not service:
        raise RefusedError("Apprise does not understand the address")
    service.redirects = False
    return service


def _notify(service: Any, found: Mapping[str, Any]) -> None:
    apprise = _apprise()
    notifier = apprise.Apprise()
    notifier.add(service)
    title = f"{found['model']}: {found['outcome']} ({found['run_key']})"
    body = redacted(found["reason"])
    if not notifier.notify(title=title, body=body, body_format=apprise.NotifyFormat.TEXT):
        raise RefusedError("Apprise could not send it")


def _apprise() -> Any:
    try:
        import apprise  # noqa: PLC0415 - optional
    except ImportError:
        raise UsageError(
            "[retrain.notify] apprise: expected the extra `notify` to be installed; in a clone of "
            "tuner: `pip install -c constraints.txt -e '.[notify]'`"
        ) from None
    return apprise
