"""A trial again is the same to the last bit, or the first difference is named."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import contents
from sqlalchemy import select, update
from training_here import PREFIXES, submitted, train

from tuner.core.curves import Chunk
from tuner.core.errors import NotFoundError, UsageError, WorkloadError
from tuner.ledger.tables import chunks, studies
from tuner.operations import confirm, rerun
from tuner.retraining import checking
from tuner.training.device import use_threads


@pytest.fixture
def study(ledger, places):
    return train(ledger, places, submitted(ledger))


def falsify(ledger, trial, step, column, change):
    """Change one stored value."""
    with ledger.engine.execution_options(writes=True).begin() as tx:
        for row in tx.execute(select(chunks).where(chunks.c.trial_id == trial.id)).all():
            chunk = Chunk.from_bytes(row.first_step, row.data)
            if column in chunk.columns:
                steps, values = list(range(chunk.first_step, chunk.next_step)), chunk.columns
            else:
                steps, values = list(chunk.eval_steps), chunk.metrics
            if step not in steps:
                continue
            at = steps.index(step)
            values[column][at] = change(values[column][at])
            this = (chunks.c.trial_id == trial.id) & (chunks.c.first_step == row.first_step)
            tx.execute(update(chunks).where(this).values(data=chunk.to_bytes()))
            return
    raise AssertionError(f"no value of {column} at step {step}")


@pytest.mark.parametrize("number", range(4))  # the last one diverges
def test_every_trial_repeats_itself_and_nothing_is_written(ledger, study, number):
    before = contents(ledger)
    found = rerun.rerun(ledger, study, number, PREFIXES)
    assert found.equal, found.sentence
    assert found.sentence.startswith(f"Equal: trial {number} of 'line', ")
    assert found.environment == {}
    assert contents(ledger) == before


@pytest.mark.longer
def test_a_trial_that_was_pruned_is_compared_as_far_as_it_came(ledger, places):
    median = {"name": "median", "startup_trials": 1}
    study = train(
        ledger,
        places,
        submitted(
            ledger,
            search={"sampler": "grid", "pruner": median},
            space={"lr": [0.3, 0.01, 0.001], "schedule": "constant", "optimizer": "sgd"},
        ),
    )
    trials = ledger.trials(study.id)
    assert trials[1].state == "pruned"
    assert 0 < trials[1].steps < 12
    assert rerun.rerun(ledger, study, 1, PREFIXES).equal


@pytest.mark.longer
@pytest.mark.parametrize(
    ("step", "column"),
    [(0, "train_loss"), (7, "grad_norm"), (11, "lr"), (0, "val_loss"), (12, "val_loss")],
)
def test_the_first_difference_is_named(ledger, study, step, column):
    trial = ledger.trials(study.id)[1]
    falsify(ledger, trial, step, column, lambda value: np.nextafter(value, math.inf))
    found = rerun.rerun(ledger, study, 1, PREFIXES)
    assert found.difference is not None
    assert (found.difference.step, found.difference.column) == (step, column)
    assert found.difference.by is not None
    assert 0 < -found.difference.by < 1e-12
    assert f"{column} at step {step}" in found.sentence


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0])
def test_odd_numbers_differ_too_and_can_be_printed(ledger, study, value):
    falsify(ledger, ledger.trials(study.id)[0], 3, "train_loss", lambda _: value)
    found = rerun.rerun(ledger, study, 0, PREFIXES)
    assert not found.equal
    assert repr(value) in found.sentence
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1.0, 1.0, True),
        (math.nan, math.nan, True),
        (math.inf, math.inf, True),
        (0.0, -0.0, False),
        (1.0, math.nan, False),
        (math.inf, -math.inf, False),
    ],
)
def test_the_same_bits(one, other, same):
    assert rerun._same(one, other) == same


def test_what_cannot_be_compared_is_said(ledger, study):
    with pytest.raises(NotFoundError, match="no trial 99"):
        rerun.rerun(ledger, study, 99, PREFIXES)
    empty = submitted(ledger, study={"name": "empty"})
    claimed = ledger.claim(empty.id, "worker", {})
    assert claimed is not None
    with pytest.raises(UsageError, match="no curve"):
        rerun.rerun(ledger, empty, 0, PREFIXES)


def test_other_code_is_refused(ledger, study):
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(studies).values(workload=dict(study.workload) | {"code": "other"}))
    with pytest.raises(WorkloadError, match="code"):
        rerun.rerun(ledger, ledger.study("line"), 0, PREFIXES)


@pytest.mark.longer
def test_whatever_trains_again_has_the_threads_that_the_study_settled_on(ledger, places):
    before = torch.get_num_threads()
    try:
        study = train(ledger, places, submitted(ledger, training={"threads": 2}))
        assert study.settled["threads"] == study.threads == torch.get_num_threads() == 2
        use_threads(1)
        assert rerun.rerun(ledger, study, 0, PREFIXES).equal
        assert torch.get_num_threads() == 2
    finally:
        use_threads(before)
    measured = replace(study, spec=submitted(ledger, study={"name": "other"}).spec)
    assert measured.spec.training.threads == "auto"
    again = confirm.submit(ledger, measured)
    fresh = checking.with_fresh_data(measured, "today")
    assert again.spec.training.threads == fresh.training.threads == 2
