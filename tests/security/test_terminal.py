"""A terminal obeys no row: whatever a text column of the ledger holds, output is printable."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import claim, completed, draw, end_retraining, rows, submit, unchecked, went_on
from processes import copy, prepare
from rich.console import Group
from rich.table import Table
from rich.text import Text
from sqlalchemy import String, text

from tuner import cli
from tuner.core.cron import Timetable
from tuner.core.outcome import FAILED, Outcome
from tuner.core.text import is_readable
from tuner.ledger import Ledger, Retrainings, database
from tuner.ledger.tables import AS_JSON, metadata
from tuner.ledger.timetables import Timetables
from tuner.observability import logs
from tuner.report import terminal

FORGED = "Everything is forged."
HOSTILE = f"x\x1b[2J\x1b]0;owned\x07\x9b2J\x7f\u202ecod.exe\r\n{FORGED}\n[red]y[/red][/x]\b"
COLUMNS = [
    (table.name, column.name)
    for table in metadata.sorted_tables
    for column in table.columns
    if isinstance(column.type, String | type(AS_JSON))
]
OTHERS = [
    "tuner_events VALUES (1, 1, NULL, 'small', 'paused', 'why', '{}', 'ann', 'here')",
    (
        "tuner_notifications VALUES (1, 'k', 's', 'webhook', 'TUNER_NOTIFY', 't', '{}', 'waiting',"
        " 1, NULL, 0, 0, NULL, 1, NULL)"
    ),
    ("tuner_launches VALUES ('k', 1, 'local', 1, '[\"elsewhere:1:1\"]', 'ann', 'here', 1, NULL)"),
    "tuner_checkpoints VALUES (1, 1, 1, 20, 'a.pt', 'd1935')",
    "tuner_probes VALUES (1, 1, 'worker', 0, NULL, NULL)",
    "tuner_published_studies VALUES (1, 'mlflow', 'run', 1, 'worker', 0)",
    "tuner_published_studies VALUES (1, 'optuna', '1', 1, 'worker', 0)",
    "tuner_published_trials VALUES (1, 'mlflow', 'run', 10, FALSE)",
    "tuner_published_trials VALUES (1, 'optuna', '1', 10, FALSE)",
]
QUICK = [
    "studies",
    "studies --json",
    "status small",
    "status small --trial 0",
    "history small",
    "workers list small",
    "history small --json",
    "best small",
    "retrain small --history",
    "timetable list",
    "timetable history",
]
COMMANDS = [
    *QUICK,
    "status small --json",
    "status small --trial 2",
    "doctor",
    "doctor --repair",
    "gc --keep-days 0",
    "export small --to out",
    "report small --to page",
    "compare small:0 small:1 --to compared",
    "predict small --input rows.csv",
    "rollback small",
    "recorder --once",
    "pause small",
    "resume small",
    "stop small",
    "timetable remove small",
    "delete small --yes",
]
HARMLESS = [
    ("tuner_trials", "reason"),
    ("tuner_attempts", "worker"),
    ("tuner_attempts", "ending"),
    ("tuner_attempts", "reason"),
    ("tuner_attempts", "traceback"),
    ("tuner_reports", "reason"),
    ("tuner_checkpoints", "path"),
    ("tuner_checkpoints", "digest"),
    ("tuner_launches", "executor"),
    ("tuner_launches", "os_user"),
    ("tuner_launches", "host"),
    ("tuner_probes", "worker"),
    ("tuner_published_studies", "external_id"),
    ("tuner_published_trials", "external_id"),
    ("tuner_retrainings", "model"),
    ("tuner_retrainings", "run_key"),
    ("tuner_retrainings", "reason"),
    ("tuner_timetables", "zone"),
    ("tuner_timetable_runs", "reason"),
    ("tuner_timetable_runs", "outcome"),
    ("tuner_timetable_runs", "state"),
]


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """A folder whose ledger has at least a row in each table with texts, to be copied."""
    folder = prepare(tmp_path_factory.mktemp("full"))
    tracked = Ledger(database.ledger_engine(database.addresses({}, folder).ledger))
    study = submit(tracked)
    for outcome in (completed(0.5), completed(0.4), Outcome(kind=FAILED, reason="It failed.")):
        held = claim(tracked, study)
        draw(tracked, held)
        tracked.report(held.lease, rows(0, 30), went_on(30, 0.5), attrs={"a": "b"})
        tracked.finish(held.lease, outcome)
    claim(tracked, study)
    retrainings = Retrainings(tracked)
    held, _ = retrainings.claim(study.name, "2026-01-01", "model", "worker")
    end_retraining(retrainings, held, "It failed.")
    times = Timetables(tracked)
    when = Timetable(expression="* * * * *", zone="UTC", grace=60, catch_up="all", overlap="skip")
    times.add("small", study.name, when, enabled=True)
    times.tick(retrainings.now() + 180)
    with tracked.engine.execution_options(writes=True).begin() as tx:
        for row in OTHERS:
            tx.execute(text(f"INSERT INTO {row}"))
    tracked.engine.dispose()
    return folder


@pytest.fixture
def filled(full, tmp_path, monkeypatch) -> Iterator[Ledger]:
    """A copy of that ledger, in the current folder."""
    folder = copy(full, tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "400")
    made = Ledger(database.ledger_engine(database.addresses({}, folder).ledger))
    yield made
    made.engine.dispose()


def corrupt(ledger: Ledger, table: str, column: str, value: str) -> None:
    writing = ledger.engine.execution_options(writes=True).begin()
    with writing as tx, unchecked(tx.exec_driver_sql):
        tx.execute(text(f"UPDATE OR IGNORE {table} SET {column} = :value"), {"value": value})


def printed(capfd: pytest.CaptureFixture[str], command: list[str]) -> str:
    """Run a command in this process as the console script does; return all that it printed."""
    before = sys.argv, sys.excepthook, logging.root.handlers[:]
    sys.argv = ["tuner", *command]
    try:
        cli.main()
    except SystemExit:
        pass
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.argv, sys.excepthook, logging.root.handlers = before
    out, err = capfd.readouterr()
    return out + err


def assert_harmless(command: str, output: str) -> None:
    assert is_readable(output), (command, output)
    if "Traceback" not in output:  # its last lines are what was raised
        assert not [line for line in output.splitlines() if line.startswith(FORGED)], output


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=map(".".join, COLUMNS))
def test_no_text_column_reaches_the_terminal_as_it_is(filled, capfd, table, column):
    is_json = column == "spec" or isinstance(metadata.tables[table].c[column].type, type(AS_JSON))
    value = {"lr": 0.1, "schedule": HOSTILE, HOSTILE: HOSTILE}
    corrupt(filled, table, column, json.dumps(value) if is_json else HOSTILE)
    for command in QUICK:
        assert_harmless(command, printed(capfd, command.split()))


@pytest.mark.slow
def test_no_command_prints_a_hostile_text_as_it_is(filled, capfd):
    """All texts at once that are not needed to find and read a study."""
    for table, column in HARMLESS:
        corrupt(filled, table, column, HOSTILE)
    for command in COMMANDS:
        assert_harmless(command, printed(capfd, command.split()))


@pytest.mark.slow
def test_no_command_prints_a_hostile_argument_as_it_is(filled, capfd):
    for command in COMMANDS:
        if "small" in command:
            words = [HOSTILE if word == "small" else word for word in command.split()]
            assert_harmless(command, printed(capfd, words))


def test_lines_of_logs_are_printable(capfd):
    log = logging.getLogger("tuner.security")
    before, level = logging.root.handlers[:], logging.root.level
    try:
        for prepare in (logs.plain, lambda: logs.service("text"), lambda: logs.service("json")):
            logging.root.handlers = []
            prepare()
            log.warning(f"cannot read {HOSTILE}", exc_info=ValueError(HOSTILE))
            logs.logger("tuner.security").warning(HOSTILE, trial=HOSTILE)
            _, err = capfd.readouterr()
            assert "owned" in err
            assert is_readable(err), err
    finally:
        logging.root.handlers = before
        logging.root.setLevel(level)


def test_a_console_escapes_whatever_it_renders():
    made, shown = terminal.console(), io.StringIO()
    made.file = shown
    table = Table(HOSTILE)
    table.add_row(HOSTILE, style="bold")
    made.print(table, HOSTILE, Group(Text(HOSTILE)))
    assert is_readable(shown.getvalue())
    assert "[red]y[/red]" in shown.getvalue()
