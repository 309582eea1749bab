"""What studies, projects and people have spent: time of workers, steps, and what pruning saved."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from click.testing import CliRunner
from helpers import WORKLOAD, claim, completed, draw, pruned, rows, spec, submit
from sqlalchemy import update
from training_here import submitted, train

from tuner.analysis import ranking
from tuner.cli.app import cli
from tuner.core.environment import Person
from tuner.ledger.events import Act
from tuner.ledger.spending import Spend, attempt_seconds, spending
from tuner.ledger.tables import attempts
from tuner.operations import export, spend
from tuner.operations import studies as listing
from tuner.report import judging, sentences
from tuner.report.findings import gather

LOST = (
    "0.0 s of workers, 0 steps of 0 trials and 9 of branches; pruning saved -2 steps, net of "
    "branches"
)


def spent(ledger, study):
    return spending(ledger, [study])[study.id]


def timed(ledger, held, began, ended):
    """Let an attempt have begun and ended at these times."""
    with ledger.engine.execution_options(writes=True).begin() as tx:
        here = attempts.c.id == held.lease.row_id
        tx.execute(update(attempts).where(here).values(started_at=began, ended_at=ended))


def end(ledger, study, worker, span, steps=100, outcome=None):
    held = claim(ledger, study, worker)
    draw(ledger, held)
    ledger.finish(held.lease, outcome or completed(1.0), chunk=rows(0, steps))
    timed(ledger, held, *span)


def test_the_time_is_that_of_workers_and_steps_are_of_trials(either):
    study = submit(either, workload={"factory": None, "train": "a:b", "processes": 2},
                   training={"device": "cuda"})  # fmt: skip
    end(either, study, "w1", (1000.0, 1060.0))
    end(either, study, "w1", (1030.0, 1090.0))  # beside the first one, in its cohort
    end(either, study, "w1", (2000.0, 2010.0))
    end(either, study, "w2", (1000.0, 1100.0), steps=30, outcome=pruned())
    assert spent(either, study) == Spend(
        seconds=200.0, gpu_seconds=400.0, trials=4, steps=330, pruned_steps=70
    )
    assert attempt_seconds(either, study) == {0: 60.0, 1: 60.0, 2: 10.0, 3: 100.0}
    table = export.trials(either, study)
    assert table["attempt_seconds"].tolist() == [60.0, 60.0, 10.0, 100.0]


@pytest.mark.longer
def test_branches_are_what_judging_by_them_cost(ledger, places):
    """As many steps as the curves of the branches have."""
    study = submitted(
        ledger,
        space={"lr": [0.01, 0.05, 0.1, 0.3]},
        search={"pruner": "one_rung"},
        training={"steps": 24},
    )
    study = train(ledger, places, study)
    found, spends = gather(ledger, study), spent(ledger, study)
    assert spends.branch_steps == judging.branch_steps(found) > 0
    stopped = [one for one in found.trials if one.state == "pruned"]
    assert spends.pruned_steps == sum(24 - one.steps for one in stopped)
    assert spends.saved_steps == spends.pruned_steps - spends.branch_steps
    assert spends.steps == sum(one.steps for one in found.trials)
    assert spends.seconds > 0
    assert f"{spends.steps:,} steps of 4 trials and" in sentences.origin(found)


@pytest.mark.longer
def test_studies_are_summed_by_project_and_by_person(ledger, monkeypatch, tmp_path):
    for name, user in (("vision/a", "ann"), ("vision/b", "bob"), ("c", "ann"), ("d", None)):
        made = spec(study={"name": name})
        act = None if user is None else Act(by=Person(os_user=user, host="here"))
        study, _ = ledger.submit(made, limit=10, workload=WORKLOAD, act=act)
        end(ledger, study, "w", (1000.0, 1010.0))
    found = spend.of_listed(ledger, listing.studies(ledger))
    steps = {
        kind: {name: one["steps"] for name, one in found[kind].items()}
        for kind in ("studies", "projects", "people")
    }
    assert steps == {
        "studies": {"vision/a": 100, "vision/b": 100, "c": 100, "d": 100},
        "projects": {"default": 200, "vision": 200},
        "people": {"ann": 200, "bob": 100, "unknown": 100},
    }
    assert (found["total"]["seconds"], found["total"]["trials"]) == (40.0, 4)
    monkeypatch.chdir(tmp_path)
    for name in ("TUNER_DATABASE_URL", "MLFLOW_TRACKING_URI", "TUNER_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    run = CliRunner()
    lines = run.invoke(cli, ["studies", "--spend", "--project", "vision"]).stdout.splitlines()
    assert lines[0] == "By studies:"
    assert lines[1] == "  vision/a: 10.0 s of workers, 100 steps of 1 trial; best val_loss 1"
    assert lines[-1] == "Together: 20.0 s of workers, 200 steps of 2 trials."
    told = json.loads(run.invoke(cli, ["studies", "--spend", "--json"]).stdout)["spend"]
    assert told == found
    assert "Spent: 10.0 s of workers, 100 steps of 1 trial." in run.invoke(
        cli, ["status", "c"]
    ).stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seconds": 5400.0}, "1.5 h of workers, 0 steps of 0 trials"),
        (
            {"seconds": 90.0, "gpu_seconds": 180.0, "trials": 2, "steps": 1500},
            "1.5 min of workers, 3.0 min of GPUs, 1,500 steps of 2 trials",
        ),
        (
            {"pruned_steps": 7, "branch_steps": 9},
            LOST,
        ),
    ],
)
def test_a_spend_in_words(fields, words):
    assert ranking.spend_in_words(Spend(**fields).as_json()) == words
    twice = Spend(**fields) + Spend(**fields)
    assert asdict(twice) == {key: 2 * value for key, value in asdict(Spend(**fields)).items()}
