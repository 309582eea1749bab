"""A study in optuna-dashboard: its note is one that the dashboard reads, and people may edit."""

from __future__ import annotations

import optuna
import pytest
import team
from browser import opened
from helpers import completed, diverged, rows, spec
from optuna_dashboard import get_note, save_note
from playwright.sync_api import expect
from test_bulk import ADAMW, SPACE, WORKLOAD, take

from tuner.ledger import Ledger
from tuner.ledger.database import Addresses
from tuner.tracking.optuna import dashboard
from tuner.tracking.recorder import Recorder


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(storage=optuna.storages.InMemoryStorage())


TEXTS = {
    "short": "**Best**",
    "long": "a" * 2045 + "b" * 2045 + "c",
    "exactly one part": "d" * 2045,
    "none": "",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("before", TEXTS.values(), ids=TEXTS)
def test_the_dashboard_reads_what_we_write_whatever_was_there(study, before, text):
    store = study._storage
    save_note(study, before)
    dashboard.write(store, study._study_id, text)
    assert get_note(study) == text


def test_a_note_that_says_the_same_leaves_the_version_so_that_people_can_save_theirs(study):
    store, key = study._storage, study._study_id
    dashboard.write(store, key, "one")
    first = dict(store.get_study_system_attrs(key))
    dashboard.write(store, key, "one")
    assert store.get_study_system_attrs(key) == first
    dashboard.write(store, key, "two")
    assert store.get_study_system_attrs(key)[dashboard.VERSION] == first[dashboard.VERSION] + 1


def published(ledger: Ledger, places: Addresses) -> None:
    """Train two trials and publish them: one completed, one diverged."""
    made = spec(space=SPACE, budget={"trials": 2})
    submitted, _ = ledger.submit(made, limit=2, workload=WORKLOAD)
    for outcome in (completed(0.5), diverged()):
        one = take(ledger, submitted, **ADAMW)
        ledger.finish(one.lease, outcome, chunk=rows(0, 10))
    recorder = Recorder(ledger.engine, places)
    recorder.projections["mlflow"].publish()
    recorder.publish()
    recorder.close()


@pytest.mark.slow
def test_the_recorder_writes_the_answer_reasons_and_a_link(tracked, places):
    published(tracked, places)
    loaded = optuna.load_study(study_name="small", storage=places.optuna)
    note = get_note(loaded)
    loaded._storage._backend.engine.dispose()
    assert note.startswith("Best: val_loss 0.5 in trial 0")
    assert "Trial 1, diverged: The loss was nan." in note
    assert "http://127.0.0.1:5000/#/runs/" in note


@pytest.mark.nightly
def test_what_the_docs_say_of_its_pages_is_found_by_as_many_clicks(
    tracked, places, tmp_path, browser
):
    published(tracked, places)
    with (
        team.dashboard(tmp_path, places.optuna) as address,
        opened(browser, f"{address}/dashboard/studies/1", width=1600) as watched,
    ):
        page = watched.page
        page.set_default_timeout(60_000)
        # none: which trial is the best, and with what
        for what in ("Best Trial (number=0)", "schedule: constant"):
            expect(page.get_by_text(what).first).to_be_attached(timeout=60_000)
        page.locator("a[href$='/trials']").first.click()  # one: the trials
        page.get_by_text("Trial 1", exact=True).first.click()  # two: why this one stopped
        expect(page.get_by_text("The loss was nan.").first).to_be_visible()
        page.locator("a[href$='/note']").first.click()  # one: is somebody stuck
        expect(page.get_by_text("2 of 2 trials have ended").first).to_be_visible()
        page.locator("a[href$='/analytics']").first.click()  # one
        page.get_by_role("combobox").first.click()  # two
        page.get_by_role("option", name="Param lr", exact=True).click()  # three: the slice of lr
        expect(page.locator(".xtitle").filter(has_text="Param lr").first).to_be_visible()
