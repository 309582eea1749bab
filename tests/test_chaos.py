"""The judge of `make chaos` sees each kind of damage, and the short form of the chaos itself."""

from __future__ import annotations

import http.server
import re
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from chaos import page, results
from chaos.__main__ import all_steps
from chaos.checker import Findings, Left, compare, consistent, read, remains, sqlite
from chaos.faults import (
    Fault,
    at_each_place,
    connections_cut,
    killed_at_rare_places,
    more_steps,
)
from chaos.proxy import DEAF, ERRORS, PASS, SILENT, Proxy
from chaos.scenarios import Row, calm, deleted, disturbed, upgraded
from chaos.soak import Sample, judge
from chaos.stack import Stack, stack
from processes import change, copy, prepare, train_here

pytestmark = pytest.mark.slow


@pytest.fixture(name="trained", scope="module")
def trained_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("trained") / "study")
    train_here(folder)
    return folder


def left(folder: Path) -> Left:
    with sqlite(folder) as ask:
        found = read(ask, "small")
    assert found is not None
    return found


def test_an_undisturbed_study_is_without_fault(trained):
    whole = left(trained)
    assert consistent(whole) == compare(whole, whole) == Findings()
    assert {one[0] for one in whole.ledger.values()} == {"completed", "pruned", "diverged"}
    assert whole.rows.total() > whole.points.total() > 500


RUN_4 = "(SELECT run_uuid FROM tags WHERE key = 'tuner.trial' AND value = '4')"
OF_OPTUNA = "number, study_id, state"
AS_IS = "key, value, timestamp + 1, run_uuid, step, is_nan"  # but at another time
A_POINT = "(SELECT min(rowid) FROM metrics WHERE key = 'val_loss')"


@pytest.mark.parametrize(
    ("file", "damage", "seen"),
    [
        ("tuner.db", "DELETE FROM trials WHERE number = 2", {"lost"}),
        ("tuner.db", "DELETE FROM tuner_trials WHERE number = 2", {"lost", "missing"}),
        ("mlflow.db", f"DELETE FROM runs WHERE run_uuid = {RUN_4}", {"lost", "missing"}),
        (
            "mlflow.db",
            f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = {RUN_4}",
            {"lost", "missing"},
        ),
        (
            "tuner.db",
            f"INSERT INTO trials ({OF_OPTUNA}) SELECT {OF_OPTUNA} FROM trials WHERE number = 2",
            {"doubled"},
        ),
        ("mlflow.db", "UPDATE tags SET value = '3' WHERE key = 'tuner.trial' AND value = '4'",
         {"lost", "doubled", "missing", "wrong", "stuck"}),
        ("tuner.db", "UPDATE tuner_trials SET state = 'running' WHERE number = 3",
         {"stuck", "wrong"}),
        ("tuner.db", "UPDATE trials SET state = 'RUNNING' WHERE number = 3", {"stuck"}),
        ("mlflow.db", f"UPDATE runs SET status = 'RUNNING' WHERE run_uuid = {RUN_4}", {"stuck"}),
        ("tuner.db", "UPDATE tuner_attempts SET live = 1 WHERE id = 1", {"stuck"}),
        ("tuner.db", "DELETE FROM tuner_chunks WHERE rowid = 1", {"missing"}),
        ("mlflow.db", f"DELETE FROM metrics WHERE rowid = {A_POINT}", {"missing"}),
        ("mlflow.db", f"UPDATE metrics SET value = value * (1 + 1e-15) WHERE rowid = {A_POINT}",
         {"wrong"}),
        ("mlflow.db", f"UPDATE metrics SET step = 1000 WHERE rowid = {A_POINT}",
         {"missing", "wrong"}),
        ("mlflow.db",
         f"INSERT INTO metrics SELECT {AS_IS} FROM metrics WHERE rowid = {A_POINT}", {"wrong"}),
        ("tuner.db", "UPDATE tuner_reports SET value = value + 1 WHERE rowid = 1", {"wrong"}),
        ("tuner.db", "UPDATE tuner_trials SET ended_at = created_at WHERE number = 0", {"wrong"}),
        ("tuner.db", "UPDATE tuner_trials SET params = '{}' WHERE number = 0", {"wrong"}),
        ("tuner.db", "UPDATE tuner_studies SET \"limit\" = 7", {"overrun"}),
    ],
)  # fmt: skip
def test_the_checker_sees_damage(trained, tmp_path, file, damage, seen):
    folder = copy(trained, tmp_path)
    assert change(folder, damage, file) == 1
    found = compare(left(folder), left(trained))
    assert {name for name, count in vars(found).items() if count} == seen


def test_what_a_deletion_leaves_is_seen(trained):
    with sqlite(trained) as ask:
        assert remains(ask, "small").stuck == 2 + 9  # in the ledger, in Optuna; runs
        assert remains(ask, "another") == Findings()


def test_the_soak_tells_what_grows_from_what_is_level():
    def sample(**changed: float) -> Sample:
        level = dict.fromkeys(Sample.__dataclass_fields__, 100) | {"wrong": 0, "files": 0}
        return Sample(**(level | changed))

    level = [sample() for _ in range(12)]
    assert judge(level)[1]
    verdict, well = judge([sample(worker_mb=100 + 5 * n) for n in range(12)])
    assert not well
    assert "| worker_mb | 120 | 150 | 155 | grows |" in verdict
    assert not judge([*level, sample(wrong=1)])[1]
    assert not judge(level[:3])[1], "too short to tell"


def test_a_table_has_what_was_measured_last_and_says_what_was_not(tmp_path):
    file, well = tmp_path / "kept", Row(what="a kill", trainer="cohort", fired="1 kill")
    results.keep("second", Row(what="b", trainer="", fired="failed: no", failed=True), file)
    results.keep("first", replace(well, findings=Findings(lost=3)), file)
    results.keep("first", replace(well, recovery=1.25), file)
    *_, first, second, empty, said = results.table(["first", "second", "third"], file).splitlines()
    assert first == "| a kill | cohort | 1 kill | 0 | 0 | 0 | 0 | 0 | 0 | 1.2 |"
    assert second == "| b |  | failed: no | 0 | 0 | 0 | 0 | 0 | 0 |  |"
    assert empty == ""
    assert re.fullmatch(r"Measured on [-\d]+, at \w+(, changed)?\. Not measured: third\.", said)


def test_the_documents_table_is_what_was_measured():
    assert page.read("table") == results.table(list(all_steps()))


@pytest.mark.parametrize(
    ("mode", "answer", "seen"),
    [
        (PASS, "200", 1),
        (ERRORS, "HTTPError", 0),
        (SILENT, "TimeoutError", 0),
        (DEAF, "RemoteDisconnected", 1),  # the server has done it, and nobody knows
    ],
)
def test_the_proxy_does_what_it_is_told(mode, answer, seen):
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever).start()
        proxy = Proxy(server.server_port)
        proxy.set(mode)
        assert said(proxy.port) == answer
        assert (len(asked), proxy.counts[mode] > 0) == (seen, mode != PASS)
        proxy.close()
        server.shutdown()


def said(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1) as answer:
            return str(answer.status)
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        return type(error).__name__


def killed_and_cut(made: Stack, name: str) -> str:
    """Do in one study what `make chaos` does in three."""
    seen = [at_each_place("kill")(made, name), killed_at_rare_places(made, name)]
    made.fill()
    made.until(more_steps(made, name), "steps by the last workers")
    return ", ".join([*seen, connections_cut(made, name, times=8)])


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_short_chaos():
    """Each failpoint of workers, recorders, deletions and upgrades, and connections cut."""
    with stack(trials=28, workers=2, warm=True) as made:
        rows = [
            calm(made, "cohort"),
            disturbed(made, Fault("kills and cuts", "cohort", killed_and_cut)),
            deleted(made, "calm cohort", "kill"),
            upgraded(made, at_once=3),
        ]
    assert {row.what: row.findings for row in rows} == {row.what: Findings() for row in rows}
