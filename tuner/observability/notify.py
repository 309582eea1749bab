"""Notifications, by a webhook or through Apprise: what is written to the outbox, and sending it.

`notices` makes the messages of an event, one for each receiver, which are committed with the event.
`deliver` sends those that are due, in any process that knows their addresses: `tuner retrain`, the
scheduler and recorders. Each has an idempotency key, `id` in the message and a header, the same in
every try.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from tuner.config import NotifyTable, ReceiversTable, StudyNotifyTable
from tuner.config.retrain import is_variable
from tuner.core.environment import identity, is_gone
from tuner.core.errors import LeaseLost, TunerError, UnavailableError, UsageError
from tuner.core.failpoints import reach
from tuner.core.redaction import redacted, redacted_values
from tuner.ledger import Reader
from tuner.ledger.notifications import STORED, Notice, Notification, Notifications
from tuner.observability import outbound
from tuner.observability.logs import logger
from tuner.observability.outbound import RefusedError

OF_PROJECT, OF_PERSON = "TUNER_NOTIFY_PROJECT_", "TUNER_NOTIFY_PERSON_"
"""Beginnings of variables with the address of whom everything of a project or person goes to."""
AT_ONCE = 100
"""The most notifications that one pass sends."""

log = logger(__name__)


def check(table: NotifyTable) -> None:
    """Raise `UsageError` if notifications cannot be sent."""
    may = outbound.allowed(os.environ)
    for key, name in _names(table):
        if not is_variable(name):  # stored by an earlier version; see `deliver`
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


def notices(
    table: NotifyTable | StudyNotifyTable,
    *,
    on: str,
    event: str,
    study: str,
    title: str,
    content: Mapping[str, Any],
) -> list[Notice]:
    """Return the notifications of an event: one for each receiver, none if `on` is not asked for.

    `event` names it among all events of the ledger: a second call with it adds nothing.
    """
    if on not in table.on:
        return []
    return [
        Notice(
            event=event,
            study=study,
            channel=channel,
            target=name if is_variable(name) else _stored(name),
            title=redacted(title),
            content=redacted_values(dict(content)),
        )
        for channel, name in _names(table)
    ]


def receivers_of(
    environment: Mapping[str, str], project: str, people: Collection[str]
) -> list[StudyNotifyTable]:
    """Return the receivers that this process has for a project, and for people in it.

    Their variables are called `TUNER_NOTIFY_PROJECT_...` and `TUNER_NOTIFY_PERSON_...`. A web
    address is a webhook, any other one is Apprise's.
    """
    names = [f"{OF_PROJECT}{_upper(project)}", *(f"{OF_PERSON}{_upper(one)}" for one in people)]
    found = []
    for name in dict.fromkeys(names):
        if not (is_variable(name) and _has(name, environment)):
            continue
        try:
            is_web = outbound.address(name, environment).startswith(("http://", "https://"))
        except RefusedError as error:
            log.warning(f"notifications of {name}: {error}")
            continue
        where: dict[str, Any] = {"webhook": name} if is_web else {"apprise": (name,)}
        found.append(StudyNotifyTable.model_validate(where))
    return found


def has_receivers(environment: Mapping[str, str]) -> bool:
    """Return whether this process has a receiver for any project or person."""
    return any(name.startswith((OF_PROJECT, OF_PERSON)) for name in environment)


def _upper(name: str) -> str:
    """Return a name as a part of a variable's."""
    return re.sub("[^A-Z0-9]", "_", name.upper())


def deliver(ledger: Reader, now: float | None = None) -> int:
    """Send the notifications that are due and whose addresses this process knows.

    Return how many were sent. One that fails is logged, tried again later, and abandoned after
    three days.
    """
    store, sent = Notifications(ledger), 0
    targets = _targets(os.environ)
    for _ in range(AT_ONCE):
        held = store.claim(targets, identity(), is_gone, now)
        if held is None:
            break
        try:
            _send(ledger, held)
        except (OSError, ValueError, UsageError, http.client.HTTPException) as error:
            why = redacted(str(error)) or type(error).__name__
            shown = "an address stored in the study" if _is_stored(held) else held.target
            log.warning(f"notification by {held.channel}: {shown} was not reached: {why}")
            _suppress_lost(lambda held=held, why=why: store.postpone(held, why, now))
            continue
        except BaseException:
            store.release(held)
            raise
        reach("notify.sent")
        _suppress_lost(lambda held=held: store.end(held))
        sent += 1
    return sent


def try_to_deliver(ledger: Reader) -> None:
    """Deliver what is due; if the database is away, log it: a later pass does it."""
    try:
        deliver(ledger)
    except TunerError as error:
        log.warning(f"notifications wait: {error}")


def _suppress_lost(change: Any) -> None:
    try:
        change()
    except LeaseLost as error:  # the new holder sends it again, with the same id
        log.warning(str(error))


def _targets(environment: Mapping[str, str]) -> list[str]:
    """Return the variables of this process that hold addresses."""
    names = {re.sub("_FILE$", "", name) for name in environment} | set(environment)
    return sorted(name for name in names if is_variable(name) and _has(name, environment))


def _has(name: str, environment: Mapping[str, str]) -> bool:
    return bool(environment.get(name) or environment.get(f"{name}_FILE"))


def _send(ledger: Reader, held: Notification) -> None:
    may, stored = outbound.allowed(os.environ), _is_stored(held)
    url = _stored_address(ledger, held) if stored else _address(held)
    if held.channel == "webhook":
        message = {"id": held.key, **held.content}
        body = json.dumps(redacted_values(message)).encode()
        outbound.post(url, body, may, must_be_listed=stored, key=held.key)
    else:
        outbound.check_service(url, may, must_be_listed=stored)
        _notify(_service(url), held)


def _address(held: Notification) -> str:
    if not is_variable(held.target):  # a row may have any content
        raise RefusedError("it is not a variable for notifications")
    return outbound.address(held.target, os.environ)


def _stored(url: str) -> str:
    return f"{STORED}{hashlib.sha256(url.encode()).hexdigest()[:32]}"


def _is_stored(held: Notification) -> bool:
    return held.target.startswith(STORED)


def _stored_address(ledger: Reader, held: Notification) -> str:
    """Return an address that an earlier version stored in the study."""
    try:
        table = ledger.study(held.study).spec.retrain.notify  # [notify] never had any
    except UnavailableError:
        raise
    except TunerError as error:
        raise RefusedError("its study is deleted or cannot be read") from error
    for channel, name in _names(table):
        if channel == held.channel and not is_variable(name) and _stored(name) == held.target:
            return name
    raise RefusedError("its study no longer has it")


def _names(table: ReceiversTable) -> Iterator[tuple[str, str]]:
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


def _notify(service: Any, held: Notification) -> None:
    apprise = _apprise()
    notifier = apprise.Apprise()
    notifier.add(service)
    body = redacted(str(held.content.get("reason") or held.title))
    body = f"{body}\n(notification {held.key[:12]})"
    if not notifier.notify(
        title=redacted(held.title), body=body, body_format=apprise.NotifyFormat.TEXT
    ):
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
