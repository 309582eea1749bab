"""Requests to other machines: which hosts may be reached, and where their addresses come from.

An address never comes from a study file or a row. These name an environment variable of the process
that sends, `TUNER_NOTIFY_...`, which holds the address; or the same name with the suffix `_FILE`
holds the path of a file with it. `TUNER_NOTIFY_ALLOW` lists hosts (`*` matches any part) and
Apprise schemes (`mailtos:`). By default, any public host may be reached, and the services with
fixed hosts. Hosts that are not public must be listed.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SECONDS = 10.0
"""Timeout of each step of a request."""
ALLOW = "TUNER_NOTIFY_ALLOW"
OWN_HOSTS = frozenset({"discord", "pbul", "pover", "slack", "tgram"})
"""Apprise schemes of services with fixed hosts."""
FREE_FORM = frozenset({"apprise", "apprises", "form", "forms", "json", "jsons", "xml", "xmls"})
"""Apprise schemes whose URLs choose method, headers and path."""
_EMBEDDED = (ipaddress.ip_network("64:ff9b::/32"), ipaddress.ip_network("2002::/16"))
"""IPv6 networks whose addresses contain an IPv4 address, which may be private."""


class RefusedError(ValueError):
    """An address that may not be reached; the message does not contain it."""


@dataclass(frozen=True)
class Allowed:
    """What the operator allows: hosts and schemes, in lower case."""

    entries: tuple[str, ...]

    def lists_host(self, host: str) -> bool:
        """Return whether a host is listed."""
        return any(fnmatchcase(host.lower(), one) for one in self.entries if one[-1] != ":")

    def lists_scheme(self, scheme: str) -> bool:
        """Return whether an Apprise scheme is listed."""
        return f"{scheme}:" in self.entries


def allowed(environment: Mapping[str, str]) -> Allowed:
    """Read the list of what may be reached."""
    words = environment.get(ALLOW, "").replace(",", " ").lower().split()
    return Allowed(tuple(words))


def address(name: str, environment: Mapping[str, str]) -> str:
    """Return the address that a variable holds, or the file that its `_FILE` variable names.

    Raise `RefusedError` if there is none.
    """
    file = environment.get(f"{name}_FILE")
    try:
        found = environment.get(name) or (Path(file).read_text().strip() if file else "")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"the file that {name}_FILE names cannot be read") from error
    if not found:
        raise RefusedError(f"neither {name} nor {name}_FILE is set in this process's environment")
    return found


def check_webhook(url: str, may: Allowed, *, must_be_listed: bool = False) -> tuple[str, str, int]:
    """Return the scheme, host and port of a webhook. Raise `RefusedError` if it is not allowed."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise RefusedError("it is not a web address") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise RefusedError("it is not a web address, http or https")
    if parts.username is not None or parts.password is not None:
        raise RefusedError("it contains a user or a password, which a webhook may not have")
    if (may.entries or must_be_listed) and not may.lists_host(host):
        raise RefusedError(f"its host is not listed in {ALLOW}")
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80)


def check_service(url: str, may: Allowed, *, must_be_listed: bool = False) -> None:
    """Raise `RefusedError` if an Apprise URL is not allowed."""
    scheme = url.partition("://")[0].lower()
    if scheme in FREE_FORM:
        raise RefusedError(f"{scheme} is not a service; name a webhook instead")
    is_listed = may.lists_scheme(scheme)
    if not is_listed and (may.entries or must_be_listed or scheme not in OWN_HOSTS):
        shown = scheme if scheme.isalnum() and len(scheme) < 20 else "its scheme"
        raise RefusedError(f"{shown} is not allowed; list it in {ALLOW}, as in {ALLOW}=mailtos:")


def is_public(found: str) -> bool:
    """Return whether an IP address is on the public internet."""
    ip = ipaddress.ip_address(found.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in _EMBEDDED):
            return False
    return ip.is_global and not ip.is_multicast


def post(
    url: str, body: bytes, may: Allowed, *, must_be_listed: bool = False, key: str = ""
) -> None:
    """Post JSON to a webhook; resolve its host once and follow no redirects.

    `key` is the idempotency key of the message, sent as a header.

    Raise `RefusedError` if it is not allowed, `OSError` or `HTTPException` if it is not reached.
    """
    scheme, host, port = check_webhook(url, may, must_be_listed=must_be_listed)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ips = [str(one[4][0]) for one in found]
    if not may.lists_host(host) and not all(map(is_public, ips)):
        raise RefusedError(f"its host is not public; list it in {ALLOW} if it may be reached")
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = _Pinned(ips[0], host, port, scheme == "https")
    try:
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        connection.request("POST", target, body, headers)
        answer = connection.getresponse()
        if not 200 <= answer.status < 300:
            raise OSError(f"it answered {answer.status}")
    finally:
        connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to a checked IP address, which verifies the certificate of the host."""

    def __init__(self, ip: str, host: str, port: int, encrypted: bool) -> None:
        super().__init__(host, port, timeout=SECONDS)
        self.default_port = 443 if encrypted else 80
        self._ip = ip
        self._encrypted = encrypted

    def connect(self) -> None:
        """Connect to the address."""
        self.sock: Any = socket.create_connection((self._ip, self.port), self.timeout)
        if self._encrypted:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)
