"""A space holds any hyperparameter: it is drawn, stored, gridded and read by plain Optuna."""

from __future__ import annotations

import html
import json
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from helpers import claim, completed, diverged, drawn, rows, spec, submit
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from pydantic import ValidationError

from tuner.analysis import ranking
from tuner.analysis.effects import effects
from tuner.config import Space, StudySpec, settings_of
from tuner.config.constraints import Constraint
from tuner.config.grid import Grid
from tuner.config.parameters import has
from tuner.config.reading import changed, parse
from tuner.core.errors import StudyFileError
from tuner.operations import export
from tuner.report import page, sentences
from tuner.report.findings import gather
from tuner.search import Search
from tuner.search.mirror import frozen

BASE: dict[str, Any] = {"lr": {"low": 1e-3, "high": 1.0}, "schedule": "cosine", "optimizer": "sgd"}
BY_EPOCHS: dict[str, Any] = {
    "steps": None, "epochs": 6, "evaluate_every": None, "batch_size": 64
}  # fmt: skip
FILE = """
study = { name = "any" }
workload = { factory = "studies.digits:mlp" }
training = { epochs = 3 }
space = { lr = 0.1, schedule = "cosine", optimizer = "adamw" }
budget = { trials = 4 }
"""


def problem(*overrides: str, text: str = FILE) -> str:
    """Return the only mistake of a study file."""
    with pytest.raises(StudyFileError) as caught:
        parse(text, "x.toml", overrides)
    (line,) = caught.value.problems
    return line.removeprefix("x.toml: ")


# --- any space --------------------------------------------------------------------------------

words = st.sampled_from(["relu", "gelu", "silu", "tanh"])
small = st.floats(1e-3, 0.9).map(lambda number: float(f"{number:.3g}"))


def lists(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=1, max_size=3, unique=True)


def ranges(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    pairs = st.tuples(values, values).filter(lambda pair: pair[0] < pair[1])
    return st.builds(lambda pair, log: {"low": pair[0], "high": pair[1], "log": log},
                     pairs, st.booleans())  # fmt: skip


@st.composite
def spaces(draw: st.DrawFn, *, finite: bool = False) -> dict[str, Any]:
    """Spaces with arguments, settings, conditions and a constraint."""
    counts = st.integers(1, 300)
    forms = [lists(words), lists(st.booleans()), lists(counts), lists(small), words, counts]
    forms += [] if finite else [ranges(counts), ranges(small)]
    entry = st.one_of(forms)
    kind = draw(lists(words).filter(lambda values: len(values) > 1))
    arguments: dict[str, Any] = {"kind": kind}
    for name in draw(st.lists(st.sampled_from("abcd"), unique=True)):
        raw = draw(entry)
        if draw(st.booleans()):
            raw = raw if isinstance(raw, dict) else (
                {"values": raw} if isinstance(raw, list) else {"value": raw}
            )  # fmt: skip
            when = {"kind": draw(st.sampled_from(kind))}
            raw = {**raw, "when": when if draw(st.booleans()) else {"optimizer": "adamw"}}
        arguments[name] = raw
    if draw(st.booleans()):  # nested: it exists where another conditional one does
        arguments["outer"] = {"values": [1, 2], "when": {"kind": kind[0]}}
        arguments["inner"] = {"values": [True, False], "when": {"outer": 2}}
    sizes = draw(st.lists(st.sampled_from([8, 16, 32]), min_size=1, unique=True))
    space: dict[str, Any] = {
        "lr": [0.1, 0.2] if finite else BASE["lr"],
        "schedule": ["constant", "cosine"],
        "optimizer": ["sgd", {"name": "adamw", "beta1": [0.8, 0.9]}],
        "batch_size": sizes,
        "accumulate": [1, 2],
        "arguments": arguments,
    }
    if draw(st.booleans()):
        space["constraints"] = [f"batch_size * accumulate <= {2 * min(sizes)}"]
    return space


def assert_allowed(space: Space, params: Any) -> None:
    """Every parameter whose condition holds is there, no other, and the constraints hold."""
    assert space.missing(params) == {}
    for one in space.parameters():
        assert (one.name in params) == one.exists(params), one.name
        assert one.name not in params or has(one.entry, params[one.name])
    assert space.satisfies(params)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(raw=spaces(), sampler=st.sampled_from(["random", "tpe", "gp", "optuna_gp", "qmc", "cmaes"]))
def test_any_space_is_drawn_stored_resumed_and_read_by_plain_optuna(
    new_ledger: Any, raw: dict[str, Any], sampler: str
) -> None:
    ledger = new_ledger()
    startup = {"startup_trials": 2} if sampler not in ("random", "qmc") else {}
    study = submit(
        ledger, space=raw, training=BY_EPOCHS, search={"sampler": {"name": sampler, **startup}}
    )
    study = ledger.study(study.name)
    space = study.spec.space
    assert space == Space.model_validate(raw), "as submitted"
    for value in range(6):
        held, made = drawn(ledger, study, Search(study, ledger))  # each in a new process
        assert_allowed(space, made.params)
        ledger.finish(held.lease, diverged() if value == 2 else completed(float(value)))
    for trial in ledger.trials(study.id):
        assert trial.params is not None
        record = frozen(trial, study.spec)
        assert record.state in (TrialState.COMPLETE, TrialState.PRUNED)
        for name, value in record.params.items():
            assert value == trial.params[name], "recorded plainly"
            distribution = record.distributions[name]
            assert distribution._contains(distribution.to_internal_repr(value))
            if isinstance(distribution, CategoricalDistribution):
                assert value in distribution.choices


@pytest.mark.thorough
@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(raw=spaces())
def test_any_space_is_reported_and_exported(
    new_ledger: Any, tmp_path_factory: pytest.TempPathFactory, raw: dict[str, Any]
) -> None:
    """Written as the page with its pictures: a name or a value that no chart expects is here."""
    ledger, folder = new_ledger(), tmp_path_factory.mktemp("report")
    study = submit(ledger, space=raw, training=BY_EPOCHS)
    search = Search(study, ledger)
    for value in range(8):
        held, _ = drawn(ledger, study, search)
        outcome = diverged() if value == 2 else completed(float(value))
        ledger.finish(held.lease, outcome, chunk=rows(0, 4, evaluate_every=2))
    found = gather(ledger, study)
    text = html.unescape(page.write_study(found, folder).page.read_text())
    best = ledger.best(study)
    assert best is not None
    params = best.params or {}
    assert ranking.in_short(params) in text
    shown = [
        f"{name} {params[name]}" for name in found.varied() if isinstance(params.get(name), str)
    ]
    assert all(one in text for one in shown)
    table = export.trials(ledger, study)
    for name in {key for trial in found.trials for key in trial.params or {}}:
        exists = [name in (trial.params or {}) for trial in found.trials]
        assert table[f"params_{name}"].notna().tolist() == exists, name
    export.export(ledger, study, folder, "csv")


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(raw=spaces(finite=True))
def test_a_grid_of_any_space_has_each_combination_once(raw: dict[str, Any]) -> None:
    space = Space.model_validate(raw)
    grid = Grid(space)
    chosen = [grid.cell(index) for index in range(0, len(grid), -(-len(grid) // 200))]
    for params in chosen:
        assert_allowed(space, params)
    assert len({json.dumps(params) for params in chosen}) == len(chosen)
    indices = [grid.index(params) for params in chosen]
    assert indices == list(range(0, len(grid), -(-len(grid) // 200)))
    everything = {json.dumps(space.draw(random.Random(seed))) for seed in range(50)}
    assert all(grid.index(json.loads(params)) is not None for params in everything)


@pytest.mark.longer
def test_the_order_of_a_list_of_numbers_does_not_matter_to_samplers(new_ledger: Any) -> None:
    found = []
    for sizes in ([64, 16, 32], [16, 32, 64]):
        ledger = new_ledger()
        study = submit(ledger, space={**BASE, "arguments": {"width": sizes}}, budget={"trials": 20})
        params = []
        for value in range(14):
            held, made = drawn(ledger, study, Search(study, ledger))
            params.append(dict(made.params))
            ledger.finish(held.lease, completed(float(value)))
        found.append(params)
    assert found[0] == found[1]


# --- conditions and constraints ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ({"a": {"values": [1, 2], "when": {"b": 1}}, "b": {"values": [1, 2], "when": {"a": 1}}},
         "a condition that does not depend on this parameter, got a -> b -> a"),
        ({"a": {"value": 1, "when": {"nothing": 1}}}, "a condition on one of lr"),
        ({"a": {"value": 1, "when": {"lr": 1}}}, "a condition on a parameter with a list"),
        ({"a": {"value": 1, "when": {"optimizer": "adam"}}},
         "a condition on optimizer = one of sgd, got adam"),
        ({"a": {"values": [1, 2], "when": {"k": "x"}}, "k": ["x", "y"],
          "b": {"value": 1, "when": {"a": 1, "k": "y"}}},
         "a condition that can hold, with one value of k"),
        ({"lr": [1]}, "a name that tuner does not use itself"),
        ({"a": {"low": 1}}, "a table with low and high"),
        ({"a": {"low": 2, "high": 1}}, "a range whose low is below its high"),
        ({"a": [True, 1]}, "each value once"),
        ({"a": [[1]]}, "a number, a text, true or false"),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_drawn_is_refused(space: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Space.model_validate({**BASE, "arguments": space})
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("text", "params", "holds"),
    [
        ("a * b <= 512", {"a": 64, "b": 8}, True),
        ("a * b <= 512", {"a": 64, "b": 16}, False),
        ("a * b <= 512", {"a": 1024}, True),  # a trial without b
        ("1 < a <= 2 or not b", {"a": 3, "b": False}, True),
        ("kind in ['x', 'y'] and log2(a) == 5", {"kind": "x", "a": 32}, True),
        ("sgd.momentum < 0.5", {"sgd.momentum": 0.9}, False),
        ("1 / a > 0", {"a": 0}, False),
        ("a ** 10000 > 0", {"a": 10}, False),
        ("min(a, b) >= 1", {"a": 1, "b": 2}, True),
    ],
)
def test_a_constraint_is_calculated(text: str, params: dict[str, Any], holds: bool) -> None:
    assert Constraint(text).holds(params) is holds


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "a.b.c", "lambda: 1", "[x for x in a]", "a[0]", "f'{a}'", "a <",
     "print(a)",
     "a if b else c", "(a := 1)", "'x'.upper()", "1 " * 200, "min()", "a @ b", "a << 1000"],
)  # fmt: skip
def test_a_constraint_has_only_what_is_calculated_here(text: str) -> None:
    with pytest.raises(ValueError, match="an expression"):
        Constraint(text)


@pytest.mark.longer
@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("space.constraints=['widht > 1']", "expected parameters of the space"),
        ("space.constraints=['lr > 1']", "none of 2000 satisfies this one, got lr > 1"),
        ("space.constraints=['lr > schedule']", "a comparison of like with like"),
        ("training.steps=5", "[training] epochs: expected nothing, as steps is the budget"),
        ("space.rates.head_lr=0.1", "a factory has one rate"),
        ("workload.arguments.hidden=5", "[workload.arguments] hidden: expected nothing, as"),
        ("training.batch_size=5", "[training] batch_size: expected nothing, as [space]"),
        ("space.batch_size=0", "a whole number of at least 1, a list of them, or a range, got 0"),
    ],
)
def test_contradictions_have_their_line(override: str, line: str) -> None:
    text = FILE.replace("optimizer =", "batch_size = 32, arguments = { hidden = 8 }, optimizer =")
    assert line in problem(override, text=text)


def test_steps_are_refused_where_the_batch_size_is_searched() -> None:
    text = FILE.replace("epochs = 3", "steps = 3").replace("lr =", "batch_size = [8, 16], lr =")
    assert problem(text=text) == (
        "[training] steps: expected epochs or examples instead, as the batch size is searched: "
        "with equal steps, a larger batch sees more data, and would win by that alone, got 3"
    )


def test_a_train_function_needs_whole_batch_sizes_for_epochs() -> None:
    text = FILE.replace("factory", "train")
    assert "or an argument batch_size, from which" in problem(text=text)
    text = text.replace("lr =", "arguments = { batch_size = { low = 0.5, high = 2.0 } }, lr =")
    with pytest.raises(StudyFileError) as caught:
        parse(text, "x.toml")
    assert len(caught.value.problems) == 2
    assert "whole numbers of at least 1, as the budget of a trial is epochs" in str(caught.value)


def test_another_unit_of_the_budget_is_a_change() -> None:
    by_steps = parse(FILE, "x.toml", ["training={ steps = 30 }"])
    assert changed(by_steps, parse(FILE, "x.toml")) == [
        "[training] steps: was 30, is now nothing",
        "[training] epochs: was nothing, is now 3",
    ]


def test_a_grid_is_counted_before_it_is_built() -> None:
    wide = ", ".join(f"a{n} = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]" for n in range(30))
    text = FILE.replace("lr =", f"arguments = {{ {wide} }}, lr =")
    assert problem("search.sampler=grid", text=text) == (
        "[search] sampler: expected a grid of at most 1,000,000 combinations, as the sampler is "
        f'"grid", got {10**30:,}'
    )


# --- the budget of a trial --------------------------------------------------------------------


def study(**training: Any) -> StudySpec:
    return spec(training={"steps": None, "evaluate_every": None, **training})


def test_epochs_and_examples_become_steps_of_each_trial() -> None:
    by_epochs = study(epochs=6, evaluate_every=2)
    small, large = (settings_of(by_epochs, {"batch_size": size}, 100) for size in (10, 30))
    assert (small.steps, large.steps) == (60, 18), "an incomplete last batch is left out"
    assert small.evaluation_steps == (0, 20, 40, 60)
    assert large.evaluation_steps == (0, 6, 12, 18)
    by_examples = study(examples=1000, evaluate_every=250)
    small, large = (settings_of(by_examples, {"batch_size": size}, 100) for size in (8, 64))
    assert (small.steps, large.steps) == (125, 16)
    assert large.evaluation_steps == (0, 4, 8, 12, 16)


def test_rungs_of_different_batch_sizes_are_at_the_same_place() -> None:
    made = spec(
        training={"steps": None, "epochs": 9, "evaluate_every": 1},
        search={"pruner": {"name": "asha", "min_steps": 1}},
    )
    assert made.rungs() == (1, 3)
    for size, per_epoch in ((10, 10), (50, 2)):
        settings = settings_of(made, {"batch_size": size}, 100)
        assert settings.rungs == {per_epoch: 1, 3 * per_epoch: 3}


@pytest.mark.longer
def test_a_trial_is_claimed_before_it_is_drawn(ledger: Any) -> None:
    """And its parameters satisfy the constraints although most draws do not."""
    narrow = {"constraints": ["a + b + c <= 4"], "arguments": {n: [1, 2, 3, 4] for n in "abc"}}
    study = submit(ledger, space={**BASE, **narrow})
    for _ in range(5):
        held = claim(ledger, study)
        params = Search(study, ledger).draw(held.trial.number).params
        assert sum(params[name] for name in "abc") <= 4


@pytest.mark.slow
def test_what_mattered_is_told_from_what_did_not(ledger: Any) -> None:
    arguments = {"width": [1, 2, 3, 4], "kind": ["a", "b"], "noise": {"low": 0.0, "high": 1.0}}
    study = submit(
        ledger, space={**BASE, "arguments": arguments}, search={"sampler": "random"},
        budget={"trials": 40},
    )  # fmt: skip
    search = Search(study, ledger)
    for _ in range(40):
        held, made = drawn(ledger, study, search)
        value = float(made.params["width"]) + 10.0 * (made.params["kind"] == "b")
        ledger.finish(held.lease, completed(value))
    found = effects(study, ledger.trials(study.id))
    width, kind, noise = (
        next(one for one in found if one.name == name) for name in ("width", "kind", "noise")
    )
    assert (kind.label, kind.significant) == ("a", True)
    assert width.significant
    assert width.high < 0, "smaller was better"
    assert not noise.significant
    assert sentences.effect(kind).startswith("kind mattered: a was better (")


@pytest.mark.slow
def test_a_sampler_that_repeats_what_did_well_makes_nothing_matter() -> None:
    """Of studies by tpe: what has an effect is found, and what has none seldom seems to."""
    space = {"real": [1, 2, 3, 4], "two": [0, 1], "label": ["a", "b", "c"]}
    study_spec = spec(space={**BASE, "lr": {"low": 1e-4, "high": 1.0}, "arguments": space})
    study = SimpleNamespace(spec=study_spec)
    studies, found = 20, Counter[str]()
    for seed in range(studies):
        chance = np.random.default_rng(seed)
        tpe = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        trials = []
        for number in range(40):
            asked = tpe.ask()
            params = {
                "lr": asked.suggest_float("lr", 1e-4, 1.0, log=True),
                "real": asked.suggest_int("real", 1, 4),
                "two": asked.suggest_int("two", 0, 1),
                "label": asked.suggest_categorical("label", ["a", "b", "c"]),
            }
            value = abs(np.log10(params["lr"]) + 2) + 0.15 * params["real"]
            value += 0.05 * chance.standard_normal()
            tpe.tell(asked, value)
            trials.append(
                SimpleNamespace(
                    number=number,
                    state="completed",
                    value=value,
                    params={**params, "optimizer": "sgd"},
                )
            )
        found.update(one.name for one in effects(study, trials) if one.significant)
    assert found["real"] == studies
    assert found["two"] + found["label"] <= 6, found  # 2 are expected by chance
