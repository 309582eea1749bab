"""Draws are repeatable and in the space; decisions are Optuna's own, over the ledger's history."""

import itertools
import math

import numpy as np
import pytest
from helpers import (
    WIDE,
    claim,
    completed,
    decided,
    diverged,
    draw,
    drawn,
    history,
    mirror_of,
    pruned,
    rows,
    spec,
    submit,
    went_on,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from tuner.config import Range, options
from tuner.config.grid import Grid
from tuner.core.errors import LeaseLost
from tuner.core.outcome import DIVERGED
from tuner.search import Search
from tuner.search.mirror import Mirror

TPE = {"sampler": {"name": "tpe", "startup_trials": 5}}


# --- draws ------------------------------------------------------------------------------------


PAST = [completed(3.0), diverged(), pruned(2.0), completed(1.0)] * 4


@pytest.mark.longer
@pytest.mark.parametrize("sampler", [TPE["sampler"], "random", "grid"])
def test_a_draw_depends_on_seed_number_and_history_alone(ledger, sampler):
    space = {**WIDE, "lr": [0.1, 0.2]} if sampler == "grid" else WIDE
    if sampler == "grid":
        space = {**space, "schedule": ["constant", "cosine"], "optimizer": ["sgd"]}
    past = [] if sampler == "grid" else PAST
    study = submit(ledger, space=space, search={"sampler": sampler}, budget={"trials": 99})
    history(ledger, study, past)
    early = Search(study, ledger)
    early.refresh()  # sees less at first
    numbers = [claim(ledger, study).trial.number for _ in range(4)]
    late = Search(study, ledger)
    first = {number: late.draw(number) for number in numbers}
    second = {number: early.draw(number) for number in reversed(numbers)}
    third = {number: Search(study, ledger).draw(number) for number in numbers}
    assert first == second == third
    assert len({str(one.params) for one in first.values()}) == 4, "no draw is repeated"


@pytest.mark.longer
@pytest.mark.parametrize("sampler", ["random", TPE["sampler"]])
def test_another_seed_draws_otherwise(new_ledger, sampler):
    params = []
    for seed in (0, 1):
        ledger = new_ledger()
        search = {"sampler": sampler}
        study = submit(ledger, study={"name": "s", "seed": seed}, space=WIDE, search=search)
        drawn(ledger, study, Search(study, ledger))  # of tpe the default of the space
        params.append(drawn(ledger, study, Search(study, ledger))[1].params)
    assert params[0] != params[1]


@pytest.mark.longer
def test_a_draw_that_was_not_committed_is_drawn_again(ledger):
    study = submit(ledger, space=WIDE, search=TPE, budget={"trials": 99})
    history(ledger, study, PAST)
    held = claim(ledger, study)
    lost = Search(study, ledger).draw(held.trial.number)
    ledger.release(held.lease, "interrupted", "Ctrl-C")
    assert claim(ledger, study).trial.params is None
    again = Search(study, ledger).draw(held.trial.number)
    assert again.params == lost.params


@pytest.mark.longer
@pytest.mark.parametrize("sampler", ["random", "tpe", TPE["sampler"], "qmc", "cmaes"])
@pytest.mark.parametrize("past", [[], PAST])
def test_trials_drawn_together_are_those_drawn_and_committed_one_by_one(new_ledger, sampler, past):
    drawn, again = [], []
    for together in (True, False):
        ledger = new_ledger()
        study = submit(ledger, space=WIDE, search={"sampler": sampler}, budget={"trials": 99})
        history(ledger, study, past)
        held = ledger.claim_together(study.id, "worker", {}, 5)
        numbers, search = [one.trial.number for one in held], Search(study, ledger)
        if together:
            draws = search.draw_together(numbers)
            again = [search.draw_together(numbers), Search(study, ledger).draw_together(numbers)]
            assert again == [draws, draws], "nothing of it stays where it is not committed"
        else:
            draws = [search.draw(number) for number in numbers[:1]]
            for one, number in zip(held, numbers[1:], strict=False):
                last = draws[-1]
                ledger.draw(
                    one.lease,
                    last.params,
                    attrs=last.attrs,
                    study_attrs=last.study_attrs,
                    asked_revision=last.revision,
                )
                draws.append(search.draw(number))
        drawn.append([(one.params, one.attrs) for one in draws])
    assert drawn[0] == drawn[1]


@pytest.mark.longer
def test_a_draw_keeps_away_from_what_is_being_tried(ledger):
    study = submit(ledger, search=TPE, budget={"trials": 99})
    history(ledger, study, PAST)
    *others, one = [claim(ledger, study) for _ in range(9)]
    alone = Search(study, ledger).draw(one.trial.number).params["lr"]
    for other in others:
        draw(ledger, other, lr=alone)
    beside = Search(study, ledger).draw(one.trial.number).params["lr"]
    assert abs(math.log10(beside / alone)) > 0.1


numbers = st.floats(1e-3, 0.9).map(lambda number: float(f"{number:.3g}"))


def choices(numbers):
    return st.lists(numbers, min_size=1, max_size=3, unique=True)


def ranges(numbers):
    pairs = st.tuples(numbers, numbers).filter(lambda pair: pair[0] < pair[1])
    return pairs.map(lambda pair: {"low": pair[0], "high": pair[1]})


def entries(numbers, *, finite=False):
    return numbers | choices(numbers) | (st.nothing() if finite else ranges(numbers))


@st.composite
def spaces(draw, *, finite=False):
    """Spaces of all forms of entries; only values and lists where they are to be `finite`."""
    any_number, whole = entries(numbers, finite=finite), entries(st.integers(1, 9), finite=finite)
    schedules = (
        st.fixed_dictionaries(
            {"name": st.just("cosine")}, optional={"final": any_number, "warmup": any_number}
        )
        | st.fixed_dictionaries(
            {"name": st.just("step")}, optional={"gamma": any_number, "drops": whole}
        )
        | st.fixed_dictionaries(
            {
                "name": st.just("multistep"),
                "milestones": st.sampled_from([[0.5, 0.75], [[0.5], [0.3, 0.6]], ["0.5", [0.1]]]),
            },
            optional={"gamma": any_number},
        )
        | st.fixed_dictionaries(
            {
                "name": st.just("wsd"),
                "shape": choices(st.sampled_from(["linear", "cosine", "1-sqrt"])),
            }
        )
    )
    optimizers = st.fixed_dictionaries(
        {"name": st.just("sgd"), "momentum": any_number},
        optional={"nesterov": st.booleans() | choices(st.booleans())},
    ) | st.fixed_dictionaries({"name": st.just("adamw")}, optional={"beta1": any_number})
    named = {"unique_by": lambda choice: choice["name"], "min_size": 1, "max_size": 2}
    return {
        "lr": draw(any_number),
        "schedule": draw(st.lists(schedules, **named)),
        "optimizer": draw(st.lists(optimizers, **named)),
    }


def allows(entry, value):
    if isinstance(entry, Range):
        return entry.low <= value <= entry.high and type(value) is type(entry.low)
    return value in options(entry)


def assert_in(space, params):
    chosen = {params["schedule"], params["optimizer"]}
    expected = [
        one for one in space.parameters() if "." not in one.name or one.name.split(".")[0] in chosen
    ]
    assert list(params) == [one.name for one in expected]
    for one in expected:
        assert allows(one.entry, params[one.name]), one.name


@pytest.mark.thorough
@pytest.mark.slow
@settings(max_examples=25)
@given(space=spaces(), sampler=st.sampled_from(["random", TPE["sampler"]]), seed=st.integers(0, 99))
def test_draws_lie_in_the_space(new_ledger, space, sampler, seed):
    """And a parameter is there only with the schedule or optimiser that it belongs to."""
    ledger = new_ledger()
    study = submit(
        ledger, study={"name": "s", "seed": seed}, space=space, search={"sampler": sampler}
    )
    search = Search(study, ledger)
    for value in range(8):  # beyond the first ones, which TPE draws at random
        held, made = drawn(ledger, study, search)
        assert_in(study.spec.space, made.params)
        ledger.finish(held.lease, completed(float(value)) if value % 3 else diverged())


@pytest.mark.longer
@settings(max_examples=25)
@given(space=spaces(finite=True))
def test_a_grid_has_every_combination_once(space):
    made = spec(space=space).space
    cells = Grid(made)
    combinations = [cells.cell(index) for index in range(len(cells))]
    assert [cells.index(params) for params in combinations] == list(range(len(cells)))
    for params in combinations:
        assert_in(made, params)
    assert len({tuple(params.items()) for params in combinations}) == len(combinations)
    expected = len(options(made.lr)) * sum(
        math.prod(len(options(entry)) for choice in (one, other) for _, entry in choice.entries())
        for one, other in itertools.product(made.schedule, made.optimizer)
    )
    assert len(combinations) == expected


def test_a_grid_is_drawn_in_the_order_of_the_file(ledger):
    space = {
        "lr": [0.3, 0.1],
        "schedule": ["constant", {"name": "step", "gamma": [0.5, 0.1], "drops": 2}],
        "optimizer": "sgd",
    }
    study = submit(ledger, space=space, search={"sampler": "grid"}, budget={"trials": 6})
    search = Search(study, ledger)
    params = [drawn(ledger, study, search)[1].params for _ in range(6)]
    assert [(one["lr"], one["schedule"], one.get("step.gamma")) for one in params] == [
        (0.3, "constant", None), (0.3, "step", 0.5), (0.3, "step", 0.1),
        (0.1, "constant", None), (0.1, "step", 0.5), (0.1, "step", 0.1),
    ]  # fmt: skip
    assert ledger.claim(study.id, "worker", {}) is None


# --- what samplers and pruners are told -------------------------------------------------------


def test_a_diverged_trial_is_the_worst_to_the_sampler_and_unknown_to_the_pruner(ledger):
    study = submit(ledger, search={"sampler": "tpe", "pruner": "asha"})
    search = Search(study, ledger)
    first, _ = drawn(ledger, study, search)
    decided(ledger, search, first, 4, 0.1)
    for outcome in (diverged(), completed(1.0), pruned(2.0)):
        held = first if outcome.kind == DIVERGED else drawn(ledger, study, search)[0]
        ledger.finish(held.lease, outcome)
    drawn(ledger, study, search)
    mirror = mirror_of(ledger, study)
    told = mirror.for_sampler()
    assert [trial.state for trial in told] == [
        TrialState.PRUNED,
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.RUNNING,
    ]
    assert (told[0].intermediate_values, told[0].value) == ({}, None)
    assert set(told[0].params) == {"lr", "schedule", "optimizer"}
    assert [trial.number for trial in mirror.for_pruner()] == [1, 2, 3]
    assert mirror.trial(0).intermediate_values == {4: 0.1}, "the record itself is whole"


def loss_of(lr, generator):
    """The loss of a rate, noisy, best at 0.03."""
    return (1 + (math.log10(lr) + 1.5) ** 2) * math.exp(0.02 * generator.standard_normal())


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("pruner", ["none", "asha"])
def test_tpe_turns_away_from_where_trials_diverge(new_ledger, pruner):
    """Rates above 0.1 diverge: two decades of five, which random draws hit 2 times in 5.

    With asha most trials are pruned; divergence must be worse than that too.
    """
    last = []
    for seed in range(6):
        ledger, generator = new_ledger(), np.random.default_rng(seed)
        study = submit(
            ledger,
            study={"name": "s", "seed": seed},
            space={"lr": {"low": 1e-4, "high": 10.0}},
            search={"sampler": "tpe", "pruner": pruner},
            budget={"trials": 60},
        )
        search, rates = Search(study, ledger), []
        for _ in range(60):
            held, made = drawn(ledger, study, search)
            lr = float(made.params["lr"])
            rates.append(lr)
            if lr > 0.1:
                ledger.finish(held.lease, diverged())
            elif not any(
                decided(ledger, search, held, step, loss_of(lr, generator) * (1 + 10 / step))
                for step in study.rungs
            ):
                ledger.finish(held.lease, completed(loss_of(lr, generator)))
        last += rates[-20:]
    assert np.mean(np.array(last) > 0.1) < 0.3


# --- decisions --------------------------------------------------------------------------------


@pytest.mark.longer
def test_diverged_trials_do_not_make_bad_ones_look_good(ledger):
    """The others' median is 1; had the diverged ones counted, it would be 100."""
    pruner = {"name": "median", "startup_trials": 1}
    study = submit(ledger, search={"pruner": pruner}, budget={"trials": 20})
    search = Search(study, ledger)
    for value, outcome in [(1.0, completed(1.0))] * 3 + [(100.0, diverged())] * 5:
        held, _ = drawn(ledger, study, search)
        ledger.report(held.lease, rows(0, 10), went_on(10, value), attrs={})
        ledger.finish(held.lease, outcome)
    held, _ = drawn(ledger, study, search)
    decision = search.decide(held.trial.number, 10, 2.0)
    assert decision.prune
    assert decision.reason == (
        "Pruned by median: val_loss was 2 at step 10, where 3 of the 3 other trials there were "
        "lower."
    )


@pytest.mark.parametrize(
    ("direction", "said"),
    [
        ("minimize", "val_loss was 2 at step 10, where 1 of the 3 other trials there were lower"),
        ("maximize", "val_loss was 2 at step 10, where 2 of the 3 other trials there were higher"),
    ],
)
def test_a_decision_says_why(ledger, direction, said):
    study = submit(
        ledger,
        study={"name": "s", "direction": direction},
        search={"pruner": {"name": "asha", "min_steps": 10}},
    )
    search = Search(study, ledger)
    for value in (1.0, 3.0, 4.0):
        held, _ = drawn(ledger, study, search)
        ledger.report(
            held.lease, rows(0, 10), went_on(10, value), attrs={"completed_rung_0": value}
        )
    held, _ = drawn(ledger, study, search)
    assert said in search.decide(held.trial.number, 10, 2.0).reason


def test_without_a_pruner_every_trial_goes_on(ledger):
    study = submit(ledger, search={"pruner": "none"})
    search = Search(study, ledger)
    held = [drawn(ledger, study, search)[0] for _ in range(4)]
    assert not any(decided(ledger, search, one, 10, 1e9) for one in held)


def test_a_decision_whose_commit_is_refused_leaves_no_trace(ledger):
    study = submit(ledger, search={"pruner": {"name": "asha", "min_steps": 10}})
    search = Search(study, ledger)
    held, _ = drawn(ledger, study, search)
    search.refresh()
    before = vars(search._mirror.trial(0)).copy()
    decision = search.decide(0, 10, 5.0)
    assert decision.attrs["completed_rung_0"] == 5.0
    ledger.release(held.lease, "interrupted", "Ctrl-C")
    with pytest.raises(LeaseLost):
        ledger.report(held.lease, rows(0, 10), went_on(10, 5.0), attrs=decision.attrs)
    search.refresh()
    assert vars(search._mirror.trial(0)) == before
    assert search.decide(0, 10, 5.0) == decision, "the same question has the same answer"


def test_the_rungs_that_a_trial_has_passed_outlive_the_search(ledger):
    study = submit(
        ledger, search={"pruner": {"name": "asha", "min_steps": 10, "reduction_factor": 2}}
    )
    held = []
    for value in (1.0, 2.0):
        one, _ = drawn(ledger, study, Search(study, ledger))
        held.append(one)
        Search(study, ledger)
        stopped = decided(ledger, Search(study, ledger), one, 10, value)
        assert stopped == (value == 2.0)
    assert not decided(ledger, Search(study, ledger), held[0], 20, 1.0)
    (first, second) = ledger.trials(study.id)
    assert first.attrs == {"completed_rung_0": 1.0, "completed_rung_1": 1.0}
    assert second.attrs == {"completed_rung_0": 2.0}


@pytest.mark.longer
@settings(max_examples=15)
@given(st.data())
def test_a_mirror_kept_up_by_changes_equals_one_made_anew(new_ledger, data):
    ledger = new_ledger()
    study = submit(ledger, space=WIDE, search=TPE, budget={"trials": 20})
    search, mirror, running = Search(study, ledger), Mirror(study.spec), []
    for _ in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(["claim", "draw", "report", "finish", "look"])):
            case "claim":
                claim(ledger, study)
            case "draw":
                running.append(drawn(ledger, study, search)[0])
            case "report" if running:
                one = running.pop(0)
                ledger.report(one.lease, rows(0, 10), went_on(10, 1.0), attrs={"a": 1})
            case "finish" if running:
                outcome = data.draw(st.sampled_from([completed(1.0), diverged(), pruned()]))
                ledger.finish(running.pop().lease, outcome)
            case "look":
                mirror.refresh(ledger.searched(study.id, mirror.revision))
    mirror.refresh(ledger.searched(study.id, mirror.revision))
    anew = mirror_of(ledger, study)
    assert (mirror.revision, mirror.attrs) == (anew.revision, anew.attrs)
    assert mirror.for_sampler() == anew.for_sampler()
    assert mirror.for_pruner() == anew.for_pruner()
