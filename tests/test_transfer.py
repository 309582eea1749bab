"""What a study learns from earlier ones, and how much it trusts each of them."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from helpers import claim, complete, completed, drawn, spec, submit
from hypothesis import given
from hypothesis import strategies as st

from tuner.cli.app import cli
from tuner.config import Space
from tuner.core.errors import UsageError
from tuner.operations import submit as submission
from tuner.operations.similar import similar
from tuner.search import Search, gp
from tuner.search.encoding import Dimension, Encoding
from tuner.search.own import GPSampler, SobolSampler
from tuner.search.transfer import Source, as_seen, columns, normal_scores

SQUARE = Encoding([Dimension(name="a", kind="float"), Dimension(name="b", kind="float")])
DISTRIBUTIONS = {name: optuna.distributions.FloatDistribution(0, 1) for name in "ab"}
SPACE = {"lr": {"low": 1e-5, "high": 10.0}, "schedule": "constant", "optimizer": ["sgd", "adamw"]}


def bowl(rows, at=(0.3, 0.7)):
    return np.sum((np.asarray(rows) - at) ** 2, axis=1)


def source(losses_at, *, seed=0, count=40, space=SQUARE):
    rows = np.random.default_rng(seed).random((count, 2))
    params = [dict(zip("ab", row, strict=True)) for row in rows]
    return Source(space, "s", params, list(losses_at(rows)))


def decades(params, best=-1.5):
    return abs(math.log10(float(params["lr"])) - best) + (params["optimizer"] == "adamw")


def trained(ledger, name, loss=decades, trials=16, **tables):
    """Train a study of random trials whose values are a function of their parameters."""
    tables = {"space": SPACE, "budget": {"trials": trials}, **tables}
    study = submit(ledger, study={"name": name, **tables.pop("study", {})}, **tables)
    search = Search(study, ledger)
    for _ in range(trials):
        held, made = drawn(ledger, study, search)
        ledger.finish(held.lease, completed(loss(made.params)))
    return study


def learner(ledger, *names, study="new"):
    search = {"sampler": "gp", "learn_from": names}
    made = submit(ledger, study={"name": study}, space=SPACE, search=search)
    return made, Search(made, ledger)


# --- a source


@pytest.mark.longer
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_unit_and_scale_of_a_source_do_not_matter(losses):
    values = np.array(losses)
    assert np.allclose(normal_scores(values), normal_scores(8 * values))  # exact, however small


def test_a_source_predicts_the_points_between_its_trials():
    rows = np.random.default_rng(1).random((50, 2))
    predicted = source(bowl).predict(rows)
    assert (
        np.corrcoef(np.argsort(np.argsort(predicted)), np.argsort(np.argsort(bowl(rows))))[0, 1]
        > 0.9
    )


def test_spaces_need_only_overlap():
    """The study has neither `b` nor `c`, and its `a` is a list within the source's range."""
    space = Encoding([Dimension(name="a", kind="ordered", values=(0, 1, 2))])
    params = [{"a": round(at / 10), "b": 0.5, "c": "x"} for at in range(31)]
    found = Source(space, "s", params, [abs(at / 10 - 1) for at in range(31)])
    assert found.parameters == ("a",)
    assert found.trials == 26  # up to 2.5, which is rounded to 2
    assert found.predict(space.snapped(np.array([[0.1], [0.5], [0.9]]))).argmin() == 1


def test_trials_are_seen_as_the_space_has_them():
    space = Space.model_validate(
        {"lr": [0.01, 0.1, 0.03], "schedule": ["constant", "cosine"], "optimizer": "sgd"}
    )
    other = {"lr": 0.04, "schedule": "cosine", "optimizer": "sgd", "cosine.warmup": 0.3, "x": 1}
    assert as_seen(space, other) == {"lr": 1, "schedule": "cosine"}
    assert as_seen(space, {**other, "optimizer": "adamw"}) is None
    assert as_seen(space, {**other, "lr": 0.2}) is None


@pytest.mark.parametrize("trials", [0, 4])
def test_too_few_trials_are_no_source(trials):
    assert not source(bowl, count=trials).usable


@pytest.mark.parametrize("seed", range(4))
def test_a_source_that_does_not_predict_its_own_trials_is_none(seed):
    rng = np.random.default_rng(seed)
    assert source(bowl, seed=seed).usable
    assert not source(lambda at: rng.permutation(bowl(at)), seed=seed).usable


# --- trust


def test_a_source_that_predicts_the_trials_is_trusted_and_others_are_not():
    rows = np.random.default_rng(5).random((12, 2))
    sources = [source(bowl, seed=1), source(lambda at: -bowl(at), seed=2)]
    model = gp.Model(SQUARE, rows, bowl(rows), partial(columns, sources))
    good, opposite = model.weights[1:]
    assert good > 0.3
    assert opposite < good / 5


def test_without_trials_of_its_own_a_study_tries_what_its_sources_predict():
    nothing = np.empty((0, 2))
    row = gp.proposed(SQUARE, nothing, np.empty(0), nothing, rng=np.random.default_rng(0),
                      columns=partial(columns, [source(bowl)]))  # fmt: skip
    assert bowl(row[None])[0] < 0.02


def test_evidence_is_for_sources_that_predict_the_trials_and_against_their_opposites():
    rows = np.random.default_rng(5).random((8, 2))
    sources = [source(bowl, seed=1), source(lambda at: -bowl(at), seed=1)]
    found = gp.evidence(SQUARE, rows, bowl(rows), columns(sources, rows))
    assert found[0] > 1
    assert found[1] < -1


def sampled(rows, *sources, number, startup=6):
    """Return where trial `number` is, after trials at rows."""
    study = optuna.create_study()
    for row in rows:
        params = dict(zip("ab", map(float, row), strict=True))
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=DISTRIBUTIONS, value=bowl(row[None])[0]
            )
        )
    for _ in range(len(rows), number):
        study.ask()  # these run, and are not drawn yet
    start = SobolSampler(SQUARE, number, seed=0)
    study.sampler = GPSampler(
        SQUARE, start, maximize=False, seed=[0, number], startup_trials=startup, sources=sources
    )
    return list(study.ask(DISTRIBUTIONS).params.values())


OPPOSITE = source(lambda at: -bowl(at), seed=1)
"""It predicts its own trials well."""


@pytest.mark.parametrize("known", [5, 12])
def test_what_the_trials_refute_changes_no_draw(known):
    """Neither of the start nor after it."""
    assert OPPOSITE.usable
    rows = np.random.default_rng(5).random((known, 2))
    assert sampled(rows, OPPOSITE, number=known) == sampled(rows, number=known)
    both = sampled(rows, source(bowl), OPPOSITE, number=known)
    assert both == sampled(rows, source(bowl), number=known) != sampled(rows, number=known)


def test_a_start_goes_on_beside_sources_until_trials_support_them():
    nothing = np.empty((0, 2))
    for number in range(8):
        learned = sampled(nothing, source(bowl), number=number)
        starts = learned == sampled(nothing, number=number)
        assert starts == bool(number % 2)
        assert starts or bowl([learned])[0] < 0.02
    rows = np.random.default_rng(5).random((5, 2))
    assert sampled(rows, source(bowl), number=5) != sampled(rows, number=5)


# --- in a study


@pytest.mark.longer
def test_a_study_begins_where_earlier_ones_were_best(ledger):
    trained(ledger, "team-a")
    trained(ledger, "team-b", decades, space={**SPACE, "optimizer": "sgd"})
    study, search = learner(ledger, "team-*")
    first = search.draw(claim(ledger, study).trial.number).params
    assert decades(first) < 0.5


@pytest.mark.slow
def test_what_happens_later_to_a_source_changes_no_draw(ledger):
    trained(ledger, "old")
    study, search = learner(ledger, "old", "other")
    number = claim(ledger, study).trial.number
    before = search.draw(number).params
    trained(ledger, "other", lambda params: -decades(params))
    grown, _ = ledger.submit(
        spec(study={"name": "old"}, space=SPACE, budget={"trials": 20}), limit=20,
        workload=ledger.study("old").workload)  # fmt: skip
    held, _ = drawn(ledger, grown, Search(grown, ledger))
    ledger.finish(held.lease, completed(-9.0))
    assert Search(study, ledger).draw(number).params == before


@pytest.mark.longer
def test_draws_together_differ_and_are_those_of_another_worker(ledger):
    trained(ledger, "old")
    study, search = learner(ledger, "old")
    numbers = [claim(ledger, study).trial.number for _ in range(4)]
    together = [one.params for one in search.draw_together(numbers)]
    assert together == [one.params for one in Search(study, ledger).draw_together(numbers)]
    assert len({str(one) for one in together}) == 4


@pytest.mark.longer
def test_a_source_that_maximises_is_turned_round(ledger):
    trained(ledger, "old", lambda params: -decades(params), study={"direction": "maximize"})
    study, search = learner(ledger, "old")
    assert decades(search.draw(claim(ledger, study).trial.number).params) < 0.5


def test_an_unknown_source_is_refused_and_a_pattern_may_match_none(ledger):
    made = spec(search={"sampler": "gp", "learn_from": ["old"]})
    with pytest.raises(UsageError, match=r"learn_from: expected an earlier study .*, got 'old'"):
        submission.submit(ledger, made, {"code": "a", "data": "b"})
    made = spec(search={"sampler": "gp", "learn_from": ["old*"]})
    study, _ = submission.submit(ledger, made, {"code": "a", "data": "b"})
    assert complete(1e-3, "constant", "sgd").keys() == drawn(
        ledger, study, Search(study, ledger)
    )[1].params.keys()  # fmt: skip


# --- tuner similar


@pytest.mark.slow
def test_similar_studies_are_ranked_by_their_use(ledger, monkeypatch):
    trained(ledger, "alike")
    trained(ledger, "opposite", lambda params: -decades(params))
    study = trained(ledger, "mine", trials=10)
    best, worst = similar(ledger, study)
    assert (best.source.name, worst.source.name) == ("alike", "opposite")
    assert best.correlation is not None
    assert best.correlation > 0.5
    assert worst.weight == 0
    monkeypatch.setenv("TUNER_DATABASE_URL", str(ledger.engine.url))
    done = CliRunner().invoke(cli, ["similar", "mine", "--json"])
    assert [one["study"] for one in json.loads(done.stdout)["similar"]] == ["alike", "opposite"]
    lines = CliRunner().invoke(cli, ["similar", "mine"]).stdout.splitlines()
    assert lines[1].startswith("opposite: 16 trials, lr, optimizer; rank correlation -")
