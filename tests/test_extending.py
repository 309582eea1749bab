"""Training trials further: which go on, which start anew, and what is recorded."""

from __future__ import annotations

import signal

import numpy as np
import processes
import pytest
from helpers import claim, completed, draw, drawn, rows, submit
from training_here import PREFIXES, submitted, train

from tuner.core.errors import NotFoundError, UsageError
from tuner.core.outcome import FAILED, Outcome
from tuner.ledger.records import PARENT
from tuner.operations import extend, rerun
from tuner.search import Search
from tuner.training import longer
from tuner.training.trainer import seed_of


def ended(ledger, study, outcome=None, **params):
    one = claim(ledger, study)
    draw(ledger, one, **params)
    ledger.finish(one.lease, outcome or completed(1.0), chunk=rows(0, 10))
    return ledger.trial(study.id, one.trial.number)


def test_longer_trials_have_the_parameters_and_seeds_of_the_chosen_ones(ledger):
    study = submit(ledger)
    chosen = [ended(ledger, study, lr=lr) for lr in (0.1, 0.2, 0.3)][1:]
    extension, added = extend.submit(ledger, study, chosen, 50)
    assert (extension.name, extension.spec.training.steps) == ("small to 150 steps", 150)
    assert added == {1: 0, 2: 1}
    assert (extension.limit, extension.spec.budget.trials) == (2, 2)
    search = Search(extension, ledger)
    for parent in chosen:
        one, made = drawn(ledger, extension, search)
        assert made.params["lr"] == parent.params["lr"]
        assert one.trial.attrs["tuner:seed"] == seed_of(study.spec, parent.number)
        assert one.trial.attrs[PARENT] == {"study": "small", "trial": parent.number}
    assert ledger.claim(extension.id, "worker", {}) is None


def test_the_same_command_adds_nothing_and_another_trial_joins(ledger):
    study = submit(ledger)
    one, two = (ended(ledger, study, lr=lr) for lr in (0.1, 0.2))
    first, _ = extend.submit(ledger, study, [one], 50)
    again, _ = extend.submit(ledger, study, [one], 50)
    assert (again.id, again.reserved) == (first.id, 1)
    more, added = extend.submit(ledger, study, [one, two], 50)
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
def test_schedules_that_go_on_and_that_start_anew(params, shared):
    assert longer.shared_steps(params, 100, 150) == shared


def test_only_trials_that_ended_well_are_extended(ledger, places):
    study = submit(ledger)
    ended(ledger, study, Outcome(kind=FAILED, reason="It broke."))
    arguments = {"more": {"steps": 10}, "prefixes": PREFIXES}
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
    done = extend.extend(ledger, places, study, numbers, more={"steps": 8}, prefixes=PREFIXES)
    assert [one.continues for one in done.trials] == [True, True]
    for one in done.trials:
        short, long = ledger.curve(one.parent.id), ledger.curve(one.trial.id)
        assert (short.next_step, long.next_step) == (12, 20)
        for name, values in short.columns.items():
            np.testing.assert_array_equal(values, long.columns[name][:12])
        assert one.trial.value < one.parent.value
        assert "no checkpoint to go on from, so it repeats 12 steps; completed" in one.sentence
    assert rerun.rerun(ledger, done.study, 0, PREFIXES).equal


SCHEDULES = [
    "constant",
    {"name": "plateau", "factor": 0.5, "patience": 1, "warmup": 0.0},
    {"name": "wsd", "decay": 0.25, "warmup": 0.0},
    {"name": "cosine", "warmup": 0.0},
]


def keeping(ledger, trainer, **tables):
    """Submit a study with dropout, momentum and a pruner, of which checkpoints are kept."""
    workload = {"factory": None, "train": "tests.workloads:noisy_loop"}
    if trainer != "own":
        workload = {"factory": "tests.workloads:noisy"}
    return submitted(
        ledger,
        workload=workload,
        training={
            "steps": 24,
            "batch_size": 8,
            "trainer": "auto" if trainer == "own" else trainer,
            "slots": 4,
            "keep_checkpoint": True,
        },
        space={"lr": [0.01, 0.1], "schedule": SCHEDULES, "optimizer": ["adamw"]},
        search={"pruner": {"name": "asha", "min_steps": 6, "reduction_factor": 2}},
        budget={"trials": 8},
        **tables,
    )


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("trainer", ["reference", "cohort", "own"])
def test_a_kept_checkpoint_is_gone_on_from_bit_by_bit(ledger, places, monkeypatch, trainer):
    monkeypatch.setattr(extend.run, "train_study", lambda *a, **_: train(a[0], a[1], a[2]))
    study = train(ledger, places, keeping(ledger, trainer))
    trials = [one for one in ledger.trials(study.id) if one.state in ("completed", "pruned")]
    assert {one.state for one in trials} == {"completed", "pruned"}
    kept = {int(file.parent.name) for file in places.checkpoints.folder.glob("1/*/*.pt")}
    assert kept == {one.number for one in trials if one.params["schedule"] != "cosine"}
    done = extend.extend(
        ledger,
        places,
        study,
        [one.number for one in trials],
        more={"steps": 12},
        prefixes=PREFIXES,
    )
    assert done.study.settled["trainer"] == trainer
    for one in done.trials:
        ends = {"constant": 24, "plateau": 24, "wsd": 19, "cosine": 0}
        # a function that is pruned does not come to save at the rung
        steps = one.parent.steps - (trainer == "own" and one.parent.state == "pruned")
        assert one.continued == min(ends[one.parent.params["schedule"]], steps)
        assert (one.trial.state, one.trial.steps) == ("completed", 36)
        assert rerun.rerun(ledger, done.study, one.trial.number, PREFIXES).equal, one.sentence
        first = [n.first_step for n in ledger.attempts(done.study.id) if n.trial_id == one.trial.id]
        assert first == [one.continued]
    further = extend.extend(ledger, places, done.study, [0], more={"steps": 4}, prefixes=PREFIXES)
    assert further.trials[0].continued == 36
    assert rerun.rerun(ledger, further.study, 0, PREFIXES).equal


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["reference", "cohort"])
def test_trials_with_other_batch_sizes_are_extended_by_epochs(ledger, places, monkeypatch, trainer):
    monkeypatch.setattr(extend.run, "train_study", lambda *a, **_: train(a[0], a[1], a[2]))
    study = submitted(
        ledger,
        workload={"factory": "tests.workloads:noisy"},  # of 24 rows
        training={
            "steps": None,
            "epochs": 8,
            "evaluate_every": 2,
            "batch_size": None,
            "trainer": trainer,
            "keep_checkpoint": True,
        },
        space={"lr": 0.01, "schedule": SCHEDULES[::2], "batch_size": [8, 12]},
    )
    study = train(ledger, places, study)
    with pytest.raises(UsageError, match="counts in epochs: expected the number of epochs beyond"):
        extend.extend(ledger, places, study, [0], more={"steps": 100}, prefixes=PREFIXES)
    done = extend.extend(
        ledger, places, study, range(4), more={"steps": None, "epochs": 4}, prefixes=PREFIXES
    )
    assert (done.study.name, done.as_json()["epochs"]) == ("line to 12 epochs", 12)
    found = {
        (one.trial.params["schedule"], one.trial.params["batch_size"]): (
            one.continued,
            one.trial.steps,
        )
        for one in done.trials
    }
    assert found == {
        ("constant", 8): (24, 36),
        ("constant", 12): (16, 24),
        ("wsd", 8): (19, 36),
        ("wsd", 12): (13, 24),
    }
    for one in done.trials:
        assert rerun.rerun(ledger, done.study, one.trial.number, PREFIXES).equal, one.sentence


KEPT = {"trials": "2", "checkpoint_seconds": "0.001\nkeep_checkpoint = true"}


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("place", ["extend.begun", "checkpoint.renamed", "outcome.before_commit"])
def test_an_extension_that_is_killed_resumes_and_its_records_are_whole(tmp_path, place):
    study = processes.STUDY.replace('["constant", "cosine"]', '"constant"')
    folder = processes.prepare(tmp_path, study.replace("10.0", "0.1"), pruner='"none"', **KEPT)
    processes.train_here(folder)
    command = ("extend", "small", "1", "--steps", "20", "--json")
    armed = {"TUNER_FAILPOINTS": f"{place}=kill@1"}
    killed = processes.tuner(folder, *command, env=armed)
    assert (killed.code, killed.out) == (-signal.SIGKILL, "")
    done = processes.tuner(folder, *command)
    assert done.code == 0, done.err
    assert done.json["trials"][0]["continued"] == 40
    assert "goes on from the checkpoint of step 40" in done.json["trials"][0]["sentence"]
    for name in ("small", "small to 60 steps"):
        processes.assert_whole(folder, name=name)
    reader = processes.reader(folder)
    assert rerun.rerun(reader, reader.study("small to 60 steps"), 0, PREFIXES).equal
    reader.engine.dispose()
    left = {str(file.relative_to(folder / ".tuner")) for file in folder.rglob("*.pt")}
    assert {one.rpartition("/")[0] for one in left} == {
        "checkpoints/1/0",
        "checkpoints/1/1",
        "checkpoints/2/0",
    }
    assert len(left) == 3, left
