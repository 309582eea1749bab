"""Deciding between the best trials of a study: which of them are trained again next.

The plan of a race follows from the trials in the ledger, and each of its trainings is added once.
So any number of workers may ask for the next rounds, and an interrupted race goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.analysis import deciding
from tuner.analysis.deciding import Decision
from tuner.core.errors import UsageError
from tuner.core.failpoints import reach
from tuner.ledger import ENDED, Ledger, StudyRecord
from tuner.ledger.deciding import add_rounds, is_undecided, mark_decided
from tuner.observability.logs import logger

log = logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a decision after the next rounds were added, if any were due."""

    decision: Decision
    again: StudyRecord  # the study of its trials
    added: int  # trials added just now


def advance(ledger: Ledger, study: StudyRecord) -> Progress | None:
    """Add the next rounds of the decision that a study's budget pays for.

    Return None if its search is not over or nothing is left to decide.
    """
    if not is_undecided(study) or ledger.counts(study.id)["running"]:
        return None
    share = study.deciding_share
    budget = {
        name: None if limit is None else share * limit
        for name in ("wall_seconds", "compute_seconds")
        for limit in [getattr(study.spec.budget, name)]
    }
    going = advance_by(ledger, study, lambda: deciding.decision(ledger, study), budget)
    if going is None:
        mark_decided(ledger, study)
    return going


def advance_by(
    ledger: Ledger,
    study: StudyRecord,
    decide: Callable[[], Decision | None],
    budget: dict[str, float | None] | None = None,
) -> Progress | None:
    """Add the next rounds of a decision; return None if nothing is left to train.

    `budget` has limits for the study of its trials.
    """
    found = decide()
    if found is None or found.race.over:
        return None
    again = submit(ledger, study, budget or {})
    cells = [
        (found.trials[number], round_, round_seed(study, round_))
        for number, round_ in found.race.todo
    ]
    added: Sequence[int] = ()
    if cells:
        if again.state == ENDED:
            return None
        try:
            added = add_rounds(ledger, again, study, cells)
        except UsageError as error:  # it was stopped
            log.warning(str(error))
            return None
        reach("decide.added")
        log.info("deciding", study=study.name, by=again.name, trials=len(added))
    if not added and not found.running:
        # another worker has just added or finished them, or they were cancelled
        found = decide()
        if found is None or not found.running:
            return None
    return Progress(decision=found, again=again, added=len(added))


def submit(
    ledger: Ledger, study: StudyRecord, budget: dict[str, float | None] | None = None
) -> StudyRecord:
    """Submit the study of the new trials, or return the existing one.

    Its trials are trained as those of `study`, with its trainer, slots and threads.
    """
    name, again = deciding.place(ledger, study)
    if again is not None:
        return again
    spec = deciding.again_spec(study, name)
    if budget:
        spec = spec.model_copy(update={"budget": spec.budget.model_copy(update=budget)})
    again, _ = ledger.submit(spec, limit=0, workload=study.workload)
    if study.settled is not None:
        ledger.settle(again.id, study.settled)
    return ledger.study(name)


def round_seed(study: StudyRecord, round_: int) -> int:
    """Return the seed of all trials of a round; no trial of the search has it."""
    sequence = np.random.SeedSequence([study.spec.study.seed, round_, 1])
    return int(sequence.generate_state(1, np.uint32)[0])
