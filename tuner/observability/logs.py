"""Logs: a sentence and its fields; one line of JSON an event for services, plain for people."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tuner.core.redaction import redacted
from tuner.core.text import printable, printable_lines

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger


def logger(name: str) -> BoundLogger:
    """Return a logger that takes fields: `log.info("trial ended", trial=3)`.

    It forwards to the standard library's logger of that name, so an application that uses this
    package as a library configures it as usual.
    """
    from structlog import stdlib, wrap_logger

    wrapped: BoundLogger = wrap_logger(
        logging.getLogger(name),
        wrapper_class=stdlib.BoundLogger,
        processors=[stdlib.filter_by_level, stdlib.render_to_log_kwargs],
        context_class=dict,
    )
    return wrapped


class Plain(logging.Formatter):
    """A formatter for people: a printable line without secrets, and the traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message on one line, then the traceback, if any."""
        lines = [printable(redacted(record.getMessage()))]
        if record.exc_info:
            lines.append(printable_lines(redacted(self.formatException(record.exc_info))))
        return "\n".join(lines)


def plain() -> None:
    """Print warnings as plain lines, and uncaught exceptions, without secrets."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Plain())
    sys.excepthook = _print_uncaught
    threading.excepthook = lambda args: _print_uncaught(
        args.exc_type, args.exc_value, args.exc_traceback
    )


def service(kind: str | None) -> None:
    """Log as a service does, from `info` on: "json", "text", or what suits standard error."""
    from structlog import dev, processors
    from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level

    as_json = kind == "json" or (kind is None and not sys.stderr.isatty())
    last = processors.JSONRenderer() if as_json else dev.ConsoleRenderer(colors=sys.stderr.isatty())
    formatter = ProcessorFormatter(
        foreign_pre_chain=[
            ExtraAdder(),
            add_log_level,
            processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            ProcessorFormatter.remove_processors_meta,
            processors.format_exc_info,
            without_secrets,
            *([] if as_json else [on_one_line]),
            last,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("tuner").setLevel(logging.INFO)


def without_secrets(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Redact every text of an event."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redacted(value)
    return event


def on_one_line(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape control characters; only a traceback keeps its line ends."""
    for key, value in event.items():
        if isinstance(value, str):
            escape = printable_lines if key in {"exception", "stack"} else printable
            event[key] = escape(value)
    return event


def _print_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """Print a traceback as Python does, printable and without secrets."""
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(printable_lines(redacted(text)))
