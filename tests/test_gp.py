"""The Gaussian process of our own: its space, its mathematics, and what it proposes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import WIDE, WORKLOAD, claim, completed, diverged, drawn, mirror_of, spec, submit
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import check_grad
from scipy.stats import norm

from tuner.config import GP, TPE, OptunaGP, Space, StudySpec
from tuner.config.search import Auto
from tuner.ledger.records import specification
from tuner.operations import submit as submission
from tuner.search import Search, gp
from tuner.search.encoding import ABSENT, Dimension, Encoding, encoding_of
from tuner.search.textbook import RATES, textbook

MIXED = Encoding(
    [
        Dimension(name="rate", kind="log", low=1e-5, high=10.0),
        Dimension(name="kind", kind="choice", values=("a", "b", "c")),
        Dimension(name="share", kind="float", low=-1.0, high=2.0, when=((1, frozenset({0, 2})),)),
        Dimension(name="count", kind="int", low=1, high=5, when=((1, frozenset({1})),)),
        Dimension(name="size", kind="ordered", values=(8, 16, 128)),
        Dimension(name="width", kind="int", low=1, high=1000, log=True),
    ]
)
seeds = st.integers(0, 2**31 - 1)


# --- the space


@pytest.mark.slow
@given(seeds)
def test_any_point_is_a_combination_in_the_space_and_back(seed):
    points = np.random.default_rng(seed).random((20, len(MIXED)))
    rows = MIXED.snapped(points)
    for row in rows:
        params = MIXED.decode(row)
        assert ("share" in params) == (params["kind"] in {"a", "c"})
        assert ("count" in params) == (params["kind"] == "b")
        assert 1e-5 <= params["rate"] <= 10.0
        assert params["size"] in {8, 16, 128}
        assert type(params["width"]) is int
        assert 1 <= params["width"] <= 1000
        assert MIXED.decode(MIXED.encode(params)) == pytest.approx(params)
    assert np.array_equal(MIXED.snapped(rows), rows)


@pytest.mark.parametrize("corner", [0.0, 1.0])
def test_the_corners_of_the_cube_are_the_ends_of_ranges(corner):
    (row,) = MIXED.snapped(np.full((1, len(MIXED)), corner))
    params = MIXED.decode(row)
    ends = {0.0: (1e-5, "a", -1.0, 8, 1), 1.0: (10.0, "c", 2.0, 128, 1000)}[corner]
    assert params["rate"] == pytest.approx(ends[0])
    assert tuple(params[k] for k in ("kind", "share", "size", "width")) == ends[1:]


@pytest.mark.longer
@given(seeds, st.floats(0.01, 0.5))
def test_a_neighbour_differs_in_one_or_two_dimensions_that_apply(seed, step):
    rng = np.random.default_rng(seed)
    (row,) = rows = MIXED.snapped(rng.random((1, len(MIXED))))
    points = MIXED.neighbours(rows, 50, step, rng)
    assert ((points >= 0) & (points <= 1)).all()
    same_kind = [one for one in MIXED.snapped(points) if one[1] == row[1]]
    assert all(np.sum(np.abs(one - row) > 1e-12) <= 2 for one in same_kind)


@given(seeds)
def test_distances_are_at_most_one_a_dimension_and_none_where_both_are_absent(seed):
    rows = MIXED.snapped(np.random.default_rng(seed).random((12, len(MIXED))))
    squares = gp.squared_distances(MIXED.features(rows), MIXED.groups, len(MIXED))
    assert squares.max() <= 1 + 1e-12
    absent = rows == ABSENT
    both = absent[:, None] & absent[None, :] & ~MIXED.active(rows)[:, None]
    assert squares.transpose(1, 2, 0)[both].max(initial=0) == 0


# --- the mathematics


def sample(seed, count=12):
    rng = np.random.default_rng(seed)
    rows = MIXED.snapped(rng.random((count, len(MIXED))))
    losses = gp.standardised(rows[:, 0] ** 2 + rng.normal(size=count) / 5)
    return rows, losses


@pytest.mark.parametrize("seed", range(5))
def test_gradients_are_those_of_finite_differences(seed):
    rows, losses = sample(seed)
    squares = gp.squared_distances(MIXED.features(rows), MIXED.groups, len(MIXED))
    theta = np.random.default_rng(seed).normal(size=len(MIXED) + 2) - 0.5
    error = check_grad(
        lambda at: gp.objective(at, squares, losses)[0],
        lambda at: gp.objective(at, squares, losses)[1],
        theta,
    )
    assert error < 1e-4


@pytest.mark.parametrize("mean", [-2.0, 0.0, 3.0])
@pytest.mark.parametrize("deviation", [0.1, 1.0, 4.0])
def test_expected_improvement_is_the_integral_that_it_stands_for(mean, deviation):
    best = 0.5
    far = norm(mean, deviation)
    expected, _ = quad(lambda y: (best - y) * far.pdf(y), mean - 40 * deviation, best, limit=500,
                       points=[mean - 5 * deviation] if mean < best else None)  # fmt: skip
    found = gp.log_expected_improvement(np.array([mean]), np.array([deviation**2]), best)
    if expected > 1e-100:
        assert found[0] == pytest.approx(math.log(expected), rel=1e-5)


def test_expected_improvement_never_underflows_and_falls_with_the_mean():
    means = np.concatenate([np.linspace(-3, 50, 2000), np.geomspace(51, 1e6, 50)])
    found = gp.log_expected_improvement(means, np.ones_like(means), 0.0)
    assert np.isfinite(found).all()
    assert (np.diff(found) < 0).all()


def test_a_posterior_that_grows_is_that_of_all_points():
    rows, losses = sample(0, 20)
    features = MIXED.features(rows)
    theta = gp.fitted(features, MIXED.groups, len(MIXED), losses)
    whole = gp.Posterior(theta, MIXED.groups, features, losses)
    some = gp.Posterior(theta, MIXED.groups, features[:14], losses[:14])
    grown = some.extended(features[14:], losses[14:, None])
    elsewhere = MIXED.features(sample(1)[0])
    mean, variance = grown.predict(elsewhere)
    expected = whole.predict(elsewhere)
    assert mean[:, 0] == pytest.approx(expected[0], abs=1e-8)
    assert variance == pytest.approx(expected[1], abs=1e-8)


@pytest.mark.longer
@given(st.lists(st.floats(-1e100, 1e100), min_size=1, max_size=30))
@example([0.0, 0.0, 1.0, 2.2250738585e-313])
def test_values_keep_their_order_on_the_scale_of_the_process(values):
    losses = np.array(values)
    found = gp.standardised(losses)
    assert np.isfinite(found).all()
    assert (np.diff(found[np.argsort(losses, kind="stable")]) >= -1e-9).all()


# --- what it proposes


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 12), st.integers(0, 6))
def test_a_proposal_is_new_in_the_space_and_a_function_of_its_history(seed, known, running):
    rows, losses = sample(seed, known)
    others = MIXED.snapped(np.random.default_rng(seed + 1).random((running, len(MIXED))))
    one, again = (
        gp.proposed(MIXED, rows, losses, others, rng=np.random.default_rng(7)) for _ in range(2)
    )
    assert np.array_equal(one, again)
    assert np.array_equal(MIXED.snapped(one[None])[0], one)
    assert not any(np.array_equal(one, row) for row in np.r_[rows, others])


def test_what_is_fixed_is_given():
    rows, losses = sample(0)
    fixed = {"kind": "b", "count": 4}
    row = gp.proposed(MIXED, rows, losses, rows[:0], rng=np.random.default_rng(0), fixed=fixed)
    assert MIXED.decode(row).items() >= fixed.items()


def test_an_exhausted_space_is_tried_again():
    small = Encoding([Dimension(name="a", kind="choice", values=(1, 2))])
    rows = small.snapped(np.array([[0.1], [0.9]]))
    row = gp.proposed(small, rows, np.array([1.0, 2.0]), rows[:0], rng=np.random.default_rng(0))
    assert small.decode(row)["a"] in {1, 2}


@pytest.mark.slow  # whole searches
def test_trials_side_by_side_do_not_try_the_same(ledger):
    study = submit(ledger, space=WIDE, search={"sampler": "gp"}, budget={"trials": 40})
    search = Search(study, ledger)
    for _ in range(12):
        held, made = drawn(ledger, study, search)
        ledger.finish(held.lease, completed(abs(math.log10(float(made.params["lr"])) + 2)))
    numbers = [claim(ledger, study).trial.number for _ in range(8)]
    together = search.draw_together(numbers)
    assert [one.params for one in together] == [
        one.params for one in Search(study, ledger).draw_together(numbers)
    ]
    assert len({str(one.params) for one in together}) == 8


@pytest.mark.thorough
@pytest.mark.slow  # whole searches
@pytest.mark.parametrize("best", [-3.0, -1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_region_that_diverges_is_left_within_ten_trials(ledger, best, seed):
    """All rates above the best one's triple diverge: up to two thirds of the range."""
    study = submit(
        ledger,
        study={"name": "s", "seed": seed},
        space={**WIDE, "lr": {"low": 1e-5, "high": 10.0}},
        search={"sampler": "gp"},
        budget={"trials": 40},
    )
    search, broke = Search(study, ledger), []
    for _ in range(24):
        held, made = drawn(ledger, study, search)
        above = math.log10(float(made.params["lr"])) - best
        broke.append(above > 0.5)
        ledger.finish(held.lease, diverged() if broke[-1] else completed(0.1 + above**2))
    assert sum(broke[10:]) <= 3


# --- the start


@pytest.mark.longer
def test_the_start_is_spread_out(ledger):
    """Of 16 points, one lies in every sixteenth of the rates, and schedules are even."""
    for sampler in ("gp", "tpe"):
        options = {"name": sampler, "startup_trials": 16, "start": "sobol"}
        study = submit(ledger, study={"name": sampler}, space=WIDE,
                       search={"sampler": options}, budget={"trials": 20})  # fmt: skip
        search = Search(study, ledger)
        params = [search.draw(claim(ledger, study).trial.number).params for _ in range(16)]
        sixteenths = [int((math.log10(float(one["lr"])) + 4) / 4 * 16) for one in params]
        assert sorted(sixteenths) == list(range(16))
        counts = [sum(one["optimizer"] == name for one in params) for name in ("sgd", "adamw")]
        assert counts == [8, 8]


def test_trial_0_is_the_textbook_default_unless_others_are_given(ledger):
    usual = textbook(Space.model_validate(WIDE))
    assert usual == {
        "lr": 1e-3,
        "schedule": "cosine",
        "cosine.warmup": 0.0,
        "cosine.final": 0.0,
        "optimizer": "adamw",
        "adamw.beta1": 0.9,
        "adamw.beta2": 0.999,
        "adamw.eps": 1e-8,
        "adamw.weight_decay": 0.01,
    }
    first = {**usual, "lr": 0.02}
    for name, search, expected in [
        ("default", {"sampler": "gp"}, usual),
        ("given", {"sampler": "gp", "first": [first]}, first),
    ]:
        study = submit(ledger, study={"name": name}, space=WIDE, search=search)
        assert drawn(ledger, study, Search(study, ledger))[1].params == expected


@pytest.mark.parametrize("optimizer", RATES)
def test_the_default_is_in_the_space(optimizer):
    space = Space.model_validate({"optimizer": optimizer})
    made = textbook(space)
    assert made is not None
    assert space.contains(made)
    assert made["optimizer"] == optimizer


def test_a_space_without_a_usual_rate_has_no_default():
    space = Space.model_validate({"lr": {"low": 1.0, "high": 10.0}, "optimizer": "adamw"})
    assert textbook(space) is None


# --- auto, and what studies of an earlier version keep


def test_auto_goes_by_the_number_of_the_trial_and_by_the_space():
    auto = Auto(name="auto")
    assert isinstance(auto.at(0, 10), GP)
    assert isinstance(auto.at(1000, 10), TPE)
    assert isinstance(auto.at(0, 60), TPE)
    assert len(encoding_of(spec(space=WIDE).space)) == 9


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"name": "tpe", "startup_trials": 7}, TPE(name="tpe", startup_trials=7, start="random")),
        ({"name": "gp", "startup_trials": 7}, OptunaGP(name="optuna_gp", startup_trials=7)),
        ({"name": "gp", "startup_trials": 7, "start": "sobol"},
         GP(name="gp", startup_trials=7, start="sobol")),
    ],
)  # fmt: skip
def test_studies_of_an_earlier_version_keep_optunas_samplers(ledger, stored, expected):
    text = StudySpec.model_validate(spec(search={"sampler": stored})).model_dump_json()
    if "start" not in stored:
        name = stored["name"]
        text = text.replace(',"start":"textbook"', "")
        assert f'"name":"{name}","startup_trials":7}}' in text
    assert specification(text).search.sampler == expected
    assert specification(specification(text).model_dump_json()) == specification(text)


@pytest.mark.parametrize("named", [None, "gp", {"name": "gp", "startup_trials": 10}])
def test_a_file_that_leaves_the_sampler_open_keeps_the_study_s(ledger, named):
    old = spec(search={"sampler": "optuna_gp"})
    submission.submit(ledger, old, WORKLOAD)
    tables = old.model_dump(exclude_unset=True)
    del tables["search"]["sampler"]
    if named is not None:
        tables["search"]["sampler"] = named
    study, created = submission.submit(ledger, StudySpec.model_validate(tables), WORKLOAD)
    assert not created
    assert study.spec.search.sampler == OptunaGP(name="optuna_gp")
    assert mirror_of(ledger, study).spec == study.spec
