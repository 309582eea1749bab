"""What the ledger asks of its database: few statements, none of which reads all trials."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from helpers import PARAMS, claim, completed, draw, rows, submit, went_on
from rich.console import Console
from sqlalchemy import event, insert, update

from tuner.cli.base import print_results
from tuner.core.curves import Chunk
from tuner.core.outcome import COMPLETED, PRUNED
from tuner.ledger import Claim, Drawn, Entry, limits, managing
from tuner.ledger.spending import spending
from tuner.ledger.tables import attempts, studies, trials
from tuner.observability.serving import LedgerCollector
from tuner.operations import best, status
from tuner.operations import studies as listing
from tuner.search import Search


class Statements:
    """The statements that an engine is given, with their parameters."""

    def __init__(self, engine) -> None:
        self.seen: list[tuple[str, object]] = []
        event.listen(engine, "before_cursor_execute", self._see)

    def _see(self, _connection, _cursor, statement, parameters, _context, _many) -> None:
        if not statement.startswith(("BEGIN", "EXPLAIN")):
            self.seen.append((statement, parameters))

    def of(self, call) -> list[tuple[str, object]]:
        self.seen.clear()
        call()
        return list(self.seen)


ASKED = [  # (what, at most so many statements)
    ("claim", 4),
    ("draw", 3),
    ("searched", 1),
    ("report", 6),
    ("finish", 7),
]


def calls(ledger):
    study = submit(ledger)
    for _ in range(3):  # what has ended, is trained and waits
        held = claim(ledger, study)
        draw(ledger, held)
    ledger.finish(held.lease, completed(1.0))
    held = claim(ledger, study)
    report = went_on(10, 0.5)
    return {
        "claim": lambda: claim(ledger, study),
        "draw": lambda: draw(ledger, held),
        "searched": lambda: ledger.searched(study.id, 3),
        "report": lambda: ledger.report(held.lease, rows(0, 10), report, attrs={}),
        "finish": lambda: ledger.finish(
            held.lease, completed(1.0), chunk=rows(0, 20), report=report, attrs={}
        ),
        "reap": ledger.reap,
        "stop": lambda: managing.stop(ledger, study, "enough"),
    }


@pytest.mark.parametrize(("what", "most"), ASKED)
def test_what_every_trial_asks_takes_few_statements(ledger, what, most):
    statements = Statements(ledger.engine)
    call = calls(ledger)[what]
    asked = statements.of(call)
    assert 0 < len(asked) <= most, "\n\n".join(statement for statement, _ in asked)


LOCKED = {"claim": 3, "draw": 1, "report": 1, "finish": 1}
"""On PostgreSQL, statements from the one that locks the study's row on."""


def test_the_studys_row_is_locked_for_few_statements(either):
    """All workers of a study wait for it; SQLite, which locks everything, takes two for one."""
    statements, asked = Statements(either.engine), calls(either)
    more = int(either.engine.dialect.name == "sqlite")
    for what, most in LOCKED.items():
        made = [statement for statement, _ in statements.of(asked[what])]
        locks = ["UPDATE tuner_studies" in one or " FOR NO KEY UPDATE" in one for one in made]
        assert len(made) - locks.index(True) == most + more * (what != "claim"), made


MANY = 64


def test_many_trials_ask_no_more_than_one(ledger):
    """But for rows that are inserted in portions, each statement is of all trials at once."""
    study = submit(ledger, budget={"trials": MANY})
    statements = Statements(ledger.engine)
    held: list[Claim] = []
    asked = [statements.of(lambda: held.extend(ledger.claim_together(study.id, "w", {}, MANY)))]
    drawn = [Drawn(lease=one.lease, params=PARAMS, attrs={}) for one in held]
    asked.append(
        statements.of(lambda: ledger.draw_together(drawn, study_attrs={}, asked_revision=1))
    )
    entries = [
        Entry(
            lease=one.lease,
            chunk=rows(0, 10),
            report=went_on(10, 0.5),
            outcome=completed(1.0) if number % 2 else None,
        )
        for number, one in enumerate(held)
    ]
    asked.append(statements.of(lambda: ledger.commit(entries)))
    assert [len(one) for one in asked] == [4, 3, 9]


def test_curves_of_many_trials_are_read_with_one_statement(ledger):
    study = submit(ledger)
    held = [claim(ledger, study) for _ in range(3)]
    for one in held:
        draw(ledger, one)
        ledger.finish(one.lease, completed(1.0), chunk=rows(0, 20))
    found: list[tuple[int, Chunk]] = []
    ids = [one.trial.id for one in held]
    asked = Statements(ledger.engine).of(lambda: found.extend(ledger.each_curve(ids)))
    assert len(asked) == 1
    assert [one for one, _ in found] == ids
    assert all(curve.next_step == 20 for _, curve in found)


def test_what_a_study_has_spent_is_found_without_its_reports(ledger):
    study = submit(ledger)
    asked = Statements(ledger.engine).of(lambda: spending(ledger, [study]))
    assert asked
    assert not [statement for statement, _ in asked if "tuner_reports" in statement]


@pytest.mark.parametrize("what", ["claim", "draw", "searched", "report", "finish", "reap", "stop"])
def test_nothing_reads_all_trials_or_attempts(ledger, what):
    statements = Statements(ledger.engine)
    call = calls(ledger)[what]
    for statement, parameters in statements.of(call):
        if statement.startswith("INSERT INTO") and "SELECT" not in statement:
            continue
        with ledger.engine.begin() as tx:
            plan = tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
        for *_, step in plan:
            by_number = "tuner_trials USING INDEX sqlite_autoindex_tuner_trials_1 (study_id=?)"
            assert "SCAN tuner" not in step or "tuner_attempts_live" in step, (step, statement)
            assert by_number not in step, (step, statement)


# --- what grows with the trials of a study

FEW, MANY_TRIALS = 600, 1200
"""Ended trials, more than `status` looks at."""


def fill(ledger, count: int):
    """Submit a study whose ended trials are inserted in bulk, and hold a trial of it."""
    rules = {"wall_seconds": 1e10, "compute_seconds": 1e10, "no_improvement": 10_000}
    space = {"schedule": ["constant", "cosine"]}
    study = submit(ledger, space=space, budget={"trials": 10_000, **rules})
    params = {**PARAMS, "schedule": "constant"}
    cosine = {**PARAMS, "schedule": "cosine", "cosine.final": 0.0}
    common = {"study_id": study.id, "imported": False, "attrs": {}, "reason": "As it is."}
    times = {"last_time": 5.0, "created_at": 5.0, "ended_at": 6.0}
    made = [
        common | times | {
            "id": number + 1, "number": number, "params": params if number % 3 else cosine,
            "state": COMPLETED if number % 2 else PRUNED, "value": float(number % 97),
            "steps": 50, "revision": number + 2,
        }
        for number in range(count)
    ]  # fmt: skip
    tried = [
        {"trial_id": one["id"], "number": 1, "worker": f"w{one['id'] % 4}", "live": False,
         "expires_at": 0.0, "first_step": 0, "environment": {}, "started_at": 5.0,
         "ended_at": 6.0, "ending": "finished"}
        for one in made
    ]  # fmt: skip
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(insert(trials), made)
        tx.execute(insert(attempts), tried)
        counted = {"reserved": count, "next_number": count, "revision": count + 2}
        tx.execute(update(studies).where(studies.c.id == study.id).values(counted))
    held = claim(ledger, study)
    draw(ledger, held, **params)
    return ledger.study(study.name), held


@pytest.fixture
def costs(ledger) -> Callable[[Callable[[], object]], tuple[int, int]]:
    """Return the function that counts the statements of a call and the rows that come back."""
    statements, rows_read = Statements(ledger.engine), 0

    def factory(_cursor, row):
        nonlocal rows_read
        rows_read += 1
        return row

    @event.listens_for(ledger.engine, "checkout")
    def count_rows(connection, *_) -> None:
        connection.row_factory = factory

    def counted(call) -> tuple[int, int]:
        nonlocal rows_read
        rows_read = 0
        return len(statements.of(call)), rows_read

    return counted


def looks(ledger, study, held):
    """Return what people and workers ask of a study of many trials."""
    search, collector = Search(study, ledger), LedgerCollector(ledger.engine, named_studies=3)
    search.refresh()
    list(collector.collect())
    console = Console(file=io.StringIO(), width=200)
    return {
        "status": lambda: status.status(ledger, study),
        "in a terminal": lambda: print_results(console, ledger, study),
        "best": lambda: (best.best(ledger, study), best.decision(ledger, study)),
        "studies": lambda: listing.studies(ledger),
        "spend": lambda: spending(ledger, [study]),
        "metrics": lambda: list(collector.collect()),
        "rules": lambda: limits.end_when_due(ledger, study),
        "report": lambda: ledger.report(held.lease, rows(0, 10), went_on(10, 0.5), attrs={}),
        "finish": lambda: ledger.finish(held.lease, completed(1.0), chunk=rows(0, 20)),
        "claim": lambda: claim(ledger, study),
        "refresh": search.refresh,
    }


@pytest.mark.longer
def test_neither_statements_nor_rows_grow_with_the_trials_of_a_study(ledger, costs):
    found = []
    for count in (FEW, MANY_TRIALS):
        study, held = fill(ledger, count)
        asked = looks(ledger, study, held)
        found.append({what: costs(call) for what, call in asked.items()})
        managing.delete_study(ledger, study)
    few, many = found
    assert many == few
    assert all(read < FEW + 100 for _, read in few.values()), few
