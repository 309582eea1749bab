"""Scans of horizons: decays that branch from one stem, and what each goes on from."""

from __future__ import annotations

import signal

import processes
import pytest
from helpers import claim, complete, completed, draw, rows, submit
from training_here import PREFIXES, submitted, train

from tuner.core.errors import UsageError
from tuner.operations import branch, rerun
from tuner.operations.run import Ended
from tuner.training.longer import step_to_keep, warmup_steps


def stem(ledger, trainer, *, keep):
    """Submit a trial at a constant rate after a warm-up, with dropout and momentum."""
    own = {"factory": None, "train": "tests.workloads:noisy_loop"}
    return submitted(
        ledger,
        workload=own if trainer == "own" else {"factory": "tests.workloads:noisy"},
        training={
            "steps": 20,
            "batch_size": 8,
            "evaluate_every": 5,
            "trainer": "auto" if trainer == "own" else trainer,
            "slots": 2,
            "keep_checkpoint": keep,
        },
        space={
            "lr": 0.01,
            "schedule": {"name": "constant", "warmup": 0.1},
            "optimizer": ["adamw"],
        },
        budget={"trials": 1},
    )


def scan(ledger, places, study, monkeypatch, **arguments):
    def train_here(ledger, places, study, *_, **__):
        train(ledger, places, study)
        return Ended(interrupted=False, published=True)

    monkeypatch.setattr(branch.run, "train_study", train_here)
    return branch.branch(ledger, places, study, 0, prefixes=PREFIXES, **arguments)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "keep", "begun"),
    [
        ("reference", False, [0, 9, 17, 25]),
        ("reference", True, [0, 9, 20, 25]),  # the stem itself has a checkpoint of step 20
        ("cohort", False, [0, 9, 17, 25]),
        ("own", False, [0, 9, 17, 25]),
    ],
)
def test_a_scan_of_horizons_trains_the_stem_once(ledger, places, monkeypatch, trainer, keep, begun):
    """Each branch is bit by bit the trial that is trained alone, under the same warm-up."""
    study = train(ledger, places, stem(ledger, trainer, keep=keep))
    done = scan(ledger, places, study, monkeypatch, at=[40, 10, 30, 20, 10])
    assert [one.length for one in done.branches] == [10, 20, 30, 40]
    assert [one.continued for one in done.branches] == begun
    assert (done.trained_steps, done.whole_steps) == (100 - sum(begun), 100)
    assert done.trained_steps <= 0.55 * done.whole_steps
    studies = [study, *(one.study for one in done.branches)]
    of_stem = [one.parent["study"] == study.title for one in done.branches]
    assert of_stem == [True, False, keep, False]
    assert all(one.parent["study"] in [each.title for each in studies] for one in done.branches)
    for one in done.branches:
        assert (one.trial.state, one.trial.steps) == ("completed", one.length)
        assert one.trial.params["schedule"] == "wsd"
        assert warmup_steps(one.trial.params, one.length) == 2
        assert rerun.rerun(ledger, one.study, 0, PREFIXES).equal, one.sentence
    again = scan(ledger, places, study, monkeypatch, at=[20, 30])
    assert [one.trial.id for one in again.branches] == [one.trial.id for one in done.branches[1:3]]


def test_a_branch_has_the_shape_that_is_asked_for_or_the_trials_own(ledger):
    constant, own = {"name": "constant", "warmup": 0.1}, {"name": "wsd", "shape": "cosine"}
    study = submit(ledger, space={"lr": 0.1, "schedule": [constant, own], "optimizer": "sgd"})
    found = []
    for schedule in (constant, own):
        one = claim(ledger, study)
        draw(ledger, one, **complete(0.1, schedule, "sgd"))
        ledger.finish(one.lease, completed(1.0), chunk=rows(0, 10))
        trial = ledger.trial(study.id, one.trial.number)
        found.append(branch._plan(study, trial, 400, None, None).params)
        asked = branch._plan(study, trial, 400, 0.5, "linear").params
        assert (asked["wsd.decay"], asked["wsd.shape"]) == (0.5, "linear")
    assert [one["wsd.shape"] for one in found] == ["1-sqrt", "cosine"]
    # a tenth of the 100 steps of the study is a fortieth of 400
    assert [one["wsd.warmup"] for one in found] == [0.025, 0.0]
    with pytest.raises(UsageError, match="more than the 10 steps of warm-up, got 11 steps"):
        branch._plan(study, ledger.trial(study.id, 0), 11, None, None)


def test_a_trial_without_a_constant_rate_is_no_stem(ledger, places):
    study = submit(ledger, space={"lr": 0.1, "schedule": "cosine", "optimizer": "sgd"})
    one = claim(ledger, study)
    draw(ledger, one, schedule="cosine")
    ledger.finish(one.lease, completed(1.0), chunk=rows(0, 10))
    with pytest.raises(UsageError, match=r"schedule cosine, expected .*: constant or wsd"):
        branch.branch(ledger, places, study, 0, at=[200], prefixes=PREFIXES)
    assert [one.name for one in ledger.studies()] == ["small"]


def test_a_stem_with_a_warmup_keeps_the_checkpoint_that_its_branches_need(ledger):
    spec = stem(ledger, "reference", keep=True).spec
    params = {"lr": 0.1, "schedule": "wsd", "wsd.decay": 0.2, "wsd.shape": "linear",
              "wsd.final": 0.0, "wsd.warmup": 0.1}  # fmt: skip
    assert step_to_keep(spec, params, 100) == 100 - 18 + 1
    constant = {"lr": 0.1, "schedule": "constant", "constant.warmup": 0.1}
    assert step_to_keep(spec, constant, 100) == 100


@pytest.mark.thorough
@pytest.mark.slow
def test_a_scan_that_is_killed_resumes_and_its_records_are_whole(tmp_path):
    study = processes.STUDY.replace('["constant", "cosine"]', '"constant"')
    folder = processes.prepare(tmp_path, study.replace("10.0", "0.1"), pruner='"none"', trials="1")
    processes.train_here(folder)
    command = ("branch", "small", "0", "--at", "60", "20", "40", "--json")
    killed = processes.tuner(folder, *command, env={"TUNER_FAILPOINTS": "extend.begun=kill@1"})
    assert (killed.code, killed.out) == (-signal.SIGKILL, "")
    done = processes.tuner(folder, *command)
    assert done.code == 0, done.err
    assert [one["steps"] for one in done.json["branches"]] == [20, 40, 60]
    assert [one["continued"] for one in done.json["branches"]] == [0, 17, 33]
    assert done.json["trained_steps"] == 120 - 50
    for name in ("small", *(f"small trial 0 to {steps} steps" for steps in (20, 40, 60))):
        processes.assert_whole(folder, name=name)
