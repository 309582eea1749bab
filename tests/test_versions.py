"""A changed space is a new version of a study, which knows what the earlier ones found."""

from __future__ import annotations

import io
import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import optuna
import pytest
from helpers import (
    PARAMS,
    WIDE,
    WORKLOAD,
    claim,
    completed,
    decided,
    diverged,
    draw,
    drawn,
    expire,
    mirror_of,
    pruned,
    rows,
    spec,
    submit,
    went_on,
)
from optuna.trial import TrialState
from rich.console import Console

from tuner.analysis import ranking
from tuner.core import curves
from tuner.core.errors import UsageError, WorkloadError
from tuner.core.outcome import CANCELLED, FAILED, Outcome
from tuner.core.redaction import redacted
from tuner.ledger import OPEN, STOPPED
from tuner.operations import best, status
from tuner.operations import submit as submission
from tuner.operations.doctor import examine, repair
from tuner.report import tables
from tuner.report.progress import LiveView, StudyReader
from tuner.search import Search
from tuner.search.samplers import sampler_for
from tuner.tracking.recorder import Recorder

NARROW = {"lr": {"low": 0.01, "high": 0.1}}
RATES = (0.001, 0.02, 0.05, 0.1, 0.5)
FULL = {
    **PARAMS,
    "constant.warmup": 0.0,
    "sgd.momentum": 0.0,
    "sgd.nesterov": False,
    "sgd.weight_decay": 0.0,
}
OUTCOMES = {
    "completed": completed(2.0),
    "pruned": pruned(3.0),
    "diverged": diverged(7),
    "failed": Outcome(kind=FAILED, reason="It broke."),
    "cancelled": Outcome(kind=CANCELLED, reason="Somebody stopped it."),
}


def ended(ledger, study, outcome, **params):
    """Train a trial to an end, with a report at step 10 and a curve up to there."""
    held = claim(ledger, study)
    draw(ledger, held, **{**FULL, **params})
    value = outcome.value or 9.0
    ledger.report(held.lease, rows(0, 10), went_on(10, value), attrs={"completed_rung_0": value})
    ledger.finish(held.lease, outcome)
    return held


def first(ledger, rates=RATES, **overrides):
    """Submit a study and complete a trial of each rate; the value is its distance to 0.05."""
    study = submit(ledger, **overrides)
    for rate in rates:
        ended(ledger, study, completed(abs(rate - 0.05)), lr=rate)
    return ledger.study(study.name)


# --- what makes a version ---------------------------------------------------------------------


@pytest.mark.longer
def test_a_changed_space_is_a_new_version(ledger):
    one = first(ledger)
    two = submit(ledger, space=NARROW)
    assert [study.version for study in ledger.versions("small")] == [1, 2]
    assert (ledger.study("small"), two.version, two.title) == (two, 2, "small v2")
    assert (one.title, one.spec, two.spec.space) == ("small", spec(), spec(space=NARROW).space)
    assert submit(ledger, space=NARROW, budget={"trials": 30}).id == two.id, "only its budget"
    assert submit(ledger).version == 3, "the first space again"


@pytest.mark.longer
@pytest.mark.parametrize("space", [{}, NARROW])
@pytest.mark.parametrize(
    "change",
    [
        {"study": {"seed": 1}},
        {"study": {"direction": "maximize"}},
        {"training": {"steps": 7}},
        {"search": {"sampler": "tpe"}},
        {"guard": {"far": 99.0}},
    ],
)
def test_any_other_change_is_refused(ledger, change, space):
    study = first(ledger)
    with pytest.raises(UsageError, match="differs in more than its budget and its space"):
        submit(ledger, space=space, **change)
    with pytest.raises(UsageError, match="only its budget may change, and its space") as refused:
        submission.submit(ledger, spec(space=space, **change), WORKLOAD)
    (table,), (keys,) = change, change.values()
    assert all(f"[{table}] {key}: was" in str(refused.value) for key in keys if key != "sampler")
    assert ledger.studies() == [study]


@pytest.mark.longer
@pytest.mark.parametrize("change", [{}, {"budget": {"trials": 30}}, {"space": NARROW}])
@pytest.mark.parametrize("what", ["code", "data"])
def test_a_study_is_of_the_same_workload(ledger, what, change):
    """Neither it nor its budget nor its versions are of other code or data."""
    study = first(ledger)
    said = rf"the {what} of studies.digits:digits is not .*{what}: {WORKLOAD[what]}, here other"
    for submits in (submission.submit, lambda *of: ledger.submit(of[1], limit=9, workload=of[2])):
        with pytest.raises(WorkloadError, match=said) as refused:
            submits(ledger, spec(**change), {**WORKLOAD, what: "other"})
        assert redacted(str(refused.value)) == str(refused.value), "it is printed as it is"
    with pytest.raises(WorkloadError, match=r"the code and the data of .* are not .*; data: "):
        submission.submit(ledger, spec(**change), {"code": "other", "data": "other"})
    assert ledger.studies() == [study]


@pytest.mark.longer
def test_many_may_submit_one_version_at_once(ledger):
    first(ledger)
    barrier = Barrier(4)

    def go(_):
        barrier.wait()
        return submit(ledger, space=NARROW).id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(go, range(4)))) == 1
    assert len(ledger.studies()) == 2


def test_no_two_studies_have_the_same_title(ledger):
    submit(ledger)
    submit(ledger, study={"name": "small v2"})
    with pytest.raises(UsageError, match="would be called 'small v2' in Optuna and MLflow"):
        submit(ledger, space=NARROW)
    submit(ledger, study={"name": "other"})
    submit(ledger, study={"name": "other"}, space=NARROW)
    with pytest.raises(UsageError, match="as version 2 of study 'other' is already"):
        submit(ledger, study={"name": "other v2"})
    assert [study.title for study in ledger.studies()] == ["small", "small v2", "other", "other v2"]


# --- what is imported -------------------------------------------------------------------------


@pytest.mark.longer
@pytest.mark.parametrize(
    ("space", "rates"),
    [
        ({"lr": {"low": 1e-5, "high": 1.0}}, RATES),
        (NARROW, (0.02, 0.05, 0.1)),
        ({"lr": [0.05, 0.001, 3.0]}, (0.001, 0.05)),
        ({"lr": 0.02}, (0.02,)),
        ({"lr": 0.03}, ()),
        ({"schedule": ["constant", "cosine"]}, RATES),
        ({"schedule": "cosine"}, ()),
        ({"optimizer": ["adamw", "sgd"]}, RATES),
        (
            {"optimizer": {"name": "sgd", "momentum": {"low": 0.0, "high": 0.5, "log": False}}},
            RATES,
        ),
        ({"optimizer": {"name": "sgd", "momentum": [0.0, 0.9]}}, RATES),
        ({"optimizer": {"name": "sgd", "momentum": 0.9}}, ()),
    ],
)
def test_trials_in_the_new_space_come_first_and_in_order(ledger, space, rates):
    first(ledger)
    two = submit(ledger, space=space)
    found = ledger.trials(two.id)
    assert [trial.params for trial in found] == [{**FULL, "lr": rate} for rate in rates]
    assert [trial.number for trial in found] == list(range(len(rates)))
    assert all(trial.imported for trial in found)
    assert claim(ledger, two).trial.number == len(rates) == ledger.imported(two.id)


@pytest.mark.longer
def test_only_what_has_an_outcome_that_says_something(ledger):
    study = submit(ledger)
    made = {kind: ended(ledger, study, one) for kind, one in OUTCOMES.items()}
    draw(ledger, claim(ledger, study), **FULL)  # is running
    claim(ledger, study)  # and one without parameters
    origins = {trial.number: trial for trial in ledger.trials(study.id)}
    found = ledger.trials(submit(ledger, space={"lr": 0.1}).id)
    assert [trial.state for trial in found] == ["completed", "pruned", "diverged"]
    for trial in found:
        origin = origins[made[trial.state].trial.number]
        kept = ("params", "state", "value", "stopped_step", "steps", "reports")
        kept += ("created_at", "ended_at")
        assert all(getattr(trial, name) == getattr(origin, name) for name in kept)
        said = f"Imported from trial {origin.number} of version 1: {origin.reason}"
        assert (trial.reason, trial.attrs) == (said, {})


@pytest.mark.longer
def test_it_has_no_attempt_no_curve_and_no_budget(ledger):
    first(ledger)
    two = submit(ledger, space=NARROW, budget={"trials": 2})
    assert (two.limit, two.reserved, ledger.attempts(two.id)) == (2, 0, [])
    assert set(ledger.counts(two.id).values()) == {0}
    assert all(not len(ledger.curve(one.id).times) for one in ledger.trials(two.id))
    numbers = [claim(ledger, two).trial.number for _ in range(2)]
    assert numbers == [3, 4]
    assert ledger.claim(two.id, "worker", {}) is None


@pytest.mark.longer
def test_each_trial_comes_from_where_it_was_trained(ledger):
    """What version 2 had no room for, version 3 has again; nothing comes twice."""
    first(ledger)
    two = submit(ledger, space=NARROW)
    ended(ledger, two, completed(0.01), lr=0.04)
    found = ledger.trials(submit(ledger, space={"lr": {"low": 0.001, "high": 0.09}}).id)
    assert [trial.params["lr"] for trial in found] == [0.001, 0.02, 0.05, 0.04]
    assert found[-1].reason.startswith("Imported from trial 3 of version 2: ")


@pytest.mark.longer
def test_the_best_one_may_be_imported_and_is_said_to_be(ledger):
    first(ledger)
    two = submit(ledger, space=NARROW)
    found = ledger.best(two)
    assert (found.number, found.params["lr"], found.value) == (1, 0.05, 0.0)
    assert "0 in trial 1 (imported) with lr 0.05" in ranking.best_in_words(two, found)
    ended(ledger, two, completed(-1.0), lr=0.06)
    assert ledger.best(two).number == 3
    assert best.best(ledger, two) | {"params": None} == {
        "number": 3, "value": -1.0, "params": None, "run_id": None,
    }  # fmt: skip


@pytest.mark.longer
def test_tables_mark_it_and_counts_leave_it_out(ledger):
    study = first(ledger)
    ended(ledger, study, diverged(), lr=0.1)
    two = submit(ledger, space=NARROW, budget={"trials": 5})
    ended(ledger, two, pruned(2.0), lr=0.03)
    two = ledger.study("small")
    state = status.status(ledger, two)
    assert (state["version"], state["title"], state["imported"]) == (2, "small v2", 4)
    assert {kind: n for kind, n in state["trials"].items() if n} == {"pruned": 1}
    assert state["budget"] == {"trials": 5, "reserved": 1}
    console = Console(record=True, width=200, file=io.StringIO())
    trials = ledger.trials(two.id)
    console.print(tables.ranking_table(two, trials, {n: curves.empty() for n in range(9)}))
    stopped = ledger.first_ended(two.id, tables.STOPPED, 3)
    console.print(tables.stopped_trials(stopped, ledger.counts(two.id)))
    console.print(LiveView(StudyReader(ledger, two), console).draw())
    text = console.export_text()
    assert text.count("completed, imported") == 6, "three in each table"
    assert "1 pruned" in text
    assert "1 diverged" not in text
    assert "study small v2  1 of 5 trials ended: 1 pruned; 4 imported" in text


@pytest.mark.longer
def test_the_sampler_learns_from_it_and_the_pruner_does_not_compare_it(ledger):
    study = first(ledger, search={"sampler": "gp", "pruner": "asha"})
    ended(ledger, study, diverged(), lr=0.1)
    two = submit(ledger, space=NARROW, search={"sampler": "gp", "pruner": "asha"})
    mirror = mirror_of(ledger, two)
    told = list(mirror.for_values())
    assert [trial.params["lr"] for trial in told] == [0.02, 0.05, 0.1, 0.1]
    assert told[3].value > max(trial.value for trial in told[:3]), "still diverged"
    assert list(mirror.for_pruner()) == []
    search = Search(two, ledger)
    held, _ = drawn(ledger, two, search)
    assert not decided(ledger, search, held, 4, 1e9)


@pytest.mark.slow  # whole searches
@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_a_sampler_that_learns_begins_where_the_imported_ones_were_best(ledger, sampler):
    """They were best at 0.05; of draws at random, 3 in 10 lie within half a decade of it."""

    def distance(rate):
        return abs(math.log10(rate / 0.05))

    search = {"sampler": {"name": sampler, "startup_trials": 5}}
    one = submit(ledger, search=search, budget={"trials": 24})
    for rate in np.geomspace(0.001, 0.5, 24).tolist():
        ended(ledger, one, completed(distance(rate)), lr=rate)
    two = submit(ledger, space={"lr": {"low": 0.0005, "high": 0.9}}, search=search)
    assert ledger.imported(two.id) == 24
    distances = []
    for _ in range(8):
        held, made = drawn(ledger, two, Search(two, ledger))
        distances.append(distance(made.params["lr"]))
        ledger.finish(held.lease, completed(distances[-1]))
    if sampler == "gp":  # which knows the best rate at once, and then looks at the edges
        assert distances[0] < 0.02
    else:
        assert np.mean(np.array(distances) < 0.5) > 0.6


@pytest.mark.longer
@pytest.mark.parametrize("imported", [0, 1, 9, 25])
def test_cmaes_begins_with_as_many_as_there_are(ledger, imported):
    one = submit(ledger, search={"sampler": "cmaes"}, budget={"trials": 30})
    for number in range(imported):
        ended(ledger, one, pruned(2.0) if number % 2 else diverged(), lr=0.05)
    two = submit(ledger, space=NARROW, search={"sampler": "cmaes"})
    held, made = drawn(ledger, two, Search(two, ledger))
    assert held.trial.number == imported
    assert 0.01 <= made.params["lr"] <= 0.1


@pytest.mark.slow  # whole searches
@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc", "cmaes"])
def test_every_sampler_goes_on_in_the_new_space(ledger, sampler):
    options = {"startup_trials": 2} if sampler in {"tpe", "gp", "cmaes"} else {}
    search = {"sampler": {"name": sampler, **options}}
    one = first(ledger, search=search, budget={"trials": 20})
    for value in range(8):  # with attributes of the sampler's own
        ledger.finish(drawn(ledger, one, Search(one, ledger))[0].lease, completed(float(value)))
    two = submit(ledger, space={**WIDE, **NARROW}, search=search)
    assert ledger.imported(two.id) == 0, "there are other parameters now"
    three = submit(ledger, space=NARROW, search=search)
    assert ledger.imported(three.id) >= 3
    searches = [Search(three, ledger), Search(three, ledger)]
    for turn in range(6):
        held, made = drawn(ledger, three, searches[turn % 2])
        assert 0.01 <= made.params["lr"] <= 0.1
        ledger.finish(held.lease, completed(float(turn)))


def test_a_grid_tries_what_has_not_been_tried(ledger):
    def grid(rates):
        return spec(space={"lr": rates}, search={"sampler": "grid"}, budget={"trials": 99})

    one, _ = submission.submit(ledger, grid([0.1, 0.2]), WORKLOAD)
    assert one.limit == 2
    for outcome in (completed(1.0), Outcome(kind=FAILED, reason="It broke.")):
        ledger.finish(drawn(ledger, one, Search(one, ledger))[0].lease, outcome)
    two, _ = submission.submit(ledger, grid([0.3, 0.1, 0.2]), WORKLOAD)
    assert (two.limit, ledger.imported(two.id)) == (2, 1)
    search = Search(two, ledger)
    assert [drawn(ledger, two, search)[1].params["lr"] for _ in range(2)] == [0.3, 0.2]
    assert ledger.claim(two.id, "worker", {}) is None
    again, created = submission.submit(ledger, grid([0.3, 0.1, 0.2]), WORKLOAD)
    assert (again.limit, created) == (2, False)


def test_a_sequence_begins_with_its_first_point():
    made = spec(search={"sampler": "qmc"})
    points = [
        sampler_for(made, number, [{}] * before)._index for number, before in [(0, 0), (5, 5)]
    ]
    assert points == [0, 0]


# --- the earlier version ----------------------------------------------------------------------


def test_the_earlier_version_stops_and_what_waits_is_cancelled(ledger):
    one = submit(ledger)
    waiting, training, interrupted, lost = (claim(ledger, one) for _ in range(4))
    ledger.release(waiting.lease, "interrupted", "Ctrl-C")
    submit(ledger, space=NARROW)
    assert [study.state for study in ledger.versions("small")] == [STOPPED, OPEN]
    assert ledger.claim(one.id, "worker", {}) is None
    draw(ledger, training)
    ledger.finish(training.lease, completed(1.0))
    ledger.release(interrupted.lease, "interrupted", "Ctrl-C")
    expire(ledger, lost.lease)
    assert ledger.reap() == 1
    found = ledger.trials(one.id)
    assert [trial.state for trial in found] == ["cancelled", "completed", "cancelled", "cancelled"]
    assert found[0].reason == "Its study was stopped, or a new version of it took its place."


# --- Optuna and MLflow ------------------------------------------------------------------------

ENVIRONMENT = {
    "device": "cpu", "host": "here", "python": "3", "packages": {}, "git_commit": None,
    "settled": {"trainer": "reference", "threads": 1},
}  # fmt: skip
DESCRIBED = {**WORKLOAD, "data_name": "digits", "training_rows": 3}


@pytest.mark.thorough
@pytest.mark.slow
def test_optuna_has_imported_trials_and_mlflow_does_not(ledger, places):
    for space, rate in (({}, 0.05), (NARROW, 0.06)):
        study, _ = ledger.submit(spec(space=space), limit=1, workload=DESCRIBED)
        held = ledger.claim(study.id, "worker", ENVIRONMENT)
        draw(ledger, held, **{**FULL, "lr": rate})
        attrs = {"completed_rung_0": 1.0}
        ledger.report(held.lease, rows(0, 10), went_on(10, 1.0), attrs=attrs)
        ledger.finish(held.lease, completed(rate))
    recorder = Recorder(ledger.engine, places)
    recorder.publish(["small"])
    assert not recorder.behind()
    assert examine(ledger.engine, places) == []
    one, two = (
        optuna.load_study(study_name=name, storage=places.ledger) for name in ("small", "small v2")
    )
    assert [trial.params["lr"] for trial in one.trials] == [0.05]
    assert [trial.params["lr"] for trial in two.trials] == [0.05, 0.06]
    assert [trial.number for trial in two.trials] == [0, 1]
    imported, own = two.trials
    assert imported.user_attrs["tuner.imported"] is True
    assert imported.user_attrs["tuner.reason"].startswith("Imported from trial 0 of version 1: ")
    assert (imported.state, imported.intermediate_values) == (TrialState.COMPLETE, {10: 1.0})
    assert "tuner.imported" not in own.user_attrs
    assert two.user_attrs["tuner.version"] == 2
    from mlflow import MlflowClient

    client = MlflowClient(places.tracking)
    runs = client.search_runs([client.get_experiment_by_name("small v2").experiment_id])
    assert {run.data.tags["tuner.trial"] for run in runs} == {"study", "1"}
    optuna.delete_study(study_name="small v2", storage=places.ledger)
    problems = examine(ledger.engine, places)
    assert {(one.study, one.kind, one.trial) for one in problems} == {
        ("small v2", "optuna_missing", 0), ("small v2", "optuna_missing", 1),
    }  # fmt: skip
    assert all(problem.repaired for problem in repair(ledger.engine, places))
    assert examine(ledger.engine, places) == []
