"""Every sampler: what it draws, what divergence means to it, and that a fresh one goes on."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
import pytest
from helpers import (
    WIDE,
    cases,
    claim,
    completed,
    decided,
    diverged,
    drawn,
    history,
    mirror_of,
    pruned,
    submit,
    went_on,
)
from optuna.trial import TrialState
from scipy.stats import qmc

from tuner.config.reading import json_schema, parse
from tuner.config.search import AnyPruner, AnySampler, PrunerName, SamplerName
from tuner.core import curves
from tuner.core.errors import StudyFileError
from tuner.ledger import Ledger, StudyRecord
from tuner.search import Search
from tuner.search.cma_state import restored
from tuner.search.mirror import LARGEST
from tuner.search.samplers import sampler_for
from tuner.search.space import shared_distributions

SAMPLERS: dict[str, dict[str, Any]] = {  # with so few trials at random that the rest are not
    "tpe": {"name": "tpe", "startup_trials": 4},
    "random": {"name": "random"},
    "grid": {"name": "grid"},
    "auto": {"name": "auto"},
    "gp": {"name": "gp", "startup_trials": 4},
    "optuna_gp": {"name": "optuna_gp", "startup_trials": 4},
    "qmc": {"name": "qmc"},
    "cmaes": {"name": "cmaes", "startup_trials": 1, "population": 4},
}
LEARNING = ("tpe", "gp", "optuna_gp", "cmaes")
OPTUNAS = {
    "tpe": {"name": "tpe", "startup_trials": 4, "start": "random"},
    "optuna_gp": SAMPLERS["optuna_gp"],
    "cmaes": SAMPLERS["cmaes"],
}
RATES = {"lr": {"low": 1e-4, "high": 10.0}}


def study_of(ledger: Ledger, sampler: str, trials: int = 40, **overrides: Any) -> StudyRecord:
    """Submit a study with a space that the sampler can search."""
    space = dict(overrides.pop("space", WIDE))
    if sampler == "grid":
        rates = np.geomspace(1e-4, 10.0, trials).tolist()
        space = {"lr": rates, "schedule": "constant", "optimizer": "sgd"}
    search = {"sampler": SAMPLERS[sampler], **overrides.pop("search", {})}
    return submit(ledger, space=space, search=search, budget={"trials": trials}, **overrides)


def test_every_sampler_is_tested_here():
    others = {"listed", "nsga2"}  # the one draws nothing, the other is in test_objectives
    assert {*SAMPLERS, *others} == set(get_args(SamplerName))


# --- where trials diverge ---------------------------------------------------------------------


def rates_drawn(ledger, sampler, *, direction, pruner, seed, limit=0.1, trials=20):
    """Run a study in which rates above `limit` diverge and 0.03 is best; give all its rates."""
    study = study_of(
        ledger,
        sampler,
        trials,
        study={"name": "s", "direction": direction, "seed": seed},
        space=RATES,
        search={"pruner": pruner},
    )
    sign = 1 if direction == "minimize" else -1
    search, rates = Search(study, ledger), []
    for _ in range(trials):
        held, made = drawn(ledger, study, search)
        lr = float(made.params["lr"])
        rates.append(lr)
        loss = sign * (1 + (math.log10(lr) + 1.5) ** 2)
        if lr > limit:
            ledger.finish(held.lease, diverged())
        elif not any(
            decided(ledger, search, held, step, loss * (1 + 10 / step)) for step in study.rungs
        ):
            ledger.finish(held.lease, completed(loss))
    return np.array(rates)


@pytest.mark.thorough
@pytest.mark.slow  # whole searches
@pytest.mark.parametrize(("direction", "pruner"), [("minimize", "asha"), ("maximize", "none")])
@pytest.mark.parametrize("sampler", LEARNING)
def test_a_sampler_that_learns_turns_away_from_where_trials_diverge(
    new_ledger, sampler, direction, pruner
):
    """Two decades of five diverge: 40 percent of random draws, at any time."""
    trials = {"tpe": 60, "gp": 24, "optuna_gp": 24, "cmaes": 30}[sampler]
    rates = rates_drawn(
        new_ledger(), sampler, direction=direction, pruner=pruner, seed=1, trials=trials
    )
    assert np.mean(rates[-10:] > 0.1) <= 0.2


@pytest.mark.slow  # whole searches
@pytest.mark.parametrize("sampler", ["random", "grid", "qmc"])
def test_a_sampler_that_does_not_learn_goes_on_as_if_nothing_had_diverged(new_ledger, sampler):
    kinds = {"direction": "minimize", "seed": 0}
    some = rates_drawn(new_ledger(), sampler, pruner="asha", **kinds)
    none = rates_drawn(new_ledger(), sampler, pruner="none", limit=math.inf, **kinds)
    assert some.tolist() == none.tolist()
    assert 0.3 < np.mean(some > 0.1) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_goes_on_when_all_its_trials_diverge(ledger, sampler):
    rates = rates_drawn(ledger, sampler, direction="minimize", pruner="asha", seed=0, limit=0)
    assert len(set(rates)) == len(rates)


@pytest.mark.longer
def test_what_samplers_that_learn_from_values_are_told(ledger):
    """A pruned trial is no better than the median, a diverged one worse than all others."""
    study = submit(ledger, search={"sampler": "gp"}, budget={"trials": 20})
    outcomes = [completed(1.0), completed(3.0), completed(5.0), pruned(2.0), pruned(9.0)]
    for outcome in (diverged(), *outcomes):
        held, _ = drawn(ledger, study, Search(study, ledger))
        if outcome.kind == "pruned":
            ledger.report(held.lease, curves.empty(), went_on(10, outcome.value), attrs={})
        ledger.finish(held.lease, outcome)
    claim(ledger, study)
    told = mirror_of(ledger, study).for_values()
    assert [trial.state for trial in told] == [TrialState.COMPLETE] * 6 + [TrialState.RUNNING]
    assert [trial.value for trial in told] == pytest.approx([9.8, 1, 3, 5, 3, 9, None])


@pytest.mark.parametrize(
    ("direction", "value", "penalty"),
    [
        ("minimize", None, None),  # nothing to be worse than
        ("minimize", 2.0, 4.0),  # one value alone has no spread
        ("maximize", 2.0, 0.0),
        ("minimize", 0.0, 1.0),
        ("minimize", sys.float_info.max, 2 * LARGEST),  # its variance would overflow
    ],
)
def test_divergence_is_worse_than_any_value(ledger, direction, value, penalty):
    study = submit(ledger, study={"name": "s", "direction": direction}, search={"sampler": "cmaes"})
    past = [diverged()] if value is None else [diverged(), completed(value)]
    history(ledger, study, past)
    assert mirror_of(ledger, study).for_values()[0].value == penalty


# --- the same again ---------------------------------------------------------------------------

PAST = [diverged(), completed(3.0), pruned(2.5), completed(1.0), completed(2.0), diverged()] * 2


@pytest.mark.thorough
@pytest.mark.slow  # whole searches
@pytest.mark.parametrize(
    ("sampler", "pruner"),
    list(zip(SAMPLERS, itertools.cycle(["asha", "hyperband"]), strict=False)),
)
def test_a_fresh_search_goes_on_exactly(new_ledger, sampler, pruner):
    """One study is run by one search, the other by a new one for every question."""
    runs = []
    for fresh in (False, True):
        ledger = new_ledger()
        study = study_of(ledger, sampler, 14, search={"pruner": pruner})
        kept, run = Search(study, ledger), []
        for number in range(14):
            held, made = drawn(ledger, study, Search(study, ledger) if fresh else kept)
            run.append((made.params, made.attrs))
            value = math.log10(float(made.params["lr"])) ** 2 + number / 100
            for step in study.rungs:
                search = Search(study, ledger) if fresh else kept
                run.append(decided(ledger, search, held, step, value))
                if run[-1]:
                    break
            else:
                ledger.finish(held.lease, completed(value) if number % 5 else diverged())
        runs.append(run)
    assert runs[0] == runs[1]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_reserved_trials_may_be_drawn_in_any_order(ledger, sampler):
    study = study_of(ledger, sampler)
    history(ledger, study, PAST)
    numbers = [claim(ledger, study).trial.number for _ in range(3)]
    one, other = Search(study, ledger), Search(study, ledger)
    first = {number: one.draw(number) for number in numbers}
    assert first == {number: other.draw(number) for number in reversed(numbers)}
    # of a process one point promises most, until a trial is known to try it
    if sampler not in {"auto", "gp", "optuna_gp"}:
        assert len({str(made.params) for made in first.values()}) == 3


CHILD = """
import json, sys
from tuner.ledger import database
from tuner.ledger import Ledger
from tuner.search import Search
ledger = Ledger(database.ledger_engine(sys.argv[1]))
drawn = {}
for study in ledger.studies():
    number = ledger.trials(study.id)[-1].number
    drawn[study.name] = [Search(study, ledger).draw(number).params, study.rungs]
print(json.dumps(drawn))
"""


@pytest.mark.thorough
@pytest.mark.slow
def test_another_process_draws_the_same(ledger, places):
    mine = {}
    for sampler in SAMPLERS:
        study = study_of(ledger, sampler, study={"name": sampler})
        history(ledger, study, PAST)
        number = claim(ledger, study).trial.number
        mine[sampler] = [Search(study, ledger).draw(number).params, list(study.rungs)]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, places.ledger]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert json.loads(told.stdout) == mine


@pytest.mark.longer
@pytest.mark.parametrize("sampler", OPTUNAS.values(), ids=str)
def test_draws_are_those_of_optuna_on_the_same_history(ledger, sampler):
    """Of completed trials, that is: of the others our samplers are told in their own way."""
    study = submit(ledger, space=RATES, search={"sampler": sampler}, budget={"trials": 40})
    plain = optuna.create_study(study_name="small")
    search = Search(study, ledger)
    for number in range(12):
        held, made = drawn(ledger, study, search)
        plain.sampler = sampler_for(study.spec, number)
        asked = plain.ask()
        assert asked.suggest_float("lr", 1e-4, 10.0, log=True) == made.params["lr"]
        asked.suggest_categorical("schedule", ["constant"])
        asked.suggest_categorical("optimizer", ["sgd"])
        value = abs(math.log10(float(made.params["lr"])) + 1.5)
        ledger.finish(held.lease, completed(value))
        plain.tell(asked, value)
        attrs = mirror_of(ledger, study).trial(number).system_attrs
        assert attrs == plain.trials[number].system_attrs


# --- qmc --------------------------------------------------------------------------------------


@pytest.mark.longer
@pytest.mark.parametrize("sequence", ["sobol", "halton"])
@pytest.mark.parametrize("scramble", [True, False])
def test_a_qmc_trial_gets_the_point_of_its_number(ledger, sequence, scramble):
    sampler = {"name": "qmc", "sequence": sequence, "scramble": scramble}
    space = {
        **RATES,
        "optimizer": {"name": "sgd", "momentum": {"low": 0.0, "high": 0.5, "log": False}},
    }
    study = submit(
        ledger,
        study={"name": "s", "seed": 7},
        space=space,
        search={"sampler": sampler},
        budget={"trials": 20},
    )  # fmt: skip
    engine = {"sobol": qmc.Sobol, "halton": qmc.Halton}[sequence]
    points = engine(2, scramble=scramble, seed=7).random(16)  # [trial, coordinate]
    numbers = [claim(ledger, study).trial.number for _ in range(16)]
    for number in reversed(numbers):
        params = Search(study, ledger).draw(number).params
        assert math.log10(float(params["lr"])) == pytest.approx(points[number, 0] * 5 - 4)
        assert params["sgd.momentum"] == pytest.approx(points[number, 1] / 2)


@pytest.mark.longer
def test_qmc_leaves_no_gaps(ledger):
    """Of 16 points, one lies in every sixteenth of the rates, whatever their schedules."""
    study = study_of(ledger, "qmc", 16)
    search = Search(study, ledger)
    params = [drawn(ledger, study, search)[1].params for _ in range(16)]
    sixteenths = [int((math.log10(float(one["lr"])) + 4) / 4 * 16) for one in params]
    assert sorted(sixteenths) == list(range(16))
    assert {one["schedule"] for one in params} == {"constant", "cosine", "step"}


# --- cmaes ------------------------------------------------------------------------------------


def test_cmaes_searches_what_every_trial_has(ledger):
    study = study_of(ledger, "cmaes")
    assert list(shared_distributions(study.spec.space)) == ["lr"]
    one = submit(
        ledger,
        study={"name": "one schedule"},
        space={
            "lr": [0.1, 0.2],
            "schedule": {"name": "cosine", "final": {"low": 0.0, "high": 0.1}},
            "optimizer": ["sgd", {"name": "adamw", "beta1": {"low": 0.8, "high": 0.9}}],
        },
    )
    assert list(shared_distributions(one.spec.space)) == ["lr", "cosine.final"]


@pytest.mark.longer
def test_cmaes_keeps_going_when_schedules_come_and_go(ledger):
    """Optuna's own draws at random for good once trials have fewer ranges in common."""
    study = study_of(ledger, "cmaes", space={**WIDE, **RATES})
    search, rates = Search(study, ledger), []
    for _ in range(40):
        held, made = drawn(ledger, study, search)
        rates.append(math.log10(float(made.params["lr"])))
        ledger.finish(held.lease, completed((rates[-1] + 1.5) ** 2))
    assert np.abs(np.array(rates[-8:]) + 1.5).max() < 0.3


@pytest.mark.longer
def test_the_state_of_cmaes_is_in_the_ledger(ledger):
    study = study_of(ledger, "cmaes", search={"pruner": {"name": "asha", "min_steps": 10}})
    history(ledger, study, [completed(float(value)) for value in range(5)])
    search = Search(study, ledger)
    held, _ = drawn(ledger, study, search)
    decided(ledger, search, held, 10, 1.0)
    keys = mirror_of(ledger, study).trial(5).system_attrs.keys()
    assert {"cma:generation", "cma:optimizer:0", "completed_rung_0"} <= keys


def test_a_state_that_is_not_of_cmaes_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    with pytest.raises(pickle.UnpicklingError, match="not part of CMA-ES"):
        restored(pickle.dumps(Trap()))
    assert not (tmp_path / "trapped").exists()


# --- in a study file --------------------------------------------------------------------------

FILE = """
study = { name = "x" }
workload = { factory = "studies.digits:mlp" }
training = { steps = 300 }
space = { lr = { low = 1e-4, high = 1.0 }, schedule = "cosine", optimizer = "adamw" }
budget = { trials = 9 }
"""


@pytest.mark.longer
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_is_named_alone_or_with_its_options(sampler):
    rate = ["space.lr=0.1"] if sampler == "grid" else []
    bare = parse(FILE, "x.toml", [f"search.sampler={sampler}", *rate]).search.sampler
    assert bare.name == sampler
    options = ", ".join(f"{key} = {value!r}" for key, value in SAMPLERS[sampler].items())
    full = parse(FILE, "x.toml", [f"search.sampler={{ {options} }}", *rate]).search.sampler
    assert full.model_dump(exclude_unset=True) == SAMPLERS[sampler]
    assert f'"{sampler}"' in json.dumps(json_schema()["$defs"]["SearchTable"])


MISTAKES = """
search.sampler=cma
    [search] sampler: expected one of auto, tpe, random, grid, gp, optuna_gp, qmc, cmaes,
    nsga2, listed, custom, got "cma"; did you mean cmaes?

search.sampler={name='gp', startup_trials=0}
    [search.sampler] startup_trials: expected a number of at least 1, got 0

search.sampler={name='cmaes', population=3}
    [search.sampler] population: expected a number of at least 4, got 3

search.sampler={name='qmc', sequence='sobl'}
    [search.sampler] sequence: expected "sobol" or "halton", got "sobl"; did you mean sobol?

search.sampler={name='qmc', scramble=1}
    [search.sampler] scramble: expected true or false, got 1

search.sampler={name='qmc', population=9}
    [search.sampler] population: expected one of name, sequence, scramble, got an unknown key;
    population is a parameter of cmaes and nsga2
"""


@pytest.mark.parametrize(("override", "line"), cases(MISTAKES))
def test_a_mistake_in_a_sampler_is_named(override, line):
    with pytest.raises(StudyFileError) as caught:
        parse(FILE, "x.toml", [override])
    assert caught.value.problems == [f"x.toml: {line}"]


def test_cmaes_needs_a_range():
    with pytest.raises(StudyFileError) as caught:
        parse(FILE, "x.toml", ["search.sampler=cmaes", "space.lr=0.1"])
    (line,) = caught.value.problems
    assert line == (
        'x.toml: [space] lr: expected a range, as the sampler is "cmaes", which searches numbers '
        "alone, got 0.1"
    )


# --- in the documentation ---------------------------------------------------------------------


def sections():
    """Read the page on search: what stands below each name."""
    page = (Path(__file__).parent.parent / "docs" / "search.md").read_text()
    parts = re.split(r"^### (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_sampler_and_pruner_is_documented_with_its_options():
    found = sections()
    tables = [get_args(get_args(union)[0]) for union in (AnySampler, AnyPruner)]
    for table in itertools.chain.from_iterable(tables):
        (name,) = get_args(table.model_fields["name"].annotation)
        for key, field in table.model_fields.items():
            if key == "name":
                continue
            row = re.search(rf"^\| `{key}` \|.*\| (.+) \|$", found[name], re.MULTILINE)
            assert row, f"{name} has no row for {key}"
            if isinstance(field.default, bool | int | float | str):
                default = json.dumps(field.default)
                assert row[1].strip("`") in {default, default.removesuffix(".0")}
    for name in get_args(SamplerName):
        assert "Divergence: " in found[name]
    assert set(found) == {*get_args(SamplerName), "custom", *get_args(PrunerName)}
