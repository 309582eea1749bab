"""Confirming: the best trials again under seeds that they share, and what follows."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from helpers import claim, complete, completed, draw, drawn, rows, submit
from training_here import PREFIXES, submitted, train
from training_here import confirmed as trained_again

from tuner.core.errors import UsageError
from tuner.core.outcome import FAILED, Outcome
from tuner.ledger.records import PARENT, ROUND, SEED
from tuner.operations import confirm
from tuner.operations.confirm import CONFIRMED, REFUTED, UNDECIDED
from tuner.search import Search
from tuner.training.trainer import seed_of
from tuner.worker.loading import load_workload

RATES = (0.1, 0.2, 0.3)


def searched(ledger, values=(1.0, 2.0, 3.0), **tables):
    """Make a study whose trial n has the n-th rate and value."""
    study = submit(ledger, **tables)
    for lr, value in zip(RATES, values, strict=False):
        one = claim(ledger, study)
        params = {"lr": lr, "schedule": "constant", "optimizer": "sgd"}
        ledger.draw(one.lease, params, attrs={}, study_attrs={}, asked_revision=1)
        ledger.finish(one.lease, completed(value), chunk=rows(0, 10))
    return ledger.study(study.name)


def confirmed(ledger, study, outcomes, top=3, each=None):
    """Confirm with given values, a row a seed and a column a candidate; None fails."""
    asked = confirm.question(ledger, study, top=top, each=each)
    seeds, search = len(outcomes), None
    while (added := confirm.advance(ledger, study, asked, seeds)) is not None:
        again = confirm.submit(ledger, study)
        search = search or Search(again, ledger)
        for _ in range(added):
            one, _ = drawn(ledger, again, search)
            column = asked.candidates.index(one.trial.attrs[PARENT]["trial"])
            value = outcomes[one.trial.attrs[ROUND]][column]
            end = Outcome(kind=FAILED, reason="no") if value is None else completed(value)
            ledger.finish(one.lease, end, chunk=rows(0, 10))
    return confirm.compare(ledger, study, asked, seeds)


@pytest.mark.longer
def test_candidates_are_the_best_trials_and_share_seeds_that_are_new(ledger):
    study = searched(ledger)
    asked = confirm.question(ledger, study, top=2)
    assert confirm.advance(ledger, study, asked, 3) == 6
    again = confirm.submit(ledger, study)
    assert again.name == "small confirm"
    assert (again.limit, again.rungs, again.deciding_trials) == (6, (), 0)
    search = Search(again, ledger)
    found = [drawn(ledger, again, search) for _ in range(6)]
    assert [made.params["lr"] for _, made in found] == [0.1, 0.2] * 3
    seeds = [seed_of(again.spec, one.trial.number, one.trial.attrs[SEED]) for one, _ in found]
    assert seeds[0::2] == seeds[1::2]
    assert len(set(seeds)) == 3
    assert not set(seeds) & {seed_of(study.spec, number) for number in range(1000)}


@pytest.mark.longer
def test_every_question_uses_the_same_study_and_repeats_no_training(ledger):
    study = searched(ledger)
    confirmed(ledger, study, [[1, 2], [1.1, 2.2], [0.9, 1.8]], top=2)
    again = confirm.submit(ledger, study)
    asked = confirm.question(ledger, study, top=2)
    assert confirm.advance(ledger, study, asked, 3) is None
    more = confirm.question(ledger, study, top=3)
    assert confirm.advance(ledger, study, more, 3) == 3  # those of the third one alone
    assert confirm.submit(ledger, study).id == again.id


@pytest.mark.longer
def test_a_candidate_that_is_beaten_is_trained_no_further(ledger):
    outcomes = [[1, 1.1, 3], [1.1, 1.0, 3.1], [1.0, 1.05, 3], [0.9, 1, 0], [1, 1, 0], [1.1, 1, 0]]
    found = confirmed(ledger, searched(ledger), outcomes)
    assert [len(one.values) for one in found.candidates] in ([6, 6, 3], [3, 3, 3])


@pytest.mark.longer
@pytest.mark.parametrize(
    ("outcomes", "verdict", "said"),
    [
        ([[1, 2, 3], [1.1, 2.2, 3.1], [0.9, 1.9, 2.8]], CONFIRMED, "Yes: trial 0"),
        ([[1, 2, 0.5], [1.1, 2.2, 0.6], [0.9, 1.9, 0.4]], REFUTED, "No: trial 0"),
        ([[1, 1.5, 3], [1.1, 0.3, 3], [1.0, 1.7, 3]], UNDECIDED, "Undecided: trial 0"),
        ([[1, 2, 3]], UNDECIDED, "Undecided: trial 0"),
        ([[1, 1, 1]] * 3, CONFIRMED, "mean 1 under 3 of 3 new seeds."),
        ([[None, 2, 3]] * 3, REFUTED, "no value under 0 of 3 new seeds."),
        ([[1, 2, None], [1.1, 2.1, None], [1, 2.05, None]], CONFIRMED, "Yes"),
        ([[1, 2, 3], [None, 2, 3], [1.9, 2.0, 3]], REFUTED, "under 2 of 3 new seeds."),
    ],
)
def test_the_verdict(ledger, outcomes, verdict, said):
    found = confirmed(ledger, searched(ledger), outcomes)
    assert said in found.sentence
    assert found.verdict == verdict
    json.dumps(found.as_json(), allow_nan=False)


def by_schedule(ledger, outcomes):
    """Confirm the best trial of each schedule; of four trials, the second is the best cosine."""
    study = submit(ledger, search={"first": [complete(0.5, "constant", "sgd")]},
                   space={"schedule": ["cosine", "constant", "linear"]})  # fmt: skip
    tried = [("linear", 3.0), ("cosine", 1.0), ("cosine", 1.5), ("constant", 2.0)]
    for schedule, value in tried:
        one = claim(ledger, study)
        draw(ledger, one, **complete(0.1, schedule, "sgd"))
        ledger.finish(one.lease, completed(value), chunk=rows(0, 10))
    return confirmed(ledger, study, outcomes, each="schedule")


@pytest.mark.longer
@pytest.mark.parametrize(
    ("outcomes", "answer"),
    [
        (
            [[1.0, 2.0, 3.0], [1.1, 2.11, 3.1], [0.9, 1.89, 2.9]],
            r"Cosine beats constant by 1 ± 0.0\d+, linear by 2 ± \S+: take cosine.",
        ),
        (
            [[1.0, 0.5, 3.0], [1.1, 0.61, 3.1], [0.9, 0.39, 2.9]],
            r"Constant beats cosine by 0.5 ± 0.0\d+, linear by 2.5 ± 0.0\d+: take constant.",
        ),
        (
            [[1.0, 1.001, 1.0], [1.1, 1.1, 1.101], [0.9, 0.9, 0.9]],
            r"No schedule is better than constant by more than 0.00\d+ \(.*\): take constant.",
        ),
        (
            [[1.0, 1.001, 3.0], [1.1, 1.1, 3.1], [0.9, 0.9, 2.9]],
            r"Cosine beats linear by 2 ± \S+; no schedule is better than constant by more than .*",
        ),
        (
            [[1.0, 1.9, 1.5], [1.1, 0.8, 1.0], [0.9, 1.2, 0.4]],
            r"Linear|Cosine|constant, .* may be better than .*: take .*, or add seeds.",
        ),
        ([[1.0, 2.0, 3.0]], "Too few seeds to compare cosine, constant, linear: take cosine."),
    ],
)
def test_the_answer_on_schedules(ledger, outcomes, answer):
    found = by_schedule(ledger, outcomes)
    assert [one.trial for one in found.candidates] == [1, 3, 0]
    assert re.search(answer, found.answer), found.answer


def test_a_schedule_alone_cannot_be_compared(ledger):
    with pytest.raises(UsageError, match="at least 2 values of 'schedule', got constant"):
        confirm.question(ledger, searched(ledger), top=3, each="schedule")


@pytest.mark.longer
def test_what_a_seed_adds_to_all_of_them_cancels(ledger):
    rng = np.random.default_rng(0)
    seeds = 100 * rng.normal(size=5)
    outcomes = [[seed, seed + 1 + 0.1 * rng.normal()] for seed in seeds]
    found = confirmed(ledger, searched(ledger), outcomes, top=2)
    assert found.verdict == CONFIRMED
    assert found.answer.startswith("Trial 0 beats trial 1 by 1")


@pytest.mark.longer
def test_higher_is_better_where_the_study_says_so(ledger):
    study = searched(ledger, study={"direction": "maximize"})
    found = confirmed(ledger, study, [[3, 2, 1], [3.1, 2.2, 1], [2.9, 1.9, 1]])
    assert [one.trial for one in found.candidates] == [2, 1, 0]
    assert found.verdict == CONFIRMED
    assert found.candidates[0].mean == pytest.approx(3.0)


@pytest.mark.parametrize("values", [(), (1.0,)])
def test_one_trial_cannot_be_compared(ledger, values):
    study = searched(ledger, values)
    with pytest.raises(UsageError, match=f"{len(values)} completed trials .* expected at least 2"):
        confirm.question(ledger, study, top=3)


@pytest.mark.slow
def test_a_real_study_is_confirmed_by_training(ledger, places):
    study = train(ledger, places, submitted(ledger))
    found = trained_again(ledger, places, study, top=2, seeds=6)
    assert found.unfinished == 0
    load_workload(found.trials, PREFIXES)
    assert [one.params["lr"] for one in found.candidates] == [0.3, 0.1]
    assert found.verdict == CONFIRMED
    trials = ledger.trials(found.trials.id)
    starts = [ledger.curve(one.id).metrics["val_loss"][0] for one in trials]
    assert starts[0::2] == starts[1::2]  # one initialisation a round
    assert len(set(starts)) == len(trials) / 2
