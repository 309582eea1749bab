"""Training trials further: which go on, which start anew, and what is recorded."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import claim, completed, draw, drawn, rows, submit
from training_here import PREFIXES, submitted, train

from tuner.core.errors import NotFoundError, UsageError
from tuner.core.outcome import FAILED, Outcome
from tuner.ledger.records import PARENT
from tuner.operations import extend, rerun
from tuner.search import Search
from tuner.training.trainer import seed_of


def ended(ledger, study, outcome=None, **params):
    one = claim(ledger, study)
    draw(ledger, one, **params)
    ledger.finish(one.lease, outcome or completed(1.0), chunk=rows(0, 10))
    return ledger.trial(study.id, one.trial.number)


def test_longer_trials_have_the_parameters_and_seeds_of_the_chosen_ones(ledger):
    study = submit(ledger)
    chosen = [ended(ledger, study, lr=lr) for lr in (0.1, 0.2, 0.3)][1:]
    longer, added = extend.submit(ledger, study, chosen, steps=50)
    assert (longer.name, longer.spec.training.steps) == ("small to 150 steps", 150)
    assert added == {1: 0, 2: 1}
    assert (longer.limit, longer.spec.budget.trials) == (2, 2)
    search = Search(longer, ledger)
    for parent in chosen:
        one, made = drawn(ledger, longer, search)
        assert made.params["lr"] == parent.params["lr"]
        assert one.trial.attrs["tuner:seed"] == seed_of(study.spec, parent.number)
        assert one.trial.attrs[PARENT] == {"study": "small", "trial": parent.number}
    assert ledger.claim(longer.id, "worker", {}) is None


def test_the_same_command_adds_nothing_and_another_trial_joins(ledger):
    study = submit(ledger)
    one, two = (ended(ledger, study, lr=lr) for lr in (0.1, 0.2))
    first, _ = extend.submit(ledger, study, [one], steps=50)
    again, _ = extend.submit(ledger, study, [one], steps=50)
    assert (again.id, again.reserved) == (first.id, 1)
    more, added = extend.submit(ledger, study, [one, two], steps=50)
    assert (more.id, added) == (first.id, {0: 0, 1: 1})


@pytest.mark.parametrize(
    ("params", "shared"),
    [
        ({"schedule": "constant", "constant.warmup": 0.0}, 100),
        ({"schedule": "constant", "constant.warmup": 0.1}, 0),
        ({"schedule": "cosine", "cosine.final": 0.0, "cosine.warmup": 0.0}, 1),
        ({"schedule": "wsd", "wsd.decay": 0.2, "wsd.shape": "linear", "wsd.final": 0.0,
          "wsd.warmup": 0.0}, 81),
        ({"schedule": "plateau", "plateau.factor": 0.1, "plateau.patience": 2,
          "plateau.threshold": 1e-4, "plateau.floor": 0.0, "plateau.warmup": 0.0}, 100),
    ],
)  # fmt: skip
def test_schedules_that_go_on_and_that_start_anew(ledger, params, shared):
    study = submit(ledger, space={"schedule": ["constant", "cosine", "wsd", "plateau"]})
    trial = ended(ledger, study, **params)
    assert abs(extend.shared_steps(trial, 100, 150) - shared) <= 1
    assert (extend.shared_steps(trial, 100, 150) == 100) == (shared == 100)


def test_only_trials_that_ended_well_are_extended(ledger, places):
    study = submit(ledger)
    ended(ledger, study, Outcome(kind=FAILED, reason="It broke."))
    arguments = {"steps": 10, "prefixes": PREFIXES}
    with pytest.raises(
        UsageError, match=r"is failed, expected a completed .* `tuner retry small 0"
    ):
        extend.extend(ledger, places, study, [0], **arguments)
    with pytest.raises(NotFoundError, match="no trial 9"):
        extend.extend(ledger, places, study, [9], **arguments)
    assert [one.name for one in ledger.studies()] == ["small"]


@pytest.mark.slow
def test_a_longer_trial_repeats_the_shorter_one_and_goes_on(ledger, places, monkeypatch):
    monkeypatch.setattr(extend.run, "train_study", lambda *a, **_: train(a[0], a[1], a[2]))
    study = train(ledger, places, submitted(ledger))
    numbers = [
        trial.number for trial in ledger.trials(study.id) if trial.params["lr"] in (0.1, 0.3)
    ]
    done = extend.extend(ledger, places, study, numbers, steps=8, prefixes=PREFIXES)
    assert [one.continues for one in done.trials] == [True, True]
    for one in done.trials:
        short, long = ledger.curve(one.parent.id), ledger.curve(one.trial.id)
        assert (short.next_step, long.next_step) == (12, 20)
        for name, values in short.columns.items():
            np.testing.assert_array_equal(values, long.columns[name][:12])
        assert one.trial.value < one.parent.value
        assert "it goes on from step 12; completed" in one.sentence
    assert rerun.rerun(ledger, done.study, 0, PREFIXES).equal
