"""Logs: a sentence and its fields; one line of JSON an event for services, plain for people."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

import structlog
from structlog.stdlib import BoundLogger, ExtraAdder, ProcessorFormatter

from tuner.ledger.database import without_password


def logger(name: str) -> BoundLogger:
    """Return a logger that takes fields: `log.info("trial ended", trial=3)`.

    It forwards to the standard library's logger of that name, so an application that uses this
    package as a library configures it as usual.
    """
    wrapped: BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=BoundLogger,
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
        context_class=dict,
    )
    return wrapped


def plain() -> None:
    """Print what a person must know, as it is said, and what nobody foresaw, without passwords."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    sys.excepthook = _print_uncaught
    threading.excepthook = lambda args: _print_uncaught(
        args.exc_type, args.exc_value, args.exc_traceback
    )


def service(kind: str | None) -> None:
    """Log as a service does, from `info` on: "json", "text", or what suits standard error."""
    as_json = kind == "json" or (kind is None and not sys.stderr.isatty())
    last = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    formatter = ProcessorFormatter(
        foreign_pre_chain=[
            ExtraAdder(),
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            without_passwords,
            last,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("tuner").setLevel(logging.INFO)


def without_passwords(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Remove the passwords from all URLs in an event."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _redacted(value)
    return event


def _redacted(text: str) -> str:
    return " ".join(without_password(word) for word in text.split(" "))


def _print_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """Print a traceback as Python does, with the passwords of URLs removed."""
    sys.stderr.write(_redacted("".join(traceback.format_exception(kind, error, trace))))
