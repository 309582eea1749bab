"""The registry behind MLflow's server: over HTTP, with a login, artifacts through the server."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from browser import opened
from pipeline import Pipeline
from playwright.sync_api import Browser, expect
from processes import prepare, train_here, tuner
from retrained import STUDY
from team import WITH_ACCOUNTS, accounts, mlflow_server

from tuner.core.errors import UnavailableError
from tuner.ledger import database
from tuner.ledger.database import tracking_client
from tuner.operations.rollback import rollback
from tuner.tracking.mlflow.links import SIDE

pytestmark = pytest.mark.slow

ADMIN = ("admin", "a long password 1")
LOGIN = dict(zip(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), ADMIN, strict=True))
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline with a trained study, whose registry is a server's; the second champion serves."""
    folder = prepare(tmp_path_factory.mktemp("served"), STUDY)
    train_here(folder)
    tracking = database.addresses({}, folder).tracking
    with mlflow_server(folder, tracking, *WITH_ACCOUNTS, **accounts(folder, *ADMIN)) as address:
        yield Pipeline(folder, address)


@pytest.fixture(autouse=True)
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)


@pytest.mark.thorough
def test_a_champion_is_promoted_loaded_exactly_and_rolled_back(
    served: Pipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    assert served.retrain("0")["outcome"] == "promoted"
    first = served.predictions()
    assert served.retrain("5")["outcome"] == "promoted"
    assert not np.array_equal(served.predictions(), first)
    assert served.registry.champion().source.startswith("mlflow-artifacts:")
    back = rollback(served.ledger, served.places, "moving")
    assert (back.was, back.now) == (2, 1)
    assert np.array_equal(served.predictions(), first)
    assert capfd.readouterr().out == "", "what a command prints is one JSON object"

    env = {"MLFLOW_TRACKING_URI": served.tracking, **LOGIN}
    done = tuner(served.folder, "predict", "moving", "--input", "rows.npy", "--json", env=env)
    assert done.code == 0, done.err
    assert done.json["exact"]
    assert np.array_equal(np.array(done.json["outputs"]), first)
    assert "Downloading" not in done.err


@pytest.mark.nightly
def test_the_pages_of_a_retraining_name_its_model(served: Pipeline, browser: Browser) -> None:
    served.retrain("0")  # the first champion, unless it is there already
    champion = served.registry.champion()
    run = tracking_client(served.places).get_run(champion.run_id)
    experiment = f"{served.tracking}/#/experiments/{run.info.experiment_id}"
    with opened(browser, f"{experiment}/runs/{run.info.run_id}?{SIDE}", login=ADMIN) as watched:
        page = watched.page
        expect(page.get_by_text("Logged models (1)")).to_be_visible(timeout=PATIENCE)
        version = page.locator("a[href^='#/models/moving/versions/1']")
        expect(version).to_have_count(3)  # in the table, beside it, and in the description
        watched.keep("model")
    with opened(browser, f"{experiment}/models?{SIDE}", width=2400, login=ADMIN) as watched:
        page = watched.page
        expect(page.get_by_role("link", name="0: retrain")).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_text("v1", exact=True)).to_be_visible()
        expect(page.get_by_text("challenger_val_loss")).to_be_visible()
        watched.keep("models")


def test_without_a_login_nothing_is_trained(
    served: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LOGIN:
        monkeypatch.delenv(name)
    with pytest.raises(UnavailableError, match="You are not authenticated"):
        served.retrain("9")
