"""What the ledger asks of its database: few statements, none of which reads all trials."""

from __future__ import annotations

import pytest
from helpers import PARAMS, claim, completed, draw, rows, submit, went_on
from sqlalchemy import event

from tuner.core.curves import Chunk
from tuner.ledger import Claim, Drawn, Entry, managing
from tuner.ledger.spending import spending


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
    ("claim", 5),
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
    assert [len(one) for one in asked] == [5, 3, 9]


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
