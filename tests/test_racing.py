"""Racing: a study decides between its best trials at its end, with common seeds."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers import claim, complete, completed, draw, drawn, rows, spec
from helpers import submit as submit_small
from training_here import submitted, train, train_all

from tuner.analysis import deciding, racing
from tuner.analysis.racing import Answer, Limits, Question, race
from tuner.core import failpoints
from tuner.core.failpoints import FailpointError
from tuner.core.outcome import FAILED, Outcome
from tuner.ledger import adding, managing
from tuner.ledger.deciding import is_undecided
from tuner.ledger.records import STOPPED
from tuner.operations import best, manage, status, submit
from tuner.report import sentences
from tuner.report.findings import gather
from tuner.search import Search
from tuner.worker.deciding import advance

SIMULATED = 120


def simulated(rng, means, spreads, trainings):
    """Race candidates with normal values; return its end, and whether all it says is true."""
    most = racing.candidates_within(trainings)
    means, spreads = np.array(means[:most]), np.array(spreads[:most])
    asked = [Question(name="schedule", labels={i: str(i) for i in range(len(means))})]
    if len(means) > 2:
        asked.append(Question(name="optimizer", labels={0: "a", len(means) - 1: "b"}))
    values = means + rng.normal(size=(100, 1)) + spreads * rng.normal(size=(100, len(means)))
    limits, ended = deciding.within(trainings), {}
    while todo := race(asked, ended, limits).todo:
        ended |= {(one, round_): values[round_, one] for one, round_ in todo}
    end = race(asked, ended, limits)
    assert end.over
    assert len(ended) <= trainings
    true = all(
        means[one.loser] > means[one.winner] for answer in end.answers for one in answer.beaten
    ) and all(
        means[one] - means[list(answer.question.candidates)].min() <= bound
        for answer in end.answers
        for one, bound in answer.bounds.items()
    )
    return end, true


@pytest.mark.longer
@pytest.mark.parametrize(
    ("means", "spreads", "trainings"),
    [
        ([0, 0, 0, 0], [1, 1, 1, 1], 40),
        ([0, 0], [1, 1], 9),
        ([0, 0, 0, 0], [3, 1, 1, 0.3], 40),  # as noisy as they are different
        ([0, 0.5, 1, 4], [1, 1, 2, 2], 40),
        ([1, 0, 0.2], [1, 1, 1], 18),
    ],
)
def test_what_a_race_says_is_true_in_95_of_100_studies(means, spreads, trainings):
    rng = np.random.default_rng(0)
    ends = [simulated(rng, means, spreads, trainings) for _ in range(SIMULATED)]
    false = sum(not true for _, true in ends)
    assert false <= 0.05 * SIMULATED + 2 * np.sqrt(SIMULATED * 0.05 * 0.95) / 2


@pytest.mark.parametrize(("margin", "good"), [(None, (3,)), (0.2, (3, 1)), (0.3, (3, 1, 0))])
def test_what_no_other_one_beats_by_more_than_the_margin_is_good(margin, good):
    question = Question(name="schedule", labels={one: str(one) for one in range(4)})
    bounds = {3: 0.0, 1: 0.2, 0: 0.3, 2: 0.5}
    answer = Answer(question=question, bounds=bounds, beaten=(), margin=margin, rounds=4)
    assert answer.good == good
    assert answer.take == 3


def test_clear_differences_are_decided_within_the_budget_and_the_rest_is_not_spent():
    rng = np.random.default_rng(1)
    ends = [simulated(rng, [0, 5, 5, 10], [1, 1, 1, 1], 40)[0] for _ in range(20)]
    assert all(one.decided for end in ends for one in end.answers)
    assert all(end.winner == 0 and len(end.fresh) == racing.FRESH for end in ends)
    assert np.median([len(end.values) for end in ends]) <= 30


def raced(values, limits=Limits(rounds=3), begun=()):  # noqa: B008 - it is frozen
    asked = Question(name="schedule", labels={7: "cosine", 3: "constant"}, preferred=(3, 7))
    ended = {(one, i): row[j] for i, row in enumerate(values) for j, one in enumerate((7, 3))}
    return race([asked], ended, limits, begun)


def test_what_cannot_matter_is_closed_and_the_simplest_is_taken():
    end = raced([[1.0, 1.01], [2.0, 2.0], [0.5, 0.51]])
    (answer,) = end.answers
    assert (end.over, answer.decided, answer.take) == (True, True, 3)
    assert deciding.answer_in_words(answer).startswith("No schedule is better than constant by mo")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([[1.0, 2.0], [2.0, 3.01], [0.5, 1.49]], r"Cosine beats constant by 1 ± 0.025: take .*"),
        (
            [[1.0, 1.9], [1.1, 0.8], [0.9, 1.2]],
            r"Constant may be better than cosine by up to [\d.]+ "  # noqa: ISC004
            r"\(the same trial with two seeds: [\d.]+\), after 3 seeds: take cosine, or add seeds.",
        ),
        (
            [[1.0, None], [1.1, 1.0], [0.9, 1.2]],
            r"Constant did not complete under all seeds: take cosine.",
        ),
        ([], r"Too few seeds to compare cosine, constant: take cosine."),
    ],
)  # fmt: skip
def test_the_answer_in_words(values, said):
    end = raced(values, Limits(rounds=3, trainings=len(values) * 2))
    words = deciding.answer_in_words(end.answers[0])
    assert re.fullmatch(said, words), words


def test_a_round_is_trained_once_whoever_asks_and_waits_for_all_of_its_trials():
    assert raced([]).todo == ((7, 0), (3, 0), (7, 1), (3, 1), (7, 2), (3, 2))
    begun = raced([[1.0, 2.0]], begun=[(7, 1), (3, 1), (7, 2)])
    assert begun.todo == ((3, 2),)
    assert not raced([[1.0, 2.0]], begun=[(7, 1), (3, 1), (7, 2), (3, 2)]).over


# --- the budget


@pytest.mark.parametrize(
    ("tables", "reserved"),
    [
        ({"budget": {"trials": 49}}, 0),
        ({"budget": {"trials": 60}}, 9),
        ({"budget": {"trials": 60, "decide": 0.0}}, 0),
        ({"budget": {"trials": 20, "decide": 0.5}}, 10),
        ({"budget": {"trials": 20, "decide": 0.2}}, 0),  # too few to decide anything
        ({"budget": {"trials": 60}, "search": {"sampler": "grid"},
          "space": {"lr": [0.1, 0.2]}}, 0),
        ({"budget": {"trials": 60}, "workload": {"ask_and_tell": True, "factory": None}}, 0),
    ],
)  # fmt: skip
def test_a_share_of_the_trials_is_reserved(tables, reserved):
    assert spec(**tables).deciding_trials == reserved


def of(ledger, **tables):
    """Submit a small study as `tuner submit` does."""
    made = spec(**tables)
    known, _ = submit.submit(ledger, made, {"code": "c", "data": "d", "training_rows": 100})
    return known


def searched(ledger, values, **budget):
    """Make a study of two schedules whose search is over; values by schedule."""
    study = of(
        ledger,
        space={"schedule": ["constant", "cosine"], "optimizer": "sgd"},
        search={"first": [complete(0.5, "constant", "sgd")]},
        budget={"trials": 16, "decide": 0.75, **budget},
    )
    for index, (schedule, value) in enumerate(values):
        one = claim(ledger, study)
        draw(ledger, one, **complete(0.1 + index / 100, schedule, "sgd"))
        ledger.finish(one.lease, completed(value), chunk=rows(0, 10))
    return ledger.study(study.name)


FOUND = [("constant", 1.0), ("cosine", 1.1), ("constant", 3.0), ("cosine", 2.0)]


def decided(ledger, study, value_of):
    """Train what a study decides by; return how many trials that took."""
    trained, search = 0, None
    while going := advance(ledger, ledger.study(study.name)):
        search = search or Search(going.again, ledger)
        for _ in range(going.added):
            one, made = drawn(ledger, going.again, search)
            value = value_of(made.params["schedule"], one.trial.attrs["tuner:round"])
            end = Outcome(kind=FAILED, reason="no") if value is None else completed(value)
            ledger.finish(one.lease, end, chunk=rows(0, 10))
            trained += 1
    return trained


@pytest.mark.longer
def test_a_study_decides_with_the_trials_it_reserved(ledger):
    study = searched(ledger, FOUND)
    assert (study.limit, study.deciding_trials) == (4, 12)
    assert is_undecided(study)
    trained = decided(ledger, study, lambda schedule, r: r + (schedule == "constant") + 0.01 * r**2)
    study = ledger.study(study.name)
    assert not is_undecided(study)
    assert advance(ledger, study) is None
    found = best.decision(ledger, study)["decision"]
    assert trained <= 12
    assert (found["study"], found["over"], found["decided"]) == ("small confirm", True, True)
    by_schedule = found["answers"][0]
    assert (by_schedule["take"], by_schedule["trial"]) == ("cosine", 1)
    assert by_schedule["answer"].startswith("Cosine beats constant by 1 ± ")
    assert found["winner"] == 1
    assert (ledger.best(study).number, deciding.chosen(ledger, study).number) == (0, 1)
    again = ledger.trials(ledger.study("small confirm").id)
    chose = max(one.attrs["tuner:round"] for one in again if one.params["schedule"] == "constant")
    values = sorted(t.attrs["tuner:round"] for t in again if t.params["schedule"] == "cosine")
    assert values[-3:] == [chose + 1, chose + 2, chose + 3]  # its value is from other seeds
    seeds = {}
    for one in again:
        seeds.setdefault(one.attrs["tuner:round"], set()).add(one.attrs["tuner:seed"])
    assert all(len(own) == 1 for own in seeds.values())
    assert len({next(iter(own)) for own in seeds.values()}) == len(seeds)


@pytest.mark.longer
@pytest.mark.parametrize(("better", "worse"), [("sgd", "adamw"), ("adamw", "sgd")])
def test_where_optimizers_are_alike_the_answer_takes_what_the_winner_has(ledger, better, worse):
    study = of(ledger, space={"schedule": "constant", "optimizer": ["sgd", "adamw"]},
               search={"first": [complete(0.5, "constant", "sgd")]},
               budget={"trials": 16, "decide": 0.75})  # fmt: skip
    for index, optimizer in enumerate([worse, better, worse, better]):
        one = claim(ledger, study)
        draw(ledger, one, **complete(0.1 + index / 100, "constant", optimizer))
        ledger.finish(one.lease, completed(1.0 + index / 10), chunk=rows(0, 10))
    search = None
    while going := advance(ledger, ledger.study(study.name)):
        search = search or Search(going.again, ledger)
        for _ in range(going.added):
            one, made = drawn(ledger, going.again, search)
            noise = (
                one.trial.attrs["tuner:round"] * 7 + 3 * (made.params["optimizer"] == worse)
            ) % 5
            value = 1.0 + noise - 0.1 * (made.params["optimizer"] == better)
            ledger.finish(one.lease, completed(value), chunk=rows(0, 10))
    found = best.decision(ledger, ledger.study(study.name))["decision"]
    winner = ledger.trials(study.id)[found["winner"]]
    (answer,) = found["answers"]
    assert answer["take"] == winner.params["optimizer"]


def test_nothing_is_decided_before_the_search_is_over_nor_while_it_is_paused(ledger):
    study = searched(ledger, FOUND[:3])
    assert advance(ledger, study) is None
    one = claim(ledger, study)
    assert advance(ledger, ledger.study(study.name)) is None  # its last trial is running
    draw(ledger, one, **complete(0.2, "cosine", "sgd"))
    ledger.finish(one.lease, completed(2.0), chunk=rows(0, 10))
    managing.pause(ledger, study)
    assert advance(ledger, ledger.study(study.name)) is None
    managing.resume(ledger, study)
    assert advance(ledger, ledger.study(study.name)).added > 0


def test_two_workers_and_a_restarted_one_add_each_training_once(ledger):
    study = searched(ledger, FOUND)
    first = advance(ledger, study)
    assert first.added == len(ledger.trials(first.again.id)) > 0
    second = advance(ledger, study)  # from the same knowledge, and again after a crash
    assert (second.added, second.again.id) == (0, first.again.id)
    assert len(ledger.trials(first.again.id)) == first.added


@pytest.mark.longer
def test_further_trials_of_the_search_reopen_the_decision(ledger):
    study = searched(ledger, FOUND)
    trained = decided(ledger, study, lambda schedule, r: r + (schedule == "constant") + 0.01 * r**2)
    number = adding.enqueue(ledger, study, {"lr": 0.9}, raise_budget=True)
    study = ledger.study(study.name)
    assert (study.limit, study.deciding_trials, number) == (5, 12, 4)
    one = claim(ledger, study)
    draw(ledger, one, **complete(0.9, "constant", "sgd"))
    ledger.finish(one.lease, completed(0.5), chunk=rows(0, 10))
    assert is_undecided(ledger.study(study.name))
    more = decided(ledger, study, lambda schedule, r: r + (schedule == "constant") + 0.01 * r**2)
    assert trained + more <= 12


@pytest.mark.longer
def test_a_study_that_had_spent_its_budget_on_the_search_stays_as_it_is(ledger):
    budget = {"trials": 60, "decide": 0.0}
    study = of(ledger, budget=budget)
    for _ in range(58):
        claim(ledger, study)
    same = of(ledger, budget={"trials": 60})
    assert (same.limit, same.deciding_trials) == (60, 0)


# --- training


def line(ledger, **budget):
    return submitted(
        ledger,
        space={"lr": [0.01, 0.1, 0.3], "schedule": ["constant", "cosine"], "optimizer": "sgd"},
        search={"sampler": "random"},
        budget={"trials": 16, "decide": 0.5, **budget},
    )


@pytest.mark.slow
def test_workers_decide_at_the_end_of_a_study(ledger, places):
    study = train(ledger, places, line(ledger))
    assert ledger.counts(study.id)["completed"] == 8
    found = deciding.decision(ledger, study)
    assert found is not None
    assert found.race.over
    assert 6 <= len(found.race.values) <= 8
    assert found.again.settled == study.settled
    assert len(deciding.in_words(found)) == len(found.questions) + 1
    before = len(ledger.trials(found.again.id))
    train_all(ledger, places)  # a worker of all studies finds nothing more to do
    assert len(ledger.trials(found.again.id)) == before


@pytest.mark.slow
def test_a_worker_of_all_studies_goes_on_where_another_one_died(ledger, places):
    study = line(ledger)
    with failpoints.armed("decide.added=raise"), pytest.raises(FailpointError):
        train_all(ledger, places, [study.name])
    again = deciding.existing(ledger, study)
    assert again is not None
    added = len(ledger.trials(again.id))
    assert (added, ledger.counts(again.id)["completed"]) == (6, 0)
    train_all(ledger, places)
    found = deciding.decision(ledger, ledger.study(study.name))
    assert found.race.over
    assert added <= len(ledger.trials(again.id)) == len(found.race.values) <= 8


# --- what users see


@pytest.mark.longer
def test_the_decision_is_in_words_and_in_json_where_a_study_has_one(ledger):
    study = searched(ledger, FOUND)
    decided(ledger, study, lambda schedule, r: r + (schedule == "constant") + 0.01 * r**2)
    study = ledger.study(study.name)
    answer = status.status(ledger, study)["decision"]["answers"][0]["answer"]
    assert answer in sentences.answer(gather(ledger, study))
    small = submit_small(ledger, study={"name": "without"})
    assert "decision" not in status.status(ledger, small)


@pytest.mark.slow
def test_a_study_is_deleted_with_the_study_of_its_decision(ledger, places):
    study = searched(ledger, FOUND)
    again = advance(ledger, study).again
    manage.stop(ledger, places, study.name)
    assert {ledger.study(one.name).state for one in (study, again)} == {STOPPED}
    manage.delete(ledger, places, study.name)
    assert ledger.studies() == []
