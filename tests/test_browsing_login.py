"""MLflow's UI behind its basic authentication: strangers read nothing, readers write nothing."""

from __future__ import annotations

import base64
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from browser import opened
from mlflow import MlflowClient
from playwright.sync_api import expect
from processes import ROOT, environment, prepare, reader, train_here
from team import WITH_ACCOUNTS, accounts, mlflow_server

from tuner.core.errors import NotFoundError
from tuner.ledger import database
from tuner.operations import links
from tuner.tracking.mlflow.registry import Registry

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


def test_a_model_that_does_not_exist_has_no_champion_for_any_account(address, monkeypatch):
    """The server refuses it to those that are no administrators, as if it existed."""
    for name, word in (READER, ADMIN):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", word)
        registry = Registry(MlflowClient(address), "nothing")
        assert registry.champion() is None
        with pytest.raises(NotFoundError, match="has no version 1"):
            registry.version(1)


def test_services_get_accounts_that_write_and_administer_nothing(address, folder, tmp_path):
    """Another run of the script sets the passwords to what the files hold."""
    for password in ("an old password", "a new password"):
        (tmp_path / "file").write_text(password)
        accounts_of = [f"{name}={tmp_path / 'file'}" for name in ("recorder", "scheduler")]
        env = dict(
            zip(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), ADMIN, strict=True)
        )
        subprocess.run(
            [warm.python(), "-m", "script", ROOT / "deploy" / "make-accounts", *accounts_of],
            env=environment(folder, {**env, "MLFLOW_TRACKING_URI": address}),
            check=True,
        )
    assert ask(address, "GET", READS[1], login=("recorder", "an old password")) == 401
    tag = {"experiment_id": "1", "key": "a", "value": "b"}
    made = {"username": "x", "password": "a long password"}
    for name in ("recorder", "scheduler"):
        account = (name, "a new password")
        assert ask(address, "POST", WRITE, tag, account) == 200
        assert ask(address, "POST", "api/2.0/mlflow/users/create", made, account) == 403
        for path in ("experiments/delete", "webhooks"):
            body = {"experiment_id": "1", "name": "x", "url": "https://x.example"}
            assert ask(address, "POST", f"api/2.0/mlflow/{path}", body, account) == 403


@pytest.mark.nightly
def test_a_reader_sees_the_curves_in_a_browser(folder, address, browser):
    ledger = reader(folder)
    places = database.addresses({}, folder)
    url = links.pages(ledger, ledger.study("small"), places, address)["loss curves"]
    ledger.engine.dispose()
    with opened(browser, url, login=READER) as watched:
        drawn = watched.page.locator(".js-plotly-plot path.js-line").first
        expect(drawn).to_be_attached(timeout=60_000)
