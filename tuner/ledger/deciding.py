"""The rounds of a race: trials that train others again, in a study of their own.

Each is known by the trial that it repeats and its round, which are among its attributes, so none is
added twice, whoever adds it and however often.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from itertools import count

from sqlalchemy import Connection, update

from tuner.ledger import adding, rows
from tuner.ledger.adding import Attrs
from tuner.ledger.managing import locked
from tuner.ledger.reading import Reader
from tuner.ledger.records import (
    ADDED,
    CONFIRMATION,
    DECIDED,
    ENDED,
    FIXED,
    OPEN,
    PARENT,
    ROUND,
    SEED,
    StudyRecord,
    TrialRecord,
)
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import studies


def add_rounds(
    ledger: Reader,
    again: StudyRecord,
    study: StudyRecord,
    cells: Sequence[tuple[TrialRecord, int, int]],
) -> list[int]:
    """Add to the study `again` the trials that repeat those of `study`; return their numbers.

    `cells` are trials with their rounds and seeds. Those that were added before are left out. The
    budget of `again` is raised by the others. Raise `UsageError` if it is stopped or has ended.
    """

    def wanted(tx: Connection) -> list[Attrs]:
        known = [(cell_of(attrs), attrs.get(FIXED)) for _, attrs in adding.attributes(tx, again.id)]
        return [
            {
                FIXED: dict(trial.params or {}),
                ADDED: CONFIRMATION,
                PARENT: {"study": study.title, "trial": trial.number},
                SEED: seed,
                ROUND: round_,
            }
            for trial, round_, seed in cells
            if ((study.title, trial.number, round_), trial.params) not in known
        ]

    return adding.add(ledger, again, wanted, True, uuid.uuid4().hex, count())


def cell_of(attrs: Attrs) -> tuple[str, int, int] | None:
    """Return the study, the trial and the round that a trial repeats; None if it repeats none."""
    parent, round_ = attrs.get(PARENT), attrs.get(ROUND)
    return None if parent is None or round_ is None else (parent["study"], parent["trial"], round_)


@retry_on_disconnect
def mark_decided(ledger: Reader, study: StudyRecord) -> None:
    """Record that nothing is left to decide, until the study gets further trials."""
    with locked(ledger, study) as (tx, row):
        attrs = row.attrs if isinstance(row.attrs, dict) else {}
        if attrs.get(DECIDED) == study.reserved:
            return
        rows.next_revision(tx, study.id)
        changed = update(studies).where(studies.c.id == study.id)
        tx.execute(changed.values(attrs={**attrs, DECIDED: study.reserved}))


def is_undecided(study: StudyRecord) -> bool:
    """Return whether the search of a study is over, and its decision is not complete.

    Its last trials may still be running.
    """
    over = study.state == ENDED or (study.state == OPEN and study.reserved >= study.limit)
    return over and study.deciding_trials > 0 and study.attrs.get(DECIDED) != study.reserved
