"""Notifications reach what the operator allows, and their addresses are stored nowhere."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from helpers import spec
from helpers import submit as submitted

from tuner.config import NotifyTable, reading
from tuner.core.errors import StudyFileError, UsageError
from tuner.ledger.notifications import Notifications
from tuner.observability import notify, outbound
from tuner.observability.outbound import Allowed, RefusedError
from tuner.operations import submit

SECRET = "Zq8vK3xW9"
FOUND = {"outcome": "kept", "model": "m", "run_key": "k", "reason": "It was not better."}
LITERALS = [
    f"https://hooks.slack.com/services/T0/B0/{SECRET}",
    f"slack://{SECRET}/B0/C0",
    SECRET,
    f"env:{SECRET}",
    "MLFLOW_TRACKING_URI",
    "TUNER_NOTIFY_ALLOW",
]


@pytest.fixture
def server():
    """A server that answers with a redirect to itself under /redirect; and what it was asked."""
    asked: list[tuple[str, str, bytes]] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(("POST", self.path, body))
            self.send_response(302 if self.path == "/redirect" else 204)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            asked.append(("GET", self.path, b""))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}", asked
        made.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv("TUNER_NOTIFY_ALLOW", raising=False)


@pytest.mark.parametrize("literal", LITERALS)
@pytest.mark.parametrize("key", ["webhook", "apprise"])
def test_an_address_in_a_study_file_is_refused_and_not_shown(tmp_path, key, literal):
    value = [literal] if key == "apprise" else literal
    file = tmp_path / "study.toml"
    file.write_text(f"[retrain.notify]\n{key} = {json.dumps(value)}\n")
    with pytest.raises(StudyFileError) as error:
        reading.load(file)
    assert f"[retrain.notify] {key}: expected the name of an environment variable" in str(
        error.value
    )
    assert SECRET not in str(error.value)
    with pytest.raises(UsageError, match="expected the name of an environment") as refused:
        submit.prepare(spec(retrain={"notify": {key: value}}), ("studies.",))
    assert SECRET not in str(refused.value)


def test_an_address_comes_from_a_variable_or_a_file(tmp_path):
    (tmp_path / "secret").write_text("https://example.org/a\n")
    name = "TUNER_NOTIFY_A"
    assert outbound.address(name, {name: "https://example.org/b"}) == "https://example.org/b"
    from_file = {f"{name}_FILE": str(tmp_path / "secret")}
    assert outbound.address(name, from_file) == "https://example.org/a"
    for none in ({}, {f"{name}_FILE": str(tmp_path / "nothing")}):
        with pytest.raises(RefusedError, match=name):
            outbound.address(name, none)


@pytest.mark.parametrize(
    "ip",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1",
     "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1"],
)  # fmt: skip
def test_an_address_that_is_not_public_is_known(ip):
    assert not outbound.is_public(ip)


def test_a_public_address_is_known():
    assert outbound.is_public("8.8.8.8")
    assert outbound.is_public("2606:4700:4700::1111")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1"])
def test_a_private_host_is_not_reached_unless_it_is_listed(server, host):
    address, asked = server
    port = address.rpartition(":")[2]
    with pytest.raises((RefusedError, socket.gaierror)):
        outbound.post(f"http://{host}:{port}/", b"{}", Allowed(()))
    assert asked == []


def test_a_listed_host_is_reached_once_and_redirects_are_not_followed(server):
    address, asked = server
    may = Allowed(("127.0.0.*",))
    outbound.post(f"{address}/hook?a=1", b'{"a": 1}', may)
    assert asked == [("POST", "/hook?a=1", b'{"a": 1}')]
    with pytest.raises(OSError, match="302"):
        outbound.post(f"{address}/redirect", b"{}", may)
    assert len(asked) == 2


@pytest.mark.parametrize(
    "url",
    ["ftp://example.org/", "file:///etc/passwd", "https://", "https://a b/",
     "https://x\r\nHost: y/", "https://me:pass@example.org/", "https://[/",
     "https://example.org:99999/", "no address"],
)  # fmt: skip
def test_what_is_no_webhook_is_refused(url):
    with pytest.raises(RefusedError) as error:
        outbound.check_webhook(url, Allowed(("*",)))
    assert url not in str(error.value)


def test_with_a_list_only_what_is_listed_is_reached():
    may = Allowed(("*.example.org", "mailtos:"))
    outbound.check_webhook("https://hooks.example.org/a", may)
    outbound.check_service("mailtos://me:pass@example.org", may)
    for url in (
        "https://example.com/",
        "https://example.org.evil.com/",
        "https://evilexample.org/",
    ):
        with pytest.raises(RefusedError):
            outbound.check_webhook(url, may)
    for url in (
        "slack://a/b/c",
        "mailto://a",
        "json://127.0.0.1",
        "form://example.org",
        "file://x",
    ):
        with pytest.raises(RefusedError):
            outbound.check_service(url, may)


def test_addresses_that_choose_method_and_headers_are_refused_even_if_listed():
    for scheme in outbound.FREE_FORM:
        with pytest.raises(RefusedError, match="name a webhook"):
            outbound.check_service(f"{scheme}://host/?method=DELETE", Allowed((f"{scheme}:",)))


def test_an_address_that_was_stored_needs_to_be_listed(server, ledger, monkeypatch, caplog):
    address, asked = server
    table = {"webhook": f"{address}/{SECRET}", "apprise": [f"json://{SECRET}"]}
    stored = NotifyTable.model_validate(table)
    submitted(ledger, study={"name": "old"}, retrain={"notify": table})
    notify.check(stored)
    about = {"on": "kept", "event": "e", "study": "old", "title": "m: kept"}
    found = notify.notices(stored, **about, content=FOUND)
    assert SECRET not in repr(found)
    Notifications(ledger).add(found)
    notify.deliver(ledger)
    assert asked == []
    assert "an address stored in the study was not reached" in caplog.text
    assert SECRET not in caplog.text
    monkeypatch.setenv("TUNER_NOTIFY_ALLOW", "127.0.0.1")
    notify.deliver(ledger, ledger.now() + 60)
    assert [(method, path) for method, path, _ in asked] == [("POST", f"/{SECRET}")]
    assert json.loads(asked[0][2]) == {"id": found[0].key, **FOUND}


@pytest.mark.parametrize(("key", "url"), [("webhook", "ftp://x"), ("apprise", "json://x")])
def test_what_cannot_be_notified_is_refused_before_training(monkeypatch, key, url):
    table = NotifyTable.model_validate(
        {key: "TUNER_NOTIFY_A" if key == "webhook" else ["TUNER_NOTIFY_A"]}
    )
    with pytest.raises(UsageError, match="neither TUNER_NOTIFY_A nor TUNER_NOTIFY_A_FILE is set"):
        notify.check(table)
    monkeypatch.setenv("TUNER_NOTIFY_A", url)
    with pytest.raises(UsageError, match=r"\[retrain.notify\] " + key):
        notify.check(table)
