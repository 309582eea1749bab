"""Every pruner: its decisions are Optuna's own, diverged trials do not count, and it says why."""

from __future__ import annotations

import itertools
import json
import warnings
from typing import Any, get_args

import numpy as np
import optuna
import pytest
from helpers import (
    WORKLOAD,
    cases,
    claim,
    completed,
    decided,
    diverged,
    draw,
    mirror_of,
    spec,
    submit,
    went_on,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.trial import TrialState

from tuner.config.reading import json_schema, parse
from tuner.config.search import PrunerName
from tuner.config.study import SearchTable
from tuner.config.values import bounds
from tuner.core import curves
from tuner.core.errors import StudyFileError, UsageError
from tuner.core.outcome import FAILED, Outcome
from tuner.operations import submit as submission
from tuner.search import Search
from tuner.search.rungs import RUNG, RungRankings
from tuner.training.schedules import warmup_steps

MEDIAN = {"name": "median", "startup_trials": 1}
ASHA = {"name": "asha", "min_steps": 10, "reduction_factor": 2}
HYPERBAND = {"name": "hyperband", "min_steps": 10, "reduction_factor": 2}


def median() -> MedianPruner:
    return MedianPruner(n_startup_trials=1)


def asha() -> SuccessiveHalvingPruner:
    return SuccessiveHalvingPruner(min_resource=10, reduction_factor=2)


def hyperband() -> HyperbandPruner:
    return HyperbandPruner(min_resource=10, max_resource=100, reduction_factor=2)


def patient(wrapped: Any, **options: Any) -> PatientPruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return PatientPruner(wrapped, **options)


PRUNERS: dict[str, tuple[dict[str, Any], Any]] = {
    "none": ({"name": "none"}, NopPruner),
    "median": (MEDIAN, median),
    "median, late": (
        {**MEDIAN, "warmup_steps": 35},
        lambda: MedianPruner(n_startup_trials=1, n_warmup_steps=35),
    ),
    "percentile": (
        {"name": "percentile", "percentile": 40.0, "startup_trials": 1, "min_trials": 2},
        lambda: PercentilePruner(40.0, n_startup_trials=1, n_min_trials=2),
    ),
    "asha": (ASHA, asha),
    "hyperband": (HYPERBAND, hyperband),
    "halving": (
        {"name": "halving"},
        lambda: SuccessiveHalvingPruner(min_resource=34, reduction_factor=2),
    ),
    "patient": (
        {"name": "patient", "wraps": "none", "patience": 1, "min_delta": 0.5},
        lambda: patient(None, patience=1, min_delta=0.5),
    ),
    "patient median": (
        {"name": "patient", "wraps": {**MEDIAN, "warmup_steps": 35}, "patience": 0},
        lambda: patient(MedianPruner(n_startup_trials=1, n_warmup_steps=35), patience=0),
    ),
    "patient asha": (
        {"name": "patient", "wraps": ASHA, "patience": 0},
        lambda: patient(asha(), patience=0),
    ),
    "patient hyperband": (
        {"name": "patient", "wraps": HYPERBAND, "patience": 0},
        lambda: patient(hyperband(), patience=0),
    ),
}


def study_of(ledger, pruner, *, direction="minimize", trials=20):
    return submit(
        ledger,
        study={"name": "s", "direction": direction},
        search={"pruner": PRUNERS[pruner][0]},
        budget={"trials": trials},
    )


def taken(ledger, study):
    """Claim a trial and give it parameters."""
    held = claim(ledger, study)
    draw(ledger, held)
    return held


def test_every_pruner_is_tested_here():
    ours = {"one_rung"}  # which Optuna does not have: see test_judging.py
    assert {table["name"] for table, _ in PRUNERS.values()} | ours == set(get_args(PrunerName))


# --- decisions --------------------------------------------------------------------------------

VALUES = st.floats(-1e3, 1e3) | st.integers(0, 3).map(float)


@pytest.mark.thorough
@pytest.mark.slow  # whole searches
@pytest.mark.parametrize("name", PRUNERS)
@settings(max_examples=4)
@given(
    direction=st.sampled_from(["minimize", "maximize"]),
    order=st.lists(st.integers(0, 5), min_size=24, max_size=36),
    values=st.lists(VALUES, min_size=36, max_size=36),
)
def test_decisions_are_those_of_optuna_on_the_same_reports(
    new_ledger, name, direction, order, values
):
    """Six trials come to their rungs in any order, and two workers decide in turn."""
    ledger = new_ledger()
    study = study_of(ledger, name, direction=direction)
    plain = optuna.create_study(direction=direction, pruner=PRUNERS[name][1](), study_name="s")
    searches = [Search(study, ledger), Search(study, ledger)]
    held = [taken(ledger, study) for _ in range(6)]
    theirs = [plain.ask() for _ in range(6)]
    ahead = {number: list(study.rungs) for number in range(6)}
    for turn, (number, value) in enumerate(zip(order, values, strict=False)):
        if number not in ahead:
            continue
        if not ahead[number]:
            ledger.finish(held[number].lease, completed(value))
            plain.tell(theirs[number], value)
            del ahead[number]
            continue
        step = ahead[number].pop(0)
        stopped = decided(ledger, searches[turn % 2], held[number], step, value)
        theirs[number].report(value, step)
        assert stopped == theirs[number].should_prune()
        if stopped:
            plain.tell(theirs[number], state=TrialState.PRUNED)
            del ahead[number]
    mine = mirror_of(ledger, study)
    for trial in plain.get_trials():
        same = mine.trial(trial.number)
        assert (same.state, same.value) == (trial.state, trial.value)
        assert same.intermediate_values == trial.intermediate_values
        assert same.system_attrs == trial.system_attrs


def decisions(ledger, pruner, ending, *, fresh=False, direction="minimize"):
    """Run 12 trials one after another, each third of which ends as `ending`; give all decisions."""
    study = study_of(ledger, pruner, direction=direction)
    generator, found = np.random.default_rng(4), []
    kept = Search(study, ledger)
    for number in range(12):
        held, level = taken(ledger, study), generator.uniform(1, 3)
        if number % 3 == 1:
            for step in study.rungs[:3] if ending.kind == "diverged" else ():
                report = went_on(step, 1e9 if number % 2 else -1e9)
                ledger.report(held.lease, curves.empty(), report, attrs={"completed_rung_0": 1e9})
            ledger.finish(held.lease, ending)
            continue
        for step in study.rungs:
            value = level + generator.normal()
            search = Search(study, ledger) if fresh else kept
            decision = search.decide(number, step, value)
            found.append((number, step, decision))
            if decided(ledger, search, held, step, value):
                break
        else:
            ledger.finish(held.lease, completed(level))
    return found


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("pruner", "direction"),
    [
        pytest.param(pruner, direction, marks=() if pruner == "asha" else pytest.mark.slow)
        for pruner, direction in zip(
            PRUNERS, itertools.cycle(["minimize", "maximize"]), strict=False
        )
    ],
)
def test_diverged_trials_do_not_count_and_a_fresh_search_decides_the_same(
    new_ledger, pruner, direction
):
    """What they reported does not count either: it is as if they had failed before a rung."""
    failed = Outcome(kind=FAILED, reason="It broke.")
    found = decisions(new_ledger(), pruner, diverged(), direction=direction)
    assert found == decisions(new_ledger(), pruner, failed, direction=direction, fresh=True)
    if pruner != "none":
        assert len({decision.prune for _, _, decision in found}) == 2


# --- rungs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pruner", "rungs"),
    [
        ("none", ()),
        ({"name": "median", "warmup_steps": 75}, (75, 85, 95)),
        ({"name": "percentile", "warmup_steps": 75}, (75, 85, 95)),
        ("asha", (4, 12, 36)),
        ("hyperband", (4, 12, 36)),
        ({"name": "hyperband", "min_steps": 10, "reduction_factor": 3}, (10, 30, 90)),
        ({"name": "patient", "wraps": "none"}, tuple(range(10, 100, 10))),
        ({"name": "patient", "wraps": "asha"}, (4, 10, 12, 20, 30, 36, 40, 50, 60, 70, 80, 90)),
    ],
)
def test_rungs_are_fixed_by_the_study(pruner, rungs):
    made = spec(search={"pruner": pruner})
    assert made.rungs() == rungs
    assert set(rungs) <= set(made.evaluation_steps())


ONE_CYCLE = {"name": "one_cycle", "pct_start": {"low": 0.1, "high": 0.45}}


@pytest.mark.parametrize(
    ("training", "schedule", "rungs"),
    [
        ({"steps": 300, "evaluate_every": 30}, "constant", (100,)),
        ({"steps": 100, "evaluate_every": 10}, "constant", (34,)),
        ({"steps": 100, "evaluate_every": 20}, "constant", (60,)),  # three evaluations
        ({"steps": 100, "evaluate_every": 40}, "constant", ()),
        ({"steps": 3}, "constant", ()),
        ({"steps": 4}, "constant", (3,)),
        ({"steps": 100}, {"name": "cosine", "warmup": [0.1, 0.5]}, (51,)),
        ({"steps": 100}, ["constant", ONE_CYCLE], (46,)),
        ({"steps": 100}, {"name": "cyclic", "cycles": [1, 4]}, (51,)),
        ({"steps": 100}, {"name": "linear", "warmup": {"low": 0.0, "high": 0.99}}, ()),
    ],
)
def test_the_default_has_one_rung_after_every_warmup_and_three_evaluations(
    training, schedule, rungs
):
    made = spec(training={"evaluate_every": None, **training}, space={"schedule": schedule})
    made = made.model_copy(update={"search": SearchTable()})
    assert made.search.pruner.name == "one_rung"
    assert made.rungs() == rungs
    horizon = made.training.steps
    for choice in made.space.schedule:
        params = {key: bounds(entry)[1] for key, entry in choice.entries() if key != "cyclic.mode"}
        if choice.name != "cyclic":
            last = warmup_steps({"schedule": choice.name, **params}, horizon)
            assert all(rung > last for rung in made.rungs())


def test_a_trial_that_competes_no_longer_is_not_counted():
    """A trial that diverges after it has reported and completed a rung."""
    rankings, trials = RungRankings(maximize=False, bracket=lambda _: None), []
    for number, value in enumerate((1.0, 2.0)):
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            intermediate_values={5: value},
            system_attrs={f"{RUNG}0": value},
        )
        trial.number = number
        rankings.update(trial)
        trials.append(trial)
    second = trials[1]
    assert rankings.at_step(second, 5) == rankings.at_rung(second, 0, 2.0) == (1, 1)
    rankings.remove(0)
    rankings.remove(99)  # unknown
    assert rankings.at_step(second, 5) == rankings.at_rung(second, 0, 2.0) == (0, 0)


@pytest.mark.longer
def test_the_better_half_goes_on_from_the_one_rung(ledger):
    study = study_of(ledger, "halving")
    search = Search(study, ledger)
    values = (4.0, 3.0, 5.0, 2.0, 6.0, 1.0, 2.5, 7.0)
    stopped = [decided(ledger, search, taken(ledger, study), 34, value) for value in values]
    assert stopped == [False, False, True, False, True, False, False, True]


@pytest.mark.parametrize(
    ("pruner", "first"),
    [
        ("asha", None),  # from a ninth
        ({"name": "asha", "min_steps": 12}, 12),
        ({"name": "hyperband", "min_steps": 33}, 33),
        ("median", 30),
        ({"name": "percentile", "warmup_steps": 60}, None),
        ({"name": "patient", "wraps": "asha"}, None),  # it is patient with three reports
        ("none", None),
        ("halving", None),
        ("one_rung", None),
    ],
)
def test_a_study_that_judges_early_is_warned_once(new_ledger, caplog, pruner, first):
    ledger = new_ledger()
    made = spec(
        training={"steps": 300, "evaluate_every": 30},
        search={"sampler": "random", "pruner": pruner},
    )
    study, created = submission.submit(ledger, made, WORKLOAD)
    assert created
    said = [record.message for record in caplog.records]
    assert len(said) == (first is not None)
    if first is not None:
        assert f"first stops trials at step {first} of 300" in said[0]
    caplog.clear()
    assert submission.submit(ledger, made, WORKLOAD) == (study, False)
    assert not caplog.records


def test_early_raw_rungs_of_schedules_that_differ_are_warned_of(ledger, caplog):
    """The message has the numbers; values of branches may be compared earlier."""
    schedules = {"schedule": ["constant", "cosine"]}
    made = spec(training={"steps": 300}, search={"pruner": "asha"}, space=schedules)
    submission.submit(ledger, made, WORKLOAD)
    (said,) = [record.message for record in caplog.records]
    assert "first stops trials at step 34 of 300" in said
    assert "0.18 at a ninth of the horizon, and 0.43 at a third" in said
    judged = spec(search={"pruner": "asha", "judge": "fast_forward"}, space=schedules)
    assert submission.early_pruning(judged) is None


@pytest.mark.parametrize("pruner", ["asha", "hyperband", {"name": "patient", "wraps": "asha"}])
def test_default_rungs_begin_at_a_ninth_but_in_earlier_studies(new_ledger, pruner):
    made = spec(training={"steps": 300}, search={"pruner": pruner})
    study, _ = submission.submit(new_ledger(), made, WORKLOAD)
    assert {34, 102} <= set(study.rungs)
    assert 12 not in study.rungs
    ledger = new_ledger()
    earlier = submit(ledger, training={"steps": 300}, search={"pruner": pruner})
    assert submission.submit(ledger, made, WORKLOAD) == (earlier, False)
    assert 12 in earlier.rungs


def test_a_study_keeps_the_pruner_that_it_was_submitted_with(new_ledger):
    """Such as the default of an earlier version, which its file did not name."""
    ledger = new_ledger()
    study = submit(ledger, search={"pruner": "asha"})
    unnamed = study.spec.model_copy(
        update={"search": SearchTable(sampler=study.spec.search.sampler)}
    )
    again, created = submission.submit(ledger, unnamed, WORKLOAD)
    assert (again.id, created) == (study.id, False)
    assert again.spec.search.pruner.name == "asha"
    narrow = unnamed.space.model_copy(update={"lr": 0.1})
    two, _ = submission.submit(ledger, unnamed.model_copy(update={"space": narrow}), WORKLOAD)
    assert (two.version, two.spec.search.pruner.name) == (2, "asha")
    named = SearchTable(sampler="random", pruner="halving")
    with pytest.raises(UsageError, match='was "asha", is now "halving"'):
        submission.submit(ledger, study.spec.model_copy(update={"search": named}), WORKLOAD)


@pytest.mark.parametrize("steps", [1, 2, 5, 27, 81, 100, 243, 1000])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_rungs_of_hyperband_are_those_of_all_its_brackets(steps, factor):
    """Where a trial of bracket b must be judged: from the rung b on, whatever bracket it is in."""
    made = spec(
        training={"steps": steps},
        search={"pruner": {"name": "hyperband", "reduction_factor": factor}},
    )
    theirs = HyperbandPruner(
        min_resource=made.search.pruner.first_rung(steps),
        max_resource=steps,
        reduction_factor=factor,
    )
    theirs.prune(optuna.create_study(), optuna.trial.create_trial(value=0.0))
    first = [one._min_resource * factor**one._min_early_stopping_rate for one in theirs._pruners]
    expected = {rung for start in first for k in range(20) if (rung := start * factor**k) < steps}
    assert set(made.rungs()) == expected


@pytest.mark.longer
def test_hyperband_spreads_trials_over_its_brackets(ledger):
    study = study_of(ledger, "hyperband", trials=40)
    search, found = Search(study, ledger), []
    for _ in range(40):
        held = taken(ledger, study)
        reasons = [search.decide(held.trial.number, step, 1.0).reason for step in study.rungs]
        found.append(sum("prunes from" in reason for reason in reasons))
        ledger.finish(held.lease, completed(1.0))
    counts = np.bincount(found)  # by how many rungs lie below the bracket's first
    assert len(counts) == 4
    assert counts.min() > 0


# --- sentences --------------------------------------------------------------------------------


def sentence(ledger, pruner, reports, step=30, *, direction="minimize"):
    """Complete three trials with 1, 2 and 4 everywhere; give what is said of a fourth one."""
    study = submit(
        ledger,
        study={"name": "s", "direction": direction},
        search={"pruner": pruner},
    )
    search = Search(study, ledger)
    for value in (1.0, 2.0, 4.0):
        held = taken(ledger, study)
        for rung in study.rungs:
            attrs = {"completed_rung_0": value}
            ledger.report(held.lease, curves.empty(), went_on(rung, value), attrs=attrs)
        ledger.finish(held.lease, completed(value))
    held = taken(ledger, study)
    for rung, value in reports.items():
        ledger.report(held.lease, curves.empty(), went_on(rung, value), attrs={})
    return search.decide(3, step, 3.0).reason


AT_30 = "val_loss was 3 at step 30, where 2 of the 3 other trials there were lower"
SENTENCES = [
    (
        {"name": "median", "startup_trials": 1},
        {},
        f"Pruned by median: {AT_30}.",
    ),
    (
        {"name": "median", "startup_trials": 1},
        {20: 1.5},
        f"Went on: {AT_30}.",
    ),
    (
        {"name": "percentile", "startup_trials": 1, "percentile": 40.0},
        {},
        f"Pruned by percentile: {AT_30} and only the best 40 percent go on.",
    ),
    (
        {"name": "patient", "wraps": MEDIAN, "patience": 0},
        {10: 2.7, 20: 2.8},
        (
            f"Pruned by patient and median: {AT_30}; its last report was higher than its best "
            "one before."
        ),
    ),
    (
        {"name": "patient", "wraps": "none", "patience": 1, "min_delta": 0.1},
        {10: 2.7, 20: 3.5},
        (
            f"Pruned by patient: {AT_30}; its last 2 reports were higher than its best one "
            "before by more than 0.1."
        ),
    ),
    (
        {"name": "patient", "wraps": MEDIAN, "patience": 0},
        {10: 5.0, 20: 4.0},
        f"Went on: {AT_30}.",
    ),
]


@pytest.mark.longer
@pytest.mark.parametrize(("pruner", "reports", "said"), SENTENCES)
def test_a_decision_says_what_happened(ledger, pruner, reports, said):
    assert sentence(ledger, pruner, reports) == said


@pytest.mark.longer
@pytest.mark.parametrize(
    ("min_steps", "reduction_factor", "said"),
    [  # the bracket follows from the study's name and the trial's number
        (5, 2, "Went on: val_loss was 3 at step 10, and bracket 3 prunes from step 40 on."),
        (10, 3, "Pruned by hyperband: val_loss was 3 at step 10, where 1 of the 2 other trials of bracket 0 there were lower."),  # noqa: E501
    ],
)  # fmt: skip
def test_a_decision_of_hyperband_names_the_bracket(ledger, min_steps, reduction_factor, said):
    options = {"min_steps": min_steps, "reduction_factor": reduction_factor}
    assert sentence(ledger, {"name": "hyperband", **options}, {}, 10) == said


# --- in a study file --------------------------------------------------------------------------

FILE = """
study = { name = "x" }
workload = { factory = "studies.digits:mlp" }
training = { steps = 100 }
space = { lr = 0.1, schedule = "cosine", optimizer = "adamw" }
budget = { trials = 9 }
"""


@pytest.mark.longer
@pytest.mark.parametrize("name", get_args(PrunerName))
def test_a_pruner_is_named_alone(name):
    pruner = parse(FILE, "x.toml", [f"search.pruner={name}"]).search.pruner
    assert pruner.name == name
    assert f'"{name}"' in json.dumps(json_schema()["$defs"]["SearchTable"])


def test_what_a_pruner_wraps_has_options_too():
    wraps = "{ name = 'asha', min_steps = 7 }"
    override = f"search.pruner={{ name = 'patient', wraps = {wraps}, patience = 3 }}"
    pruner = parse(FILE, "x.toml", [override]).search.pruner
    assert (pruner.wraps.name, pruner.wraps.min_steps, pruner.patience) == ("asha", 7, 3)


MISTAKES = """
search.pruner=percentil
    [search] pruner: expected one of asha, median, none, percentile, hyperband, patient, halving,
    one_rung, got "percentil"; did you mean percentile?

search.pruner={name='percentile', percentile=100}
    [search.pruner] percentile: expected a number below 100, got 100

search.pruner={name='percentile', warmup_steps=100}
    [search.pruner] warmup_steps: expected a number below the 100 of [training] steps, so that
    there is a rung, got 100

search.pruner={name='hyperband', min_steps=200}
    [search.pruner] min_steps: expected a number below the 100 of [training] steps, so that
    there is a rung, got 200

search.pruner={name='hyperband', reduction_factor=1}
    [search.pruner] reduction_factor: expected a number of at least 2, got 1

search.pruner={name='patient', patience=8}
    [search.pruner] patience: expected a number of at most 7, as a trial reports 9 times, got 8

search.pruner={name='patient', wraps='asah'}
    [search.pruner] wraps: expected one of asha, hyperband, median, percentile, none, got "asah";
    did you mean asha?

search.pruner={name='patient', wraps={name='patient'}}
    [search.pruner] wraps: expected one of asha, hyperband, median, percentile, none, got "patient"

search.pruner={name='patient', wraps={name='asha', min_steps=0}}
    [search.pruner.wraps] min_steps: expected a number of at least 1, got 0

search.pruner={name='patient', wraps={name='asha', min_steps=100}}
    [search.pruner.wraps] min_steps: expected a number below the 100 of [training] steps, so that
    there is a rung, got 100

search.pruner={name='patient', wraps={name='median', patience=1}}
    [search.pruner.wraps] patience: expected one of name, startup_trials, warmup_steps, got an
    unknown key; patience is a parameter of patient

search.pruner={name='patient', wraps=3}
    [search.pruner] wraps: expected a name or a table, got 3
"""


@pytest.mark.parametrize(("override", "line"), cases(MISTAKES))
def test_a_mistake_in_a_pruner_is_named(override, line):
    with pytest.raises(StudyFileError) as caught:
        parse(FILE, "x.toml", [override])
    assert caught.value.problems == [f"x.toml: {line}"]


def test_patience_needs_two_reports():
    with pytest.raises(StudyFileError) as caught:
        parse(FILE, "x.toml", ["search.pruner=patient", "training.steps=2"])
    (line,) = caught.value.problems
    assert line.startswith("x.toml: [training] steps: expected enough steps for two reports")
