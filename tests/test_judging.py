"""Trials are judged by branches: recorded once, whoever is interrupted, and shown everywhere."""

from __future__ import annotations

import copy
import json
import math
import re
import signal
import threading
from typing import Any

import numpy as np
import pytest
import torch
from processes import STUDY, left, prepare, reader, tuner
from training_here import PREFIXES, submitted, train

from tuner.config import StudySpec
from tuner.config.reading import parse
from tuner.core.errors import UsageError
from tuner.core.outcome import PRUNED
from tuner.ledger import Ledger, StudyRecord
from tuner.operations import submit
from tuner.report.findings import gather
from tuner.report.sentences import savings
from tuner.tracking.mlflow.run_content import points_of
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.function_trainer import FunctionTrainer
from tuner.training.reference import ReferenceTrainer
from tuner.worker import work

SPACE = {
    "lr": {"low": 1e-3, "high": 1.0},
    "schedule": ["constant", "cosine"],
    "optimizer": ["sgd", "adamw"],
}
RUNG, BRANCH_STEPS = 12, 2  # of 36 steps


def put(ledger: Ledger, name: str, search: Any = None, **training: Any) -> StudyRecord:
    return submitted(
        ledger,
        study={"name": name, "seed": 4},
        training={"steps": 36, "evaluate_every": 4, **training},
        space=SPACE,
        search={"sampler": "random", "pruner": "one_rung", **(search or {})},
        budget={"trials": 16},
    )


def content(ledger: Ledger, study: StudyRecord) -> list[Any]:
    """Return everything that must not depend on interruptions."""
    found = []
    for trial in ledger.trials(study.id):
        curve = ledger.curve(trial.id)
        branches = [
            (one.step, np.nan_to_num(one.losses).tolist(), one.rates.tolist(), dict(one.metrics))
            for one in curve.branches
        ]
        columns = {name: np.nan_to_num(row).tolist() for name, row in curve.columns.items()}
        found.append((trial.number, trial.state, trial.value, columns, branches))
    return found


@pytest.mark.longer
@pytest.mark.parametrize("training", [{"trainer": "reference"}, {"trainer": "cohort", "slots": 4}])
def test_every_trial_at_the_rung_has_one_branch(ledger, places, training):
    study = train(ledger, places, put(ledger, "judged", **training))
    assert study.rungs == (RUNG,)
    trials = ledger.trials(study.id)
    assert {trial.state for trial in trials} >= {"completed", PRUNED}
    for trial in trials:
        if trial.state == "diverged":
            continue
        (branch,) = ledger.curve(trial.id).branches
        assert (branch.step, len(branch.losses)) == (RUNG, BRANCH_STEPS)
        (report,) = trial.reports
        assert report.value != branch.metrics["val_loss"], "a branch's value is no result"
        assert f"{branch.metrics['val_loss']:.4g} after a branch of 2 steps" in report.reason
        assert trial.attrs["completed_rung_0"] == branch.metrics["val_loss"]
        shown = {one.key: one for one in points_of(ledger.curve(trial.id), trial)}
        assert shown["branch/val_loss"].steps.tolist() == [RUNG]
        assert shown["branch/val_loss"].values.tolist() == [branch.metrics["val_loss"]]


@pytest.mark.longer
def test_the_report_says_what_early_values_were_worth(ledger, places):
    """Its own rank correlation, what branches took, and what was likely lost."""
    study = train(ledger, places, put(ledger, "told", trainer="cohort", slots=16))
    counts, said = ledger.counts(study.id), savings(gather(ledger, study))
    judged = counts["completed"] + counts[PRUNED]
    assert f"Branches, by which trials were judged, took {BRANCH_STEPS * judged} steps" in said
    assert f"Of the {counts['completed']} trials that ran to the end" in said
    assert "the rank correlation (Kendall) of the value at step 12 with the final one is" in said
    assert f"one of the {counts[PRUNED]} pruned trials would have been the best" in said
    assert "whole trials, whose best val_loss is expected to be" in said


@pytest.mark.longer
@pytest.mark.parametrize(
    ("judge", "economy", "share"),
    [
        ("fast_forward", "safe", 1 / 2),
        ("fast_forward", "fast", 1 / 6),
        ("raw", "safe", 3 / 4),
        ("raw", "balanced", 1 / 2),
    ],
)
def test_a_share_of_the_trials_goes_on(ledger, places, judge, economy, share):
    """Of all trials in one cohort, those with the better values; more where these are raw."""
    search = {"judge": judge, "pruner": {"name": "one_rung", "economy": economy}}
    study = train(ledger, places, put(ledger, "share", search, trainer="cohort", slots=16))
    trials = [one for one in ledger.trials(study.id) if one.state != "diverged"]
    values = [trial.attrs["completed_rung_0"] for trial in trials]
    first_stopped = sorted(values)[int(len(values) * share)]
    for trial, value in zip(trials, values, strict=True):
        assert (trial.state == PRUNED) == (value >= first_stopped)


@pytest.mark.longer
def test_raw_values_wait_for_half_of_the_horizon(ledger, places):
    study = train(ledger, places, put(ledger, "raw", {"judge": "raw"}))
    assert study.rungs == (18,)
    assert not any(ledger.curve(trial.id).branches for trial in ledger.trials(study.id))


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("trainer", [CohortTrainer, ReferenceTrainer, FunctionTrainer])
def test_branches_that_are_interrupted_are_made_again(ledger, places, monkeypatch, trainer):
    def made(name: str) -> StudyRecord:
        if trainer is FunctionTrainer:
            return own(ledger, name)
        if trainer is CohortTrainer:
            return put(ledger, name, trainer="cohort", slots=4)
        return put(ledger, name, trainer="reference")

    calm = train(ledger, places, made("calm"))
    study = made("disturbed")
    branch, stop, calls = trainer.branch, threading.Event(), []

    def interrupted(self, numbers, plan, goes_on):
        calls.append(numbers)
        if len(calls) % 3 == 1:
            stop.set()
        return branch(self, numbers, plan, goes_on)

    monkeypatch.setattr(trainer, "branch", interrupted)
    trials = study.spec.budget.trials
    while ledger.counts(study.id)["waiting"] or ledger.study("disturbed").reserved < trials:
        stop.clear()
        work(ledger, places, names=["disturbed"], prefixes=PREFIXES, stop=stop,
             until_idle=True)  # fmt: skip
    assert any(one.ending == "interrupted" for one in ledger.attempts(study.id))
    mine, theirs = content(ledger, study), content(ledger, calm)
    if trainer is not CohortTrainer:  # one after the other, so decisions are the same too
        assert mine == theirs
    assert all(len(branches) <= 1 for *_, branches in mine)


@pytest.mark.longer
def test_no_memory_for_branches_stops_no_trial(ledger, places, monkeypatch, caplog):
    branch, most = CohortTrainer.branch, []

    def short(self, numbers, plan, goes_on):
        if len(numbers) > 1 or numbers[0] == 2:
            raise MemoryError
        most.append(numbers)
        return branch(self, numbers, plan, goes_on)

    monkeypatch.setattr(CohortTrainer, "branch", short)
    study = train(ledger, places, put(ledger, "short", trainer="cohort", slots=4))
    assert len(most) > 1
    two = ledger.trial(study.id, 2)
    assert "no memory for a branch" in two.reports[0].reason
    assert two.state == "completed"
    assert not ledger.curve(two.id).branches


FORWARD = 'judge = { name = "fast_forward", fraction = 0.3 }'


@pytest.mark.parametrize(
    ("search", "workload", "expected"),
    [
        (
            f'{FORWARD}\npruner = "median"',
            'factory = "studies.digits:mlp"',
            'as the pruner is "median"',
        ),
        (FORWARD, 'command = ["python", "own.py"]', "the state of a command cannot be copied"),
        (
            FORWARD,
            'train = "tests.own:none"\nworkload.isolation = "process"',
            "the state of a train function in a process of its own cannot be copied",
        ),
        (
            'judge = "average"',
            'train = "tests.own:none"',
            "as a train function trains its branches itself",
        ),
    ],
)
def test_where_there_can_be_no_branches(search, workload, expected):
    text = f"""
    study.name = "s"
    workload.{workload}
    training.steps = 30
    budget.trials = 5
    [search]
    {search}
    """
    with pytest.raises(UsageError, match=expected):
        parse(text, "s.toml")


@pytest.mark.longer
def test_leaders_and_declared_defaults_go_on(ledger, places):
    """The first of `[search] first` is the worst of all, and completed nevertheless."""
    bad = {"lr": 1e-3, "schedule": "constant", "optimizer": "sgd"}
    bad |= {"constant.warmup": 0.0, "sgd.momentum": 0.0, "sgd.nesterov": False}
    bad |= {"sgd.weight_decay": 0.0}
    first = put(ledger, "declared", {"first": [bad]}, trainer="cohort", slots=16)
    study = train(ledger, places, first)
    values = [one.attrs["completed_rung_0"] for one in ledger.trials(study.id) if one.reports]
    mine = ledger.trial(study.id, 0)
    assert mine.attrs["completed_rung_0"] > np.median(values)
    assert mine.state == "completed"


# --- train functions


def branching(trial, wrong=""):
    """Fit a line by a loop of its own that lets a copy of it run ahead."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.lr)
    schedule = trial.schedule(optimizer)
    inputs = torch.linspace(-1.0, 1.0, 12).reshape(12, 1)

    def loss_of(line):
        noisy = 3.0 * inputs + 0.1 * torch.randn_like(inputs)
        return torch.nn.functional.mse_loss(line(inputs), noisy)

    @trial.branch
    def run_ahead(rates):
        copied, own = copy.deepcopy((model, optimizer))
        for rate in rates:
            own.param_groups[0]["lr"] = rate
            own.zero_grad()
            loss_of(copied).backward()
            own.step()
        if wrong == "reports":
            trial.report(trial.steps - 1, train_loss=0.0)
        if wrong == "raises":
            raise RuntimeError("the copy failed")
        return {"accuracy": 1.0} if wrong == "metrics" else {"val_loss": loss_of(copied)}

    if wrong == "absent":
        trial.branch(None)
    for step in range(trial.steps):
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        trial.report(step, train_loss=loss)
        optimizer.step()
        schedule.step()
        if trial.evaluates(step + 1):
            with torch.no_grad():  # as loops do; the branch needs gradients all the same
                trial.report(step + 1, val_loss=loss_of(model))


def own(ledger: Ledger, name: str, **tables: Any) -> StudyRecord:
    search = {"sampler": "random", "pruner": "one_rung", "judge": "fast_forward"}
    content = {
        "study": {"name": name, "seed": 4},
        "workload": {"train": "tests.test_judging:branching", **tables.pop("workload", {})},
        "training": {"steps": 36, "evaluate_every": 4},
        "space": {"lr": {"low": 1e-3, "high": 1.0}, "schedule": "cosine", "optimizer": "sgd"},
        "search": search | tables.pop("search", {}),
        "budget": {"trials": 12, "stop_after_failures": 0},
    }
    spec = StudySpec.model_validate_json(json.dumps(content))
    return submit.submit(ledger, spec, submit.prepare(spec, PREFIXES).description)[0]


@pytest.mark.longer
def test_a_train_function_is_judged_by_the_branches_that_it_trains(ledger, places):
    study = train(ledger, places, own(ledger, "own"))
    assert study.rungs == (RUNG,)
    trials = ledger.trials(study.id)
    assert {trial.state for trial in trials} == {"completed", PRUNED}
    curves = {trial.number: ledger.curve(trial.id) for trial in trials}
    for trial in trials:
        (branch,), (report,) = curves[trial.number].branches, trial.reports
        assert branch.step == RUNG
        rest = [
            float(trial.params["lr"]) * (1 + math.cos(math.pi * at / 36)) / 2 for at in (18, 30)
        ]
        assert branch.rates.tolist() == pytest.approx(rest)
        assert trial.attrs["completed_rung_0"] == branch.metrics["val_loss"] != report.value
    raw = train(ledger, places, own(ledger, "raw", search={"judge": "raw", "pruner": "none"}))
    for trial in ledger.trials(raw.id):  # its own curve is the same with and without
        losses = curves[trial.number].columns["train_loss"]
        assert (
            ledger.curve(trial.id).columns["train_loss"][: len(losses)].tolist() == losses.tolist()
        )


@pytest.mark.longer
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("raises", "RuntimeError: the copy failed"),
        ("absent", "expected a function registered by trial.branch, as [search] judge is"),
        ("metrics", "its branch to return metrics, val_loss among them, got accuracy"),
        ("reports", "expected a branch to return its metrics, got a call of report"),
    ],
)
def test_a_branch_that_goes_wrong_fails_its_trial(ledger, places, wrong, said):
    study = train(ledger, places, own(ledger, wrong, workload={"arguments": {"wrong": wrong}}))
    for trial in ledger.trials(study.id):
        assert (trial.state, trial.steps) == ("failed", RUNG)
        assert said in trial.reason


# --- interruptions

JUDGED = re.sub(r"pruner = .*", 'pruner = "one_rung"', STUDY)


@pytest.mark.thorough
@pytest.mark.slow
def test_killed_between_branch_and_decision_it_is_made_again(tmp_path):
    """Never recorded twice: the ledger, Optuna and MLflow are as if nothing had happened."""
    calm, disturbed = (prepare(tmp_path / name, JUDGED) for name in ("calm", "disturbed"))
    assert tuner(calm, "run", "study.toml", "--no-report").code == 0
    place = "branch.trained"
    killed = {"TUNER_FAILPOINTS": f"{place}=kill@2"}
    done = tuner(disturbed, "run", "study.toml", "--no-report", env=killed)
    assert done.code == -signal.SIGKILL
    assert tuner(disturbed, "run", "study.toml", "--no-report").code == 0
    whole = left(calm)
    assert any("branch/val_loss" in str(run) for run in whole.mlflow.values())
    assert left(disturbed) == whole
    for folder in (calm, disturbed):
        found = tuner(folder, "doctor", "--json")
        assert found.code == 0, found.out + found.err
    ledger = reader(disturbed)
    for trial in ledger.trials(ledger.study("small").id):
        branches = ledger.curve(trial.id).branches
        assert [one.step for one in branches] == [report.step for report in trial.reports]
