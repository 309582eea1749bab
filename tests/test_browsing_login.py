"""MLflow's UI behind its basic authentication: strangers read nothing, readers write nothing."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import opened
from playwright.sync_api import expect
from processes import prepare, reader, train_here
from team import WITH_ACCOUNTS, accounts, mlflow_server

from tuner.ledger import database
from tuner.operations import links

pytestmark = pytest.mark.slow

ADMIN, READER = ("admin", "a long password 1"), ("reader", "a long password 2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = prepare(tmp_path_factory.mktemp("login"), trials="3")
    train_here(made)
    return made


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    tracking = database.addresses({}, folder).tracking
    with mlflow_server(folder, tracking, *WITH_ACCOUNTS, **accounts(folder, *ADMIN)) as found:
        name, word = READER
        made = {"username": name, "password": word}
        assert ask(found, "POST", "api/2.0/mlflow/users/create", made, ADMIN) == 200
        yield found


def ask(
    address: str,
    method: str,
    path: str,
    body: dict[str, str] | None = None,
    login: tuple[str, str] | None = None,
) -> int:
    """Ask a server; give the status of its answer."""
    request = urllib.request.Request(f"{address}/{path}", method=method)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if login is not None:
        word = base64.b64encode(":".join(login).encode()).decode()
        request.add_header("Authorization", f"Basic {word}")
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


READS = ("", "api/2.0/mlflow/experiments/get?experiment_id=1", "get-artifact?path=a&run_uuid=b")
WRITE = "api/2.0/mlflow/experiments/set-experiment-tag"


@pytest.mark.parametrize("path", READS)
def test_without_a_login_nothing_is_readable(address, path):
    assert ask(address, "GET", path) == 401


def test_a_reader_reads_and_cannot_write(address):
    tag = {"experiment_id": "1", "key": "a", "value": "b"}
    assert ask(address, "GET", READS[1], login=READER) == 200
    assert ask(address, "POST", WRITE, tag, READER) == 403
    assert ask(address, "POST", WRITE, tag, ADMIN) == 200


@pytest.mark.nightly
def test_a_reader_sees_the_curves_in_a_browser(folder, address, browser):
    ledger = reader(folder)
    places = database.addresses({}, folder)
    url = links.pages(ledger, ledger.study("small"), places, address)["loss curves"]
    ledger.engine.dispose()
    with opened(browser, url, login=READER) as watched:
        drawn = watched.page.locator(".js-plotly-plot path.js-line").first
        expect(drawn).to_be_attached(timeout=60_000)
