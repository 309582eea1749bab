"""Constraints on metrics: a trial that exceeds a limit at its end is never the best one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import claim, completed, draw, drawn, mirror_of, rows, spec, submit
from optuna.samplers import RandomSampler
from test_tpe import Known
from training_here import PREFIXES, submitted, train

from tuner.analysis import deciding, ranking
from tuner.config.constraints import MOST_EXCESS, Limit
from tuner.config.reading import parse
from tuner.core import curves
from tuner.core.errors import StudyFileError, UsageError
from tuner.core.outcome import COMPLETED, DIVERGED, PRUNED, Outcome
from tuner.ledger import limits
from tuner.ledger.at_end import judged
from tuner.ledger.summaries import summaries
from tuner.operations import best, confirm, export, status
from tuner.operations import submit as submission
from tuner.search import Search, gp
from tuner.search.encoding import Dimension, Encoding
from tuner.tracking.mlflow.run_content import last_points, outcome_tags
from tuner.tracking.optuna.storage_writer import template

ACCURATE = ["accuracy >= 0.97"]


def ended(ledger, study, value, **excesses):
    """Let a trial complete that exceeds these constraints."""
    held = claim(ledger, study)
    draw(ledger, held, lr=0.1 + held.trial.number / 100)
    ledger.finish(held.lease, replace(completed(value), excesses=excesses or None))
    return held.trial.number


# --- the study file


@pytest.mark.parametrize(
    ("text", "metrics", "excess"),
    [
        ("accuracy >= 0.97", {"accuracy": 0.95}, 0.02),
        ("accuracy >= 0.97", {"accuracy": 0.99}, -0.02),
        ("seconds / 60 <= 1", {"seconds": 90.0}, 0.5),
        ("max(f1.a, f1.b) <= 2 * loss", {"f1.a": 3.0, "f1.b": 1.0, "loss": 1.0}, 1.0),
        ("accuracy >= 0.97", {"accuracy": math.nan}, MOST_EXCESS),
        ("loss <= 1", {"loss": math.inf}, MOST_EXCESS),
        ("1 / loss <= 1", {"loss": 0.0}, MOST_EXCESS),
    ],
)
def test_a_limit_is_exceeded_by_the_difference_of_its_sides(text, metrics, excess):
    assert Limit(text).excess(metrics) == pytest.approx(excess)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy > 0.97", "one comparison by <= or >="),
        ("0.9 <= accuracy <= 1", "one comparison by <= or >="),
        ("accuracy >= 0.9 and loss <= 1", "one comparison by <= or >="),
        ("1 <= 2", "a comparison with a metric"),
        ("accuracy >= 'high'", "a comparison of numbers"),
        ("__import__('os').getpid() >= 1", "an expression of"),
        ("accuracy >=", "an expression such as"),
    ],
)
def test_a_constraint_that_is_no_limit_is_refused(text, expected):
    with pytest.raises(ValueError, match=expected):
        Limit(text)


def test_mistakes_of_constraints_have_their_place_in_the_file():
    text = """
    [study]
    name = "s"
    constraints = ["accuracy > 0.9", "seconds <= 60", "seconds <= 60"]
    [workload]
    command = ["train", "{lr}"]
    patterns = { val_loss = '(?P<value>.*)' }
    [training]
    steps = 10
    [space]
    lr = { low = 0.1, high = 1.0 }
    schedule = "constant"
    optimizer = "sgd"
    [search]
    sampler = "cmaes"
    [budget]
    trials = 10
    """
    with pytest.raises(StudyFileError) as raised:
        parse(text, "s.toml")
    found = "\n".join(raised.value.problems)
    assert "[study] constraints: expected one comparison by <= or >=" in found
    fixed = text.replace("> 0.9", ">= 0.9")
    with pytest.raises(StudyFileError, match=r"expected each constraint once, got seconds <= 60"):
        parse(fixed, "s.toml")
    fixed = fixed.replace(', "seconds <= 60"]', "]")
    with pytest.raises(StudyFileError) as raised:
        parse(fixed, "s.toml")
    found = "\n".join(raised.value.problems)
    assert "constraints: expected metrics that have a pattern (val_loss), or seconds" in found
    assert "[search] sampler: expected one of auto, gp, tpe, random" in found
    parse(fixed.replace("cmaes", "gp").replace("accuracy", "val_loss"), "s.toml")


def test_the_digest_of_a_study_without_constraints_is_as_before():
    plain, limited = spec(), spec(study={"constraints": ACCURATE})
    assert "constraints" not in plain.model_dump()["study"]
    assert plain.digest() != limited.digest()


def test_a_metric_that_the_workload_does_not_measure_is_refused_at_submit():
    workload = {"factory": "tests.training_here:picky"}
    known = spec(study={"constraints": ["score <= 1", "seconds <= 60"]}, workload=workload)
    submission.prepare(known, PREFIXES)
    with pytest.raises(UsageError, match=r"val_loss, score\), or seconds, got accuracy in"):
        submission.prepare(spec(study={"constraints": ACCURATE}, workload=workload), PREFIXES)


# --- the end of a trial


def curve(**metrics):
    """Return rows whose evaluations have these metrics."""
    made = rows(0, 30)
    return replace(made, metrics={n: np.array(values, float) for n, values in metrics.items()})


def test_the_metrics_are_those_of_the_evaluation_whose_value_counts():
    made = curve(val_loss=[4.0, 1.0, 2.0, 3.0], accuracy=[0.1, 0.9, 0.98, 0.95])
    table = {"constraints": ["accuracy >= 0.97", "seconds <= 60"]}
    found = judged(spec(study=table), completed(3.0), made, 90.0)
    assert found.excesses == {
        "accuracy >= 0.97": pytest.approx(0.02),
        "seconds <= 60": pytest.approx(30.0),
    }
    assert found.violation == pytest.approx(30.02)
    assert found.reason.endswith("It violates accuracy >= 0.97 by 0.02 and seconds <= 60 by 30.")
    found = judged(spec(study=table | {"value": "best"}), completed(1.0), made, 1.0)
    assert found.excesses["accuracy >= 0.97"] == pytest.approx(0.07)


def test_a_trial_that_reports_no_such_metric_fails():
    found = judged(
        spec(study={"constraints": ACCURATE}), completed(1.0), curve(val_loss=[1] * 4), 1
    )
    assert found.kind == "failed"
    assert found.reason == "It reported no accuracy, which [study] needs at its end."


def test_a_told_metric_counts():
    study = spec(study={"constraints": ACCURATE})
    found = judged(study, completed(1.0), curves.empty(), 1.0, {"accuracy": 0.96})
    assert found.violation == pytest.approx(0.01)


# --- the best trial


@pytest.mark.longer
def test_the_best_trial_is_feasible_wherever_it_is_named(ledger):
    study = submit(ledger, study={"constraints": ACCURATE})
    key = ACCURATE[0]
    near = ended(ledger, study, 1.0, **{key: 0.01})
    far = ended(ledger, study, 0.5, **{key: 0.2})
    assert ledger.best(study).number == near
    said = ranking.best_in_words(study, ledger.best(study))
    assert said.startswith("No trial satisfies the constraints. Trial 0 violates them least (")
    assert "accuracy >= 0.97 by 0.01" in said
    assert best.best(ledger, study)["violation"] == pytest.approx(0.01)
    worse = ended(ledger, study, 3.0, **{key: -0.01})
    feasible = ended(ledger, study, 2.0, **{key: 0.0})
    assert ledger.best(study).number == feasible
    assert ledger.ranking(study, 10) == [feasible, worse, near, far]
    assert summaries(ledger, [study])[study.id].best.number == feasible
    ordered = ranking.ranked(study, ledger.trials(study.id))
    assert [one.number for one in ordered] == [feasible, worse, near, far]
    assert [one.number for one in deciding.candidates(study, ordered)] == [feasible, worse]
    assert status.status(ledger, study)["best"]["number"] == feasible
    assert export.trials(ledger, study)["violation"].tolist() == [0.01, 0.2, 0.0, 0.0]
    with ledger.engine.begin() as tx:
        assert limits._ended_since_best(tx, study) == 0


def test_there_is_nothing_to_decide_between_infeasible_trials(ledger):
    study = submit(ledger, study={"constraints": ACCURATE})
    for value in (1.0, 2.0):
        ended(ledger, study, value, **{ACCURATE[0]: 0.1})
    with pytest.raises(UsageError, match="has 0 completed trials that differ in their parameters"):
        confirm.question(ledger, study, top=2)


@pytest.mark.longer
def test_a_repeat_that_violates_a_constraint_does_not_count_as_completed(ledger):
    study = submit(ledger, study={"constraints": ACCURATE})
    for value in (1.0, 2.0):
        ended(ledger, study, value, **{ACCURATE[0]: -0.1})
    asked = confirm.question(ledger, study, top=2)
    confirm.advance(ledger, study, asked, 3)
    again = deciding.existing(ledger, study)
    assert again.spec.study.constraints == study.spec.study.constraints
    for _ in range(6):
        held = claim(ledger, again)
        params = held.trial.attrs["fixed_params"]
        ledger.draw(held.lease, params, attrs=held.trial.attrs, study_attrs={}, asked_revision=1)
        fails = {ACCURATE[0]: 0.1 if params["lr"] == 0.1 else -0.1}
        ledger.finish(held.lease, replace(completed(params["lr"]), excesses=fails))
    confirm.advance(ledger, study, asked, 3)
    found = confirm.compare(ledger, study, asked, 3)
    assert found.winner == 1
    assert found.verdict == confirm.REFUTED


def test_optuna_and_mlflow_get_what_a_trial_exceeds(ledger):
    study = submit(ledger, study={"constraints": ACCURATE})
    ended(ledger, study, 1.0, **{ACCURATE[0]: 0.01})
    (trial,) = ledger.trials(study.id)
    assert template(trial, study).constraints == {ACCURATE[0]: 0.01}
    assert outcome_tags(trial)["tuner.feasible"] == "false"
    assert {p.key: p.values.tolist() for p in last_points(trial)}["constraint_violation"] == [0.01]
    plain = replace(trial, violation=None)
    assert "tuner.feasible" not in outcome_tags(plain)


def test_a_version_imports_what_trials_exceed(ledger):
    study = submit(ledger, study={"constraints": ACCURATE})
    held, _ = drawn(ledger, study, Search(study, ledger))
    ledger.finish(held.lease, replace(completed(1.0), excesses={ACCURATE[0]: 0.01}))
    wider = {"lr": {"low": 1e-5, "high": 1.0}, "schedule": "constant", "optimizer": "sgd"}
    again = submit(ledger, study={"constraints": ACCURATE}, space=wider)
    assert again.version == 2
    (trial,) = ledger.trials(again.id)
    assert trial.imported
    assert (trial.violation, trial.excesses) == (0.01, {ACCURATE[0]: 0.01})


# --- the search


def test_infeasible_trials_are_no_competitors_of_others(ledger):
    study = submit(ledger, study={"constraints": ACCURATE})
    ended(ledger, study, 1.0, **{ACCURATE[0]: 0.01})
    feasible = ended(ledger, study, 2.0, **{ACCURATE[0]: -0.01})
    mirror = mirror_of(ledger, study)
    assert [one.number for one in mirror.completed_competitors()] == [feasible]
    assert [one.number for one in mirror.for_pruner()] == [feasible]


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_tpe_draws_what_optuna_draws_under_constraints(share):
    known = Known(spec(study={"constraints": ACCURATE}, search={"sampler": "tpe"}))
    generator = np.random.default_rng(1)
    for number in range(60):
        known.add(number)
        params, _ = known.drawn(number, RandomSampler(seed=number))
        excess = generator.normal() + (2.0 if generator.random() < share else -2.0)
        attrs = {f"constraints:{ACCURATE[0]}": excess}
        kind = COMPLETED if number % 4 else PRUNED
        known.change(replace(known.records[number], params=params))
        if kind == COMPLETED:
            known.change(replace(known.records[number], attrs=attrs))
        known.end(number, kind, generator.normal(), 20)
    for number in range(60, 63):
        known.add(number)
        params, attrs = known.both(number)
        known.change(replace(known.records[number], params=params, attrs=attrs))


def test_tpe_ranks_diverged_trials_below_infeasible_ones():
    known = Known(spec(study={"constraints": ACCURATE}, search={"sampler": "tpe"}))
    for number in range(12):
        known.add(number)
        params, _ = known.drawn(number, RandomSampler(seed=number))
        attrs = {} if number % 2 else {f"constraints:{ACCURATE[0]}": 1.0 + number}
        known.change(replace(known.records[number], params=params, attrs=attrs))
        known.end(number, DIVERGED if number % 2 else COMPLETED, 1.0, 0)
    below, _ = known.observations.split(63, np.zeros(0, dtype=np.int64))
    assert below.tolist() == [0, 2]


SQUARE = Encoding([Dimension(name="a", kind="float"), Dimension(name="b", kind="float")])


def test_the_gp_knows_where_constraints_hold():
    """They hold where a is below 0.5."""
    points = np.random.default_rng(0).random((40, 2))
    found = gp.Feasibility(SQUARE, points, points[:, :1] - 0.5)
    probability = np.exp(found.log_probability(np.array([[0.2, 0.5], [0.5, 0.5], [0.8, 0.5]])))
    assert probability[0] > 0.95
    assert 0.2 < probability[1] < 0.8
    assert probability[2] < 0.05


@pytest.mark.longer
@pytest.mark.parametrize("limit", [0.5, 0.05])
def test_the_gp_finds_the_best_feasible_point(ledger, limit):
    """The value falls with a, which may be `limit` at most: for the lower one none is at first."""
    text = f"size <= {limit}"
    arguments = {"a": {"low": 0.0, "high": 1.0}, "b": {"low": 0.0, "high": 1.0}}
    space = {"lr": 0.1, "schedule": "constant", "optimizer": "sgd", "arguments": arguments}
    search = {"sampler": {"name": "gp", "startup_trials": 4}}
    study = submit(
        ledger, study={"constraints": [text]}, space=space, search=search, budget={"trials": 18}
    )
    searching, found = Search(study, ledger), []
    for _ in range(18):
        held, made = drawn(ledger, study, searching)
        a, b = float(made.params["a"]), float(made.params["b"])
        value = (1.0 - a) + (b - 0.5) ** 2
        found.append(a)
        excess = {text: a - limit}
        ledger.finish(held.lease, replace(completed(value), excesses=excess))
    best_one = ledger.best(study)
    assert best_one.violation == 0.0
    assert best_one.value < 1.0 - limit + 0.05
    assert sum(a <= limit + 0.1 for a in found[10:]) >= 5


@pytest.mark.longer
def test_the_gp_respects_constraints_beside_running_pruned_and_diverged_trials(ledger):
    study = submit(
        ledger, study={"constraints": ACCURATE}, search={"sampler": "gp"}, budget={"trials": 30}
    )
    search = Search(study, ledger)
    kinds = [
        replace(completed(1.0), excesses={ACCURATE[0]: 0.5}),
        replace(completed(2.0), excesses={ACCURATE[0]: 0.1}),
        Outcome(kind=PRUNED, reason="It lagged.", value=3.0),
        Outcome(kind=DIVERGED, reason="It was nan.", stopped_step=1),
        replace(completed(1.5), excesses={ACCURATE[0]: 0.3}),
    ]
    for outcome in kinds:
        held, _ = drawn(ledger, study, search)
        ledger.finish(held.lease, outcome)
    for _ in range(3):  # none is feasible: these run side by side
        _, made = drawn(ledger, study, search)
        assert 1e-4 <= made.params["lr"] <= 1.0
    held, _ = drawn(ledger, study, search)
    ledger.finish(held.lease, replace(completed(4.0), excesses={ACCURATE[0]: -0.1}))
    rates = [drawn(ledger, study, search)[1].params["lr"] for _ in range(3)]
    assert len(set(rates)) == 3


# --- the whole


@pytest.mark.longer
def test_a_trained_study_ends_with_its_best_feasible_trial(ledger, places):
    """Of the grid, 0.3 is the best and 100 diverges; the limit excludes what fits too well."""
    workload = {"factory": "tests.training_here:picky"}
    space = {"lr": [0.01, 0.1, 0.3], "schedule": "constant", "optimizer": "sgd"}
    tables = {"workload": workload, "space": space, "budget": {"trials": 3}}
    limits = {"constraints": ["score >= 0.4", "seconds <= 600"]}
    study = train(ledger, places, submitted(ledger, study=limits, **tables))
    trials = ledger.trials(study.id)
    for trial in trials:
        whole = ledger.curve(trial.id)
        assert trial.excesses["score >= 0.4"] == pytest.approx(0.4 - whole.metrics["score"][-1])
        assert trial.excesses["seconds <= 600"] < 0
    assert ledger.best(study).params["lr"] == 0.1
