"""A worker with a cohort: many trials at a time, asked, decided and told as one by one."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from training_here import PREFIXES, submitted, train

from tuner.ledger import Ledger, StudyRecord
from tuner.ledger.database import Addresses
from tuner.operations.rerun import rerun
from tuner.training.cohort.trainer import CohortTrainer
from tuner.worker import work

SPACE = {
    "lr": {"low": 1e-3, "high": 100.0},  # so wide that some diverge
    "schedule": ["constant", "cosine"],
    "optimizer": ["sgd", "adamw"],
}


def put(ledger: Ledger, name: str, **training: Any) -> StudyRecord:
    return submitted(
        ledger,
        study={"name": name, "seed": 4},
        training={"steps": 36, **training},
        space=SPACE,
        search={"sampler": "random"},
        budget={"trials": 13},
    )


def curves(ledger: Ledger, study: StudyRecord) -> list[Any]:
    return [(trial, ledger.curve(trial.id)) for trial in ledger.trials(study.id)]


@pytest.mark.slow
def test_a_cohorts_trials_are_those_of_the_reference(ledger, places):
    """Drawn independently and not pruned, whatever trains beside them."""
    alone = train(ledger, places, put(ledger, "alone"))
    together = train(ledger, places, put(ledger, "together", trainer="cohort", slots=4))
    assert together.settled["trainer"] == "cohort"
    assert together.settled["slots"] == 4
    assert ledger.counts(together.id) == ledger.counts(alone.id)
    assert ledger.counts(together.id)["diverged"] > 0
    for (mine, curve), (theirs, plain) in zip(
        curves(ledger, together), curves(ledger, alone), strict=True
    ):
        assert (mine.params, mine.state, mine.steps) == (theirs.params, theirs.state, theirs.steps)
        for name, column in plain.columns.items():
            np.testing.assert_allclose(curve.columns[name], column, rtol=1e-9)


@pytest.mark.slow
def test_slots_refill_and_rungs_decide(ledger, places):
    study = submitted(
        ledger,
        study={"name": "asha"},
        training={"steps": 27, "trainer": "cohort", "slots": 5},
        space=SPACE,
        search={"sampler": "tpe", "pruner": "asha"},
        budget={"trials": 40},
    )
    train(ledger, places, study)
    counts = ledger.counts(study.id)
    assert counts["pruned"] > 0
    assert counts["completed"] > 0
    assert counts["running"] == counts["waiting"] == 0
    live = most_at_once(ledger, study)
    assert live == 5, "never more trials than slots, and all of them used"


def most_at_once(ledger: Ledger, study: StudyRecord) -> int:
    changes = [(one.started_at, 1) for one in ledger.attempts(study.id)]
    changes += [(one.ended_at, -1) for one in ledger.attempts(study.id)]
    return int(np.cumsum([change for _, change in sorted(changes)]).max())


@pytest.mark.thorough
@pytest.mark.slow
def test_a_cohort_that_is_interrupted_goes_on_to_the_same_curves(ledger, places, monkeypatch):
    calm = train(ledger, places, put(ledger, "calm", trainer="cohort", slots=3))
    study = put(ledger, "disturbed", trainer="cohort", slots=3)
    advance, stop, calls = CohortTrainer.advance, threading.Event(), []

    def interrupted(self, max_steps):
        calls.append(max_steps)
        if len(calls) % 4 == 0:
            stop.set()
        return advance(self, 1)

    monkeypatch.setattr(CohortTrainer, "advance", interrupted)
    while ledger.counts(study.id)["waiting"] or ledger.study("disturbed").reserved < 13:
        stop.clear()
        work(ledger, places, names=["disturbed"], prefixes=PREFIXES, stop=stop,
             until_idle=True)  # fmt: skip
    assert any(one.ending == "interrupted" for one in ledger.attempts(study.id))
    for (mine, curve), (theirs, plain) in zip(
        curves(ledger, study), curves(ledger, calm), strict=True
    ):
        assert (mine.state, mine.value) == (theirs.state, theirs.value)
        for name, column in plain.columns.items():
            np.testing.assert_array_equal(curve.columns[name], column)


@pytest.mark.slow
def test_what_was_settled_holds_for_everybody(ledger, places):
    study = train(ledger, places, put(ledger, "kept", trainer="cohort", slots=2))
    assert all(one.environment["settled"] == study.settled for one in ledger.attempts(study.id))
    assert rerun(ledger, study, 0, PREFIXES).equal


@pytest.mark.slow
def test_what_cannot_be_stacked_falls_back_and_says_why(ledger, places):
    study = submitted(
        ledger,
        training={"trainer": "cohort", "accumulate": 2},
        space={"lr": 0.1, "schedule": "plateau", "optimizer": "sgd"},
        search={"sampler": "random"},
        budget={"trials": 2},
    )
    settled = train(ledger, places, study).settled
    assert settled["trainer"] == "reference"
    assert "accumulate = 2" in settled["reason"]


@pytest.mark.slow
def test_out_of_memory_halves_the_slots(ledger, places, monkeypatch, caplog):
    advance = CohortTrainer.advance

    def short(self, max_steps):
        if self.capacity > 2:
            raise MemoryError
        return advance(self, max_steps)

    monkeypatch.setattr(CohortTrainer, "advance", short)
    study = train(ledger, places, put(ledger, "short", trainer="cohort", slots=8))
    assert ledger.counts(study.id)["failed"] == 0
    assert "from now on 2 slots of the cohort trainer" in caplog.text
    assert most_at_once(ledger, study) == 8


@pytest.mark.slow
def test_without_memory_for_one_slot_the_plain_trainer_takes_over(
    ledger, places, monkeypatch, caplog
):
    def short(self, max_steps):
        raise MemoryError

    monkeypatch.setattr(CohortTrainer, "advance", short)
    study = train(ledger, places, put(ledger, "short", trainer="cohort", slots=2))
    assert ledger.counts(study.id)["completed"] > 0
    assert ledger.counts(study.id)["failed"] == 0
    assert "from now on 1 slot of the reference trainer" in caplog.text


@pytest.mark.longer
def test_one_that_raises_fails_alone_and_is_tried_again(ledger, places):
    """A metric that raises at outputs that only a rate of 4 reaches."""
    study = submitted(
        ledger,
        workload={"factory": "tests.training_here:picky"},
        training={"trainer": "cohort", "slots": 4},
        space={"lr": [0.01, 0.1, 0.3, 4.0]},
        budget={"retries": {"failed": 1}},
    )
    train(ledger, places, study)
    tries = [one.trial_id for one in ledger.attempts(study.id)]
    ends = {
        trial.params["lr"]: (trial.state, tries.count(trial.id))
        for trial in ledger.trials(study.id)
    }
    assert ends == {4.0: ("failed", 2)} | dict.fromkeys([0.01, 0.1, 0.3], ("completed", 1))


@pytest.mark.slow
def test_a_cohort_leaves_everything_whole(places: Addresses, tmp_path):
    from processes import prepare, processes_in, tuner

    study = """
[study]
name = "small"

[workload]
factory = "studies.digits:mlp"

[training]
steps = 60
trainer = "cohort"
slots = 6

[budget]
trials = 30
"""
    folder = prepare(tmp_path, study)
    done = tuner(folder, "run", "study.toml", "--json")
    assert done.code == 0, done.err
    assert sum(done.json["trials"].values()) == 30
    assert tuner(folder, "doctor").out == "Everything matches.\n"
    assert processes_in(folder) == []
