"""Redaction: text without the secrets in it, for terminals, logs, tags and rows.

Credentials and tokens are recognized in URLs, connection strings (`password=...`), query strings
and authorization headers. In doubtful cases more is hidden. The time is linear in the length of the
text, since training code chooses the messages of its exceptions.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_SCHEME = frozenset(string.ascii_letters + string.digits + "+.-")
_ASSIGNED = re.compile(
    r"((?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|credentials?|signature)[\w-]{0,20}[\"']?\s{0,5}(?:=|:(?!//))\s{0,5})"
    r"('(?:[^'\\]|\\.){0,200}'|\"(?:[^\"\\]|\\.){0,200}\"|[^\s&,;)}\]]+)",
    re.IGNORECASE,
)
_QUERY = re.compile(
    r"([?&;](?:key|auth|sig|code|session|access|pass|user_?key|sas)=)[^&\s]+", re.IGNORECASE
)
_HEADER = re.compile(r"\b(Basic|Bearer|Digest|Negotiate)(\s{1,5})[\w+/=.~-]{6,}", re.IGNORECASE)
_AUTHORIZATION = re.compile(r"\b((?:proxy-)?authorization[\"']?\s{0,5}[:=]).*", re.IGNORECASE)
_PATH_TOKEN = re.compile(
    r"(/(?:services|webhooks?|workflows|hooks)/)[^\s'\"]+|(/bot\d+:)[^\s'\"/]+"
)
_PLAIN = frozenset({
    "http", "https", "ftp", "ssh", "git", "file", "sqlite", "tcp", "unix", "ws", "wss", "s3", "gs",
    "gcs", "abfss", "wasbs", "dbfs", "hdfs", "redis", "rediss", "amqp", "amqps", "runs", "models",
    "mlflow-artifacts", "artifacts",
})  # fmt: skip
"""Schemes of URLs with a host and a path, rather than the tokens of a notification service."""
_DATABASES = ("postgres", "mysql", "mariadb", "mssql", "oracle", "cockroachdb")
_HOST_AND_PORT = re.compile(r"[^:/?#@]*:\d{1,5}(?![^/?#,;'\"`)\]}>.])|\[[0-9A-Fa-f:.]+\]")
_SPACE = re.compile(r"\s")
_NAME_LIMIT = 16
"""Longer user names, beside a password, may be tokens."""


def redacted(text: str) -> str:
    """Return a text with `***` in place of each secret; other lines and words stay as they are."""
    return "\n".join(map(_line, text.split("\n")))


def redacted_url(url: str) -> str:
    """Return a URL without its secrets, which may have spaces; treat other text as `redacted`."""
    scheme, colon, rest = url.partition("://")
    if not colon or not _SCHEME.issuperset(scheme):
        return redacted(url)
    return _assignments(f"{scheme}://{_rest(scheme, rest)}")


def _line(line: str) -> str:
    if "://" in line:
        line = _urls(line)
    return _assignments(line)


def _assignments(text: str) -> str:
    """Hide the values of names such as `password`, and of authorization headers."""
    text = _AUTHORIZATION.sub(rf"\1 {HIDDEN}", text)
    text = _HEADER.sub(rf"\1\2{HIDDEN}", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    return _ASSIGNED.sub(rf"\1{HIDDEN}", text)


def _urls(line: str) -> str:
    """Hide the secrets of the URLs in a line, each of which ends at a space.

    A password with a space in it ends at the last `@` of the line.
    """
    pieces, begin, last_at = [], 0, line.rfind("@")
    while (colon := line.find("://", begin)) >= 0:
        end = _end_of_word(line, colon)
        rest = line[colon + 3 : end]
        if "@" not in rest and last_at > end and _is_open(rest):
            end = _end_of_word(line, last_at)
            rest = line[colon + 3 : end]
        start = colon
        while start > begin and line[start - 1] in _SCHEME:
            start -= 1
        pieces += [line[begin : colon + 3], _rest(line[start:colon], rest)]
        begin = end
    return "".join([*pieces, line[begin:]])


def _end_of_word(line: str, start: int) -> int:
    found = _SPACE.search(line, start)
    return len(line) if found is None else found.start()


def _is_open(rest: str) -> bool:
    """Return whether the text after `://` begins with a user and an unfinished password."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    return ":" in authority and "@" not in authority and _HOST_AND_PORT.match(rest) is None


def _rest(scheme: str, rest: str) -> str:
    """Return the text after `://` in a URL without its secrets."""
    scheme = scheme.lower()
    is_database = scheme.startswith(_DATABASES)
    if not is_database and scheme not in _PLAIN:
        return HIDDEN  # a notification service: its tokens are in place of the host
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    before, at, after = rest.rpartition("@")
    if at and ("@" in authority or _is_open(rest) or (is_database and ":" in authority)):
        name, colon, _ = before.partition(":")
        is_shown = "/" not in name and len(name) <= _NAME_LIMIT and (is_database or colon)
        return f"{name if is_shown else HIDDEN}{f':{HIDDEN}' if colon else ''}@{after}"
    if _is_open(rest):
        return f"{authority.partition(':')[0]}:{HIDDEN}"
    return _PATH_TOKEN.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}", rest)


def redacted_values(value: Any) -> Any:
    """Return a JSON value with every text in it redacted."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(one) for one in value]
    return value
