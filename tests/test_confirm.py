"""Confirming: the best trials again under seeds that they share, and what follows."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from helpers import claim, complete, completed, draw, drawn, rows, submit
from training_here import PREFIXES, submitted, train

from tuner.core.errors import UsageError
from tuner.core.outcome import FAILED, Outcome
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


def confirmed(ledger, study, outcomes, top=3):
    """Confirm with given values, a row a seed; None fails."""
    again = confirm.submit(ledger, study, top=top, seeds=len(outcomes))
    search = Search(again, ledger)
    for value in (value for row in outcomes for value in row):
        one = claim(ledger, again)
        draw = search.draw(one.trial.number)
        ledger.draw(one.lease, draw.params, attrs={}, study_attrs={}, asked_revision=draw.revision)
        failed = Outcome(kind=FAILED, reason="no")
        ledger.finish(one.lease, failed if value is None else completed(value), chunk=rows(0, 10))
    return confirm.compare(ledger, study, ledger.study(again.name), len(outcomes))


def test_candidates_are_the_best_trials_and_share_seeds_that_are_new(ledger):
    study = searched(ledger)
    again = confirm.submit(ledger, study, top=2, seeds=4)
    assert again.name == "small confirm"
    assert (again.limit, again.rungs) == (8, ())
    search = Search(again, ledger)
    drawn = []
    for _ in range(8):
        one = claim(ledger, again)
        drawn.append(search.draw(one.trial.number).params["lr"])
    assert drawn == [0.1, 0.2] * 4
    seeds = [seed_of(again.spec, number) for number in range(8)]
    assert seeds[0::2] == seeds[1::2]
    assert len(set(seeds)) == 4
    assert not set(seeds) & {seed_of(study.spec, number) for number in range(1000)}


def test_the_same_question_finds_the_same_study_and_more_seeds_extend_it(ledger):
    study = searched(ledger)
    first = confirm.submit(ledger, study, top=2, seeds=4)
    assert confirm.submit(ledger, study, top=2, seeds=4).id == first.id
    more = confirm.submit(ledger, study, top=2, seeds=6)
    assert (more.id, more.limit) == (first.id, 12)
    assert confirm.submit(ledger, study, top=2, seeds=1).limit == 12
    other = confirm.submit(ledger, study, top=3, seeds=4)
    assert other.name == "small confirm 2"
    assert confirm.submit(ledger, study, top=2, seeds=4).id == first.id


@pytest.mark.parametrize(
    ("outcomes", "verdict", "said"),
    [
        ([[1, 2, 3], [1.1, 2.2, 3.1], [0.9, 1.9, 2.8]], CONFIRMED, "Yes: trial 0"),
        ([[1, 2, 0.5], [1.1, 2.2, 0.6], [0.9, 1.9, 0.4]], REFUTED, "No: trial 2 is better than"),
        ([[1, 1.1, 3], [1.1, 1.0, 3], [1.0, 1.0, 3]], UNDECIDED, "trial 1: "),
        ([[1, 2, 3]], UNDECIDED, "too few to estimate the spread"),
        ([[1, 1, 1]] * 3, UNDECIDED, "0 worse"),
        ([[None, 2, 3]] * 3, REFUTED, "completed under none of 3 new seeds"),
        (
            [[1, 2, None], [1.1, 2.1, None], [1, 2.05, None]],
            CONFIRMED,
            "no seed was completed by both",
        ),
        ([[1, 2, 3], [None, 2, 3], [1.9, 2.0, 3]], UNDECIDED, "1 of 3 seeds did not complete"),
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
    again = confirm.submit(ledger, study, top=3, seeds=len(outcomes), each="schedule")
    search = Search(again, ledger)
    for value in (value for row in outcomes for value in row):
        one, _ = drawn(ledger, again, search)
        ledger.finish(one.lease, completed(value), chunk=rows(0, 10))
    return confirm.compare(ledger, study, again, len(outcomes), each="schedule")


@pytest.mark.parametrize(
    ("outcomes", "answer"),
    [
        (
            [[1.0, 2.0, 3.0], [1.1, 2.11, 3.1], [0.9, 1.89, 2.9]],
            r"cosine beats constant by 1 ± 0.0\d+, linear by 2 ± \S+: take cosine.",
        ),
        (
            [[1.0, 0.5, 3.0], [1.1, 0.61, 3.1], [0.9, 0.39, 2.9]],
            r"constant beats cosine by 0.5 ± 0.0\d+: take constant.",
        ),
        (
            [[1.0, 1.001, 1.0], [1.1, 1.1, 1.101], [0.9, 0.9, 0.9]],
            r"No schedule differs from cosine by more than 0.00\d+: take constant.",
        ),
        (
            [[1.0, 1.001, 3.0], [1.1, 1.1, 3.1], [0.9, 0.9, 2.9]],
            r"cosine beats linear by 2 ± \S+; constant: within \S+ of cosine; take constant.",
        ),
        (
            [[1.0, 1.9, 1.5], [1.1, 0.8, 1.0], [0.9, 1.2, 0.4]],
            r"Undecided: constant, linear may differ from cosine by up to \S+; take cosine, .*",
        ),
        ([[1.0, 2.0, 3.0]], "Undecided: cosine and constant, linear completed too few seeds.*"),
    ],
)
def test_the_answer_on_schedules(ledger, outcomes, answer):
    found = by_schedule(ledger, outcomes)
    assert [one.trial for one in found.candidates] == [1, 3, 0]
    assert found.answer is not None
    assert re.fullmatch(answer, found.answer)


def test_a_schedule_alone_cannot_be_compared(ledger):
    with pytest.raises(UsageError, match="at least 2 values of 'schedule', got constant"):
        confirm.submit(ledger, searched(ledger), top=3, seeds=5, each="schedule")


def test_what_a_seed_adds_to_all_of_them_cancels(ledger):
    rng = np.random.default_rng(0)
    seeds = 100 * rng.normal(size=5)
    outcomes = [[seed, seed + 1 + 0.1 * rng.normal()] for seed in seeds]
    found = confirmed(ledger, searched(ledger), outcomes, top=2)
    assert found.verdict == CONFIRMED
    worse = found.candidates[1].worse
    assert worse is not None
    assert worse.mean == pytest.approx(1, abs=0.2)


def test_higher_is_better_where_the_study_says_so(ledger):
    study = searched(ledger, study={"direction": "maximize"})
    found = confirmed(ledger, study, [[3, 2, 1], [3.1, 2.2, 1], [2.9, 1.9, 1]])
    assert [one.trial for one in found.candidates] == [2, 1, 0]
    assert found.verdict == CONFIRMED


@pytest.mark.parametrize("values", [(), (1.0,)])
def test_one_trial_cannot_be_compared(ledger, values):
    study = searched(ledger, values)
    with pytest.raises(UsageError, match=f"{len(values)} completed trials, expected at least 2"):
        confirm.submit(ledger, study, top=3, seeds=5)


def test_a_real_study_is_confirmed_by_training(ledger, places):
    study = train(ledger, places, submitted(ledger))
    again = train(ledger, places, confirm.submit(ledger, study, top=2, seeds=12))
    assert confirm.unfinished(ledger, again) == 0
    load_workload(again, PREFIXES)
    found = confirm.compare(ledger, study, again, 12)
    assert [one.params["lr"] for one in found.candidates] == [0.3, 0.1]
    assert found.verdict == CONFIRMED
    trials = ledger.trials(again.id)
    starts = [ledger.curve(one.id).metrics["val_loss"][0] for one in trials]
    assert starts[0::2] == starts[1::2]  # one initialisation a round
    assert len(set(starts)) == 12
