"""Several objectives: the result is a front, and nothing chooses one of its trials."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from helpers import claim, completed, diverged, draw, drawn, rows, spec, submit
from hypothesis import given
from hypothesis import strategies as st
from optuna.study import StudyDirection
from training_here import PREFIXES, publish, submitted, train

from tuner.analysis import deciding, front
from tuner.cli.app import cli
from tuner.config import StudySpec
from tuner.config.reading import parse
from tuner.core.errors import StudyFileError, UnreadableError, UsageError
from tuner.ledger.at_end import judged
from tuner.ledger.database import tracking_client
from tuner.ledger.publications import Publications
from tuner.operations import best, confirm, export, status
from tuner.operations import submit as submission
from tuner.report import page
from tuner.report.findings import gather
from tuner.retraining import checking
from tuner.search import Search
from tuner.search.mirror import Mirror, frozen
from tuner.tracking.optuna.storage_writer import template

TWO = [{"metric": "val_loss"}, {"metric": "accuracy", "direction": "maximize"}]
NAMES = ("val_loss", "accuracy")


def several(ledger, **tables):
    tables = {"search": {"sampler": "random", "pruner": "none"}, **tables}
    return submit(ledger, study={"objectives": TWO}, **tables)


def ended(ledger, study, *values, **excesses):
    held = claim(ledger, study)
    draw(ledger, held, lr=0.1 + held.trial.number / 100)
    outcome = replace(completed(values[0]), objectives=values, excesses=excesses or None)
    ledger.finish(held.lease, outcome)
    return held.trial.number


# --- the study file


def test_metric_and_direction_are_those_of_the_first_objective():
    made = spec(study={"objectives": TWO[::-1]})
    assert (made.study.metric, made.study.direction) == ("accuracy", "maximize")
    assert StudySpec.model_validate_json(made.model_dump_json()) == made
    assert "objectives" not in spec().model_dump()["study"]
    assert made.digest() != spec(study={"metric": "accuracy", "direction": "maximize"}).digest()
    assert spec(study={"objectives": TWO}, budget={"trials": 100}).deciding_trials == 0


FILE = """
[study]
name = "s"
objectives = [{ metric = "val_loss" }, { metric = "accuracy", direction = "maximize" }]
[workload]
factory = "studies.digits:mlp"
[training]
steps = 100
[space]
lr = { low = 0.001, high = 1.0 }
schedule = "constant"
optimizer = "sgd"
[search]
sampler = "nsga2"
pruner = "none"
[budget]
trials = 10
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('study.metric="other"', "[study] metric: expected nothing, as objectives have their own"),
        ("study.objectives=[{metric='a'}]", "[study] objectives: expected two or more different"),
        ("study.objectives=[{metric='a'}, {metric='a'}]", "two or more different metrics"),
        ("study.objectives=[{metric='a'}, {metric='b', direction='up'}]", "[study] objectives"),
        ('study.value="best"', '[study] value: expected "last", as there are several objectives'),
        ('search.pruner="one_rung"', '[search] pruner: expected "none", as [study] objectives'),
        ('search.sampler="gp"', "[search] sampler: expected one of auto, nsga2, tpe, random"),
        ('search.learn_from=["a"]', "[search] learn_from: expected nothing, as [study] objectives"),
        ("training.patience=3", "[training] patience: expected nothing, as [study] objectives"),
        ("probe.enabled=true", "[probe] enabled: expected false, as [study] objectives"),
        ("budget.decide=0.2", "[budget] decide: expected nothing, as [study] objectives"),
        ("budget.no_improvement=5", "[budget] no_improvement: expected nothing"),
        ("budget.regret_below=0.1", "[budget] regret_below: expected nothing"),
    ],
)
def test_what_needs_to_know_the_better_one_of_two_trials_is_refused(change, expected):
    parse(FILE, "s.toml")
    with pytest.raises(StudyFileError) as raised:
        parse(FILE, "s.toml", [change])
    assert expected in "\n".join(raised.value.problems)


def test_nsga2_is_for_several_objectives_alone():
    plain = FILE.replace("objectives = [{", "# [{")
    with pytest.raises(StudyFileError, match="which nsga2 is for"):
        parse(plain, "s.toml")


def test_an_objective_that_the_workload_does_not_measure_is_refused_at_submit():
    workload = {"factory": "tests.training_here:picky"}
    known = [{"metric": "val_loss"}, {"metric": "score"}, {"metric": "seconds"}]
    submission.prepare(spec(study={"objectives": known}, workload=workload), PREFIXES)
    with pytest.raises(UsageError, match=r"\[study\] objectives: .* got accuracy"):
        submission.prepare(spec(study={"objectives": TWO}, workload=workload), PREFIXES)


# --- the end of a trial


def test_the_values_of_objectives_are_those_of_the_last_evaluation():
    study = spec(study={"objectives": [*TWO, {"metric": "seconds"}]})
    metrics = {"val_loss": np.array([4.0, 1.0]), "accuracy": np.array([0.5, 0.9])}
    curve = replace(rows(0, 10), metrics=metrics)
    assert judged(study, completed(1.0), curve, 7.0).objectives == [1.0, 0.9, 7.0]
    metrics["accuracy"][-1] = np.nan
    assert judged(study, completed(1.0), curve, 7.0).reason == (
        "Its accuracy was not finite at its end."
    )
    del metrics["accuracy"]
    assert judged(study, completed(1.0), curve, 7.0).kind == "failed"


# --- the front


@pytest.mark.longer
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_is_that_of_optuna(pairs):
    made = spec(study={"objectives": TWO})
    theirs = optuna.create_study(directions=["minimize", "maximize"])
    theirs.add_trials([optuna.trial.create_trial(values=list(map(float, p))) for p in pairs])
    trials = [
        SimpleNamespace(number=n, state="completed", infeasible=False, objectives=pair)
        for n, pair in enumerate(pairs)
    ]
    ours = [one.number for one in front.front(SimpleNamespace(spec=made), trials)]
    assert sorted(ours) == sorted(one.number for one in theirs.best_trials)


@pytest.mark.longer
def test_the_front_is_shown_wherever_the_best_trial_is(ledger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = several(ledger)
    for values in ((1.0, 0.5), (2.0, 0.9), (3.0, 0.8), (0.5, 0.1)):
        ended(ledger, study, *values)
    trials = ledger.trials(study.id)
    assert [one.number for one in front.front(study, trials)] == [3, 0, 1]
    shown = best.front(ledger, study)["front"]
    assert [one["values"] for one in shown] == [
        dict(zip(NAMES, values, strict=True)) for values in ((0.5, 0.1), (1.0, 0.5), (2.0, 0.9))
    ]
    assert status.status(ledger, study)["front"] == shown
    assert export.trials(ledger, study)["values_accuracy"].tolist() == [0.5, 0.9, 0.8, 0.1]
    said = front.in_words(study, trials)
    assert said[0] == (
        "The front has 3 of 4 trials; no other trial is better in one objective "
        "(lower val_loss and higher accuracy) and as good in all others:"
    )
    assert said[1].startswith("trial 3: val_loss 0.5, accuracy 0.1 with lr 0.13")
    printed = CliRunner().invoke(cli, ["best", "small"])
    assert printed.exit_code == 0, printed.output
    assert "2 objectives; best in the first: val_loss 0.5 in trial 3" in printed.output
    assert "trial 1: val_loss 2, accuracy 0.9" in printed.output
    found = json.loads(CliRunner().invoke(cli, ["best", "small", "--json"]).stdout)
    assert [one["number"] for one in found["front"]] == [3, 0, 1]
    written = page.write_study(gather(ledger, study), tmp_path / "report")
    text = written.page.read_text()
    assert "The front has 3 of 4 trials" in text
    assert '"front"' in text


def test_infeasible_trials_are_not_on_the_front(ledger):
    study = submit(
        ledger,
        study={"objectives": TWO, "constraints": ["seconds <= 9"]},
        search={"sampler": "nsga2", "pruner": "none"},
    )
    ended(ledger, study, 1.0, 0.9, **{"seconds <= 9": 1.0})
    assert front.in_words(study, ledger.trials(study.id)) == []
    feasible = ended(ledger, study, 2.0, 0.5, **{"seconds <= 9": -1.0})
    assert [one.number for one in front.front(study, ledger.trials(study.id))] == [feasible]


def test_no_trial_of_a_front_is_confirmed_or_trained_again(ledger, places):
    study = several(ledger, workload={"factory": "studies.digits:mlp"})
    ended(ledger, study, 1.0, 0.5)
    assert deciding.decision(ledger, study) is None
    with pytest.raises(UsageError, match="several objectives, so there is no best trial"):
        confirm.question(ledger, study, top=2)
    with pytest.raises(UsageError, match="several objectives, so no trial is the one to train"):
        checking.prepare(ledger, places, study, "1", PREFIXES, None, force=False)


# --- the search


def curve_of(params):
    """Return two objectives of which no rate has the best of both."""
    place = np.log10(float(params["lr"]))
    return (place + 3.0) ** 2, 1.0 - (place + 1.0) ** 2


@pytest.mark.longer
@pytest.mark.parametrize("sampler", ["auto", "tpe", {"name": "nsga2", "population": 4}, "random"])
def test_samplers_draw_the_same_again_and_cope_with_every_outcome(new_ledger, sampler):
    drawn_ones = []
    for _ in range(2):
        ledger = new_ledger()
        study = several(ledger, search={"sampler": sampler, "pruner": "none"})
        found = []
        for number in range(10):
            search = Search(study, ledger)  # as another worker would
            held, made = drawn(ledger, study, search)
            found.append(made.params)
            values = curve_of(made.params)
            outcome = replace(completed(values[0]), objectives=values)
            ledger.finish(held.lease, diverged() if number == 3 else outcome)
        drawn_ones.append(found)
    assert drawn_ones[0] == drawn_ones[1]
    assert len({one["lr"] for one in drawn_ones[0]}) > 5


@pytest.mark.longer
def test_tpe_is_optunas_for_several_objectives(ledger):
    """The last of these is nearer to the front than random ones are."""
    search = {"sampler": {"name": "tpe", "start": "random"}, "pruner": "none"}
    study = several(ledger, search=search, budget={"trials": 40})
    searching, rates = Search(study, ledger), []
    for _ in range(40):
        held, made = drawn(ledger, study, searching)
        values = curve_of(made.params)
        rates.append(float(made.params["lr"]))
        ledger.finish(held.lease, replace(completed(values[0]), objectives=values))
    on_the_front = [1e-3 <= rate <= 0.1 for rate in rates]
    assert sum(on_the_front[20:]) > sum(on_the_front[:20])


def test_a_trial_without_its_values_is_left_out(ledger):
    study = several(ledger)
    ended(ledger, study, 1.0, 0.5)
    (trial,) = ledger.trials(study.id)
    with pytest.raises(UnreadableError, match="objectives: expected 2 numbers, got 0"):
        frozen(replace(trial, objectives=None), study.spec)
    assert front.front(study, [replace(trial, objectives=[1.0])]) == []
    assert template(trial, study).values == [1.0, 0.5]
    assert Mirror(study.spec).revision == 0


# --- the whole


@pytest.mark.slow  # an MLflow of its own
def test_a_study_is_trained_published_and_read_by_optuna(tracked, places):
    """From the study file to `optuna.load_study` and MLflow's tags."""
    objectives = [{"metric": "val_loss"}, {"metric": "score", "direction": "maximize"}]
    study = submitted(
        tracked,
        study={"objectives": objectives, "constraints": ["score <= 1"]},
        workload={"factory": "tests.training_here:picky"},
        space={"lr": [0.01, 0.1, 0.3], "schedule": "constant", "optimizer": "sgd"},
        budget={"trials": 3},
    )
    train(tracked, places, study)
    publish(tracked, places)
    theirs = optuna.load_study(study_name="line", storage=places.optuna)
    assert theirs.directions == [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    assert theirs.metric_names == ["val_loss", "score"]
    trials = tracked.trials(study.id)
    assert [one.values for one in theirs.trials] == [list(one.objectives) for one in trials]
    assert [list(one.constraints) for one in theirs.trials] == [["score <= 1"]] * 3
    on_it = {one.number for one in front.front(study, trials)}
    assert on_it == {one.number for one in theirs.best_trials}
    assert on_it == {1, 2}  # the first one scores too high
    client, ids = tracking_client(places), Publications(tracked.engine, "mlflow")
    tags = {n: client.get_run(i).data.tags for n, i in ids.external_ids(study.id).items()}
    assert {n for n, own in tags.items() if own.get("tuner.front") == "true"} == on_it
    assert [tags[n]["tuner.feasible"] for n in range(3)] == ["false", "true", "true"]
