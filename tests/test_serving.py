"""/metrics, /healthz and /readyz: what a service says of itself, asked over HTTP."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from helpers import WORKLOAD, claim, completed, diverged, draw, expire, rows, spec, submit
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from tuner.core.environment import Person
from tuner.core.errors import UnavailableError
from tuner.ledger import Ledger
from tuner.ledger.database import Addresses
from tuner.ledger.events import Act
from tuner.ledger.totals import totals
from tuner.observability import metrics, serving
from tuner.operations import status


@pytest.fixture
def address(ledger: Ledger, places: Addresses):
    with serving.serving(0, "127.0.0.1", ledger.engine, places) as served:
        yield served


def ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scraped(address: str) -> dict[tuple[str, ...], float]:
    """Read all samples as Prometheus would, by name and the values of labels."""
    code, body = ask(f"{address}/metrics")
    assert code == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def four_trials(ledger: Ledger) -> None:
    """Leave one trial completed, one diverged, one running, and one whose worker is silent."""
    study = submit(ledger)
    held = [claim(ledger, study) for _ in range(4)]
    for one in held:
        draw(ledger, one)
    ledger.finish(held[0].lease, completed(0.5))
    ledger.finish(held[1].lease, diverged())
    expire(ledger, held[2].lease)


def test_the_whole_ledger_is_counted(either: Ledger):
    four_trials(either)
    found = totals(either.engine)
    assert {state: n for state, n in found.studies.items() if n} == {"open": 1}
    assert {state: n for state, n in found.trials.items() if n} == {
        "completed": 1, "diverged": 1, "running": 2,
    }  # fmt: skip
    shown = status.statuses(either, either.studies())[0]
    assert found.trials == shown["trials"], "in the words of the command line"
    assert (found.leases, found.expired) == (2, 1)
    assert found.unpublished == {"optuna": 2, "mlflow": 2}, "no recorder was here"
    assert found.unpublished_seconds["mlflow"] < 1000
    with either.engine.execution_options(writes=True).begin() as tx:
        tx.execute(text("UPDATE tuner_trials SET ended_at = ended_at - 1000 WHERE number = 0"))
    late = totals(either.engine).unpublished_seconds
    assert 1000 <= late["optuna"] <= late["mlflow"] + 1


def test_states_and_studies_that_nobody_trains_are_as_the_command_line_says(ledger: Ledger):
    spent = submit(ledger, study={"name": "spent"}, budget={"trials": 1})
    held = claim(ledger, spent)
    draw(ledger, held)
    waiting = submit(ledger, study={"name": "waiting"}, budget={"trials": 1})
    ledger.release(claim(ledger, waiting).lease, "interrupted", "for this test")
    submit(ledger, study={"name": "untouched"})
    submit(ledger, study={"name": "asked"}, workload={"factory": None, "ask_and_tell": True})
    found = totals(ledger.engine)
    assert (found.studies["open"], found.unattended) == (4, 0)
    assert (found.trials["running"], found.trials["waiting"]) == (1, 1)
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(text("UPDATE tuner_studies SET created_at = created_at - 1000"))
        tx.execute(text("UPDATE tuner_attempts SET ended_at = ended_at - 1000"))
    assert totals(ledger.engine).unattended == 2, "the waiting one and the untouched one"
    ledger.finish(held.lease, completed(1.0))
    found = totals(ledger.engine)
    assert (found.studies["ended"], found.studies["open"]) == (1, 3)


def test_metrics_are_those_counts(address, ledger):
    four_trials(ledger)
    found = scraped(address)
    assert found[("tuner_database_up",)] == 1
    assert found[("tuner_studies", "open")] == 1
    assert found[("tuner_trials", "diverged")] == 1
    assert found[("tuner_leases",)] == 2
    assert found[("tuner_leases_expired",)] == 1
    assert found[("tuner_trials_unpublished", "mlflow")] == 2
    assert found[("process_resident_memory_bytes",)] > 0


def test_a_process_counts_what_it_does(address):
    before = scraped(address)
    metrics.STEPS.inc(40)
    metrics.TRIALS_ENDED.labels("pruned").inc()
    metrics.set_outage("mlflow", active=True)
    after = scraped(address)
    assert after[("tuner_steps_total",)] - before[("tuner_steps_total",)] == 40
    pruned = ("tuner_trials_ended_total", "pruned")
    assert after[pruned] - before.get(pruned, 0) == 1
    assert after[("tuner_outage", "mlflow")] == 1
    metrics.set_outage("mlflow", active=False)
    assert scraped(address)[("tuner_outage", "mlflow")] == 0


def test_a_database_that_is_away_is_a_number_and_no_error(address, places):
    Path(places.file).write_bytes(b"no database")
    found = scraped(address)
    assert found[("tuner_database_up",)] == 0
    assert ("tuner_studies", "open") not in found


def test_ready_is_who_reaches_the_schema_of_this_version(address, ledger):
    assert ask(f"{address}/readyz") == (200, "ok")
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(text("UPDATE tuner_alembic_version SET version_num = '9999'"))
    code, said = ask(f"{address}/readyz")
    assert code == 503
    assert "newer than this version of tuner" in said
    assert ask(f"{address}/healthz") == (200, "ok"), "to restart it would not help"


def test_who_cannot_reach_the_database_is_healthy_and_not_ready(address, places):
    Path(places.file).write_bytes(b"no database")
    code, said = ask(f"{address}/readyz")
    assert code == 503
    assert "cannot be used" in said
    assert ask(f"{address}/healthz") == (200, "ok")


def test_healthy_is_whose_loops_turn(address, monkeypatch):
    with metrics.expect_heartbeats("a loop"):
        assert ask(f"{address}/healthz") == (200, "ok")
        now = time.monotonic()
        assert metrics.stuck_loops(10.0, lambda: now + 9.0) == []
        assert metrics.stuck_loops(10.0, lambda: now + 11.0) == ["a loop"]
        monkeypatch.setattr(serving, "STUCK_SECONDS", -1.0)
        assert ask(f"{address}/healthz") == (503, "stuck for -1 s: a loop")
    assert ask(f"{address}/healthz") == (200, "ok"), "a loop that has ended need not turn"


def test_there_is_nothing_else_there(address):
    assert ask(f"{address}/")[0] == 404
    assert ask(f"{address}/metrics/../../etc/passwd")[0] == 404


def test_without_a_port_nothing_is_served(ledger, places):
    before = threading.active_count()
    with serving.serving(None, "127.0.0.1", ledger.engine, places) as served:
        assert served is None
        assert threading.active_count() == before


def test_a_port_that_is_taken_is_named(address, ledger, places):
    port = int(address.rpartition(":")[2])
    with (
        pytest.raises(
            UnavailableError, match=f"127.0.0.1:{port}.*a different port for each service"
        ),
        serving.serving(port, "127.0.0.1", ledger.engine, places),
    ):
        pass


def test_metrics_have_no_names(address, ledger):
    """Whoever may scrape learns how much is done, and not what."""
    submit(ledger, study={"name": 'secret"} 1'})
    _, body = ask(f"{address}/metrics")
    assert "secret" not in body
    assert str(ledger.engine.url) not in body


@pytest.mark.longer
def test_metrics_name_as_many_studies_as_they_are_asked_for(ledger, places):
    """The others are summed, so that every sum is that of all studies."""
    for index, (name, person) in enumerate(
        (("a", "ann"), ("vision/b", "ann"), ("vision/c", "ann"), ("vision/d", "bob"))
    ):
        act = Act(by=Person(os_user=person, host="here"))
        study, _ = ledger.submit(
            spec(study={"name": name}), limit=2 if index else 1, workload=WORKLOAD, act=act
        )
        held = claim(ledger, study)
        draw(ledger, held)
        ledger.finish(held.lease, completed(float(index)), chunk=rows(0, 10))
    with serving.serving(0, "127.0.0.1", ledger.engine, places, 2) as address:
        found = scraped(address)
        steps = {key[1:]: value for key, value in found.items() if key[0] == "tuner_spent_steps"}
        assert steps == {
            ("bob", "vision", "vision/d"): 10.0,
            ("ann", "vision", "vision/c"): 10.0,
            ("ann", "vision", ""): 10.0,
            ("ann", "default", ""): 10.0,
        }
        assert {key[1:]: value for key, value in found.items() if key[0] == "tuner_best_value"} == {
            ("val_loss", "vision/d"): 3.0, ("val_loss", "vision/c"): 2.0,
        }  # fmt: skip
        held = claim(ledger, study)
        draw(ledger, held)
        ledger.finish(held.lease, completed(0.5), chunk=rows(0, 7))
        found = scraped(address)
    assert found[("tuner_spent_steps", "bob", "vision", "vision/d")] == 17, "it has changed"
    assert found[("tuner_best_value", "val_loss", "vision/d")] == 0.5
    assert found[("tuner_spent_seconds", "bob", "vision", "vision/d")] > 0
