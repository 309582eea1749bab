"""The ledger's invariants, whoever calls and whatever dies."""

import inspect
import itertools
import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
from helpers import (
    PARAMS,
    checkpoint,
    claim,
    completed,
    contents,
    diverged,
    draw,
    expire,
    pruned,
    rows,
    spec,
    submit,
    went_on,
)
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from tuner.config import BudgetTable
from tuner.core.errors import LeaseLost, NotFoundError, UsageError
from tuner.core.outcome import CANCELLED, FAILED, KINDS, PRUNED, RUNNING, Outcome
from tuner.ledger import (
    STOPPED,
    AttemptLease,
    Entry,
    Ledger,
    Report,
    database,
)
from tuner.ledger.tables import attempts, checkpoints, metadata, studies, trials

STALE_RETRIES = BudgetTable(trials=1).retries.stale

NAN, INF = float("nan"), float("inf")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def ledger(either):
    """Everything here holds on both databases."""
    return either


# --- studies ----------------------------------------------------------------------------------


def test_a_study_is_created_once(ledger):
    first, created = ledger.submit(spec(), limit=10, workload={"code": "1"})
    again, created_again = ledger.submit(spec(), limit=10, workload={"code": "1"})
    assert (created, created_again) == (True, False)
    assert again == first == ledger.study("small")
    assert first.spec == spec()
    assert first.rungs == spec().rungs()
    assert ledger.studies() == [first]


def test_only_the_budget_of_a_study_may_change(ledger):
    submit(ledger)
    larger = submit(ledger, budget={"trials": 99})
    assert (larger.limit, larger.spec.budget.trials) == (99, 99)
    with pytest.raises(UsageError, match="exists and differs in more than its budget"):
        submit(ledger, training={"steps": 7})
    assert ledger.study("small") == larger


def test_many_may_submit_one_study_at_once(ledger):
    barrier = Barrier(8)

    def go(seed):
        barrier.wait()
        try:
            return submit(ledger, study={"name": "small", "seed": seed}).spec.study.seed
        except UsageError:
            return None

    with ThreadPoolExecutor(8) as pool:
        seeds = set(pool.map(go, range(8)))
    assert seeds == {ledger.study("small").spec.study.seed, None}
    assert len(ledger.studies()) == 1


def test_a_study_that_is_not_there_is_named_with_those_that_are(ledger):
    with pytest.raises(NotFoundError, match="no study 'x'; studies here: none yet"):
        ledger.study("x")
    submit(ledger)
    submit(ledger, study={"name": "other"})
    with pytest.raises(NotFoundError, match="no study 'x'; studies here: small, other"):
        ledger.study("x")


def test_what_the_first_start_settles_on_holds(ledger):
    study = submit(ledger)
    assert study.settled is None
    assert ledger.settle(study.id, {"threads": 1}) == {"threads": 1}
    assert ledger.settle(study.id, {"threads": 8}) == {"threads": 1}
    assert ledger.study("small").settled == {"threads": 1}


# --- asking -----------------------------------------------------------------------------------


def test_a_claim_reserves_the_next_number_and_has_no_parameters(ledger):
    study = submit(ledger, budget={"trials": 2})
    first, second = claim(ledger, study), claim(ledger, study)
    assert [first.trial.number, second.trial.number] == [0, 1]
    assert first.trial.params is None
    assert first.trial.state == RUNNING
    assert (first.lease.token, first.checkpoint) == (1, None)
    assert ledger.claim(study.id, "worker", {}) is None
    assert ledger.study("small").reserved == 2


def test_a_larger_budget_lets_the_study_go_on(ledger):
    study = submit(ledger, budget={"trials": 1})
    claim(ledger, study)
    assert ledger.claim(study.id, "worker", {}) is None
    submit(ledger, budget={"trials": 2})
    assert claim(ledger, study).trial.number == 1


def test_a_smaller_budget_takes_nothing_away(ledger):
    study = submit(ledger, budget={"trials": 3})
    held = [claim(ledger, study), claim(ledger, study)]
    submit(ledger, budget={"trials": 1})
    for one in held:
        ledger.finish(one.lease, completed(1.0))
    assert ledger.claim(study.id, "worker", {}) is None


def test_no_trial_of_a_stopped_study_is_given_out(ledger):
    study = submit(ledger)
    ledger.release(claim(ledger, study).lease, "interrupted", "Ctrl-C")
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(studies).values(state=STOPPED))
    assert ledger.claim(study.id, "worker", {}) is None


def test_waiting_trials_are_taken_up_oldest_first_before_any_new_one(ledger):
    study = submit(ledger)
    held = [claim(ledger, study) for _ in range(3)]
    for one in (held[2], held[1]):
        ledger.release(one.lease, "interrupted", "Ctrl-C")
    again = [claim(ledger, study) for _ in range(3)]
    assert [one.trial.number for one in again] == [1, 2, 3]
    assert [one.lease.token for one in again] == [2, 2, 1]


def test_trials_are_claimed_together_as_one_by_one(ledger):
    study = submit(ledger, budget={"trials": 6})
    held = ledger.claim_together(study.id, "worker", {}, 3)
    draw(ledger, held[1])
    ledger.append(held[1].lease, rows(0, 20))
    ledger.save_checkpoint(held[1].lease, checkpoint(10, trial=1))
    for one in (held[2], held[1]):
        ledger.release(one.lease, "interrupted", "Ctrl-C")
    again = ledger.claim_together(study.id, "worker", {}, 4)
    assert [one.trial.number for one in again] == [1, 2, 3, 4]
    assert [one.lease.token for one in again] == [2, 2, 1, 1]
    assert [one.trial.params for one in again] == [PARAMS, None, None, None]
    assert [one.checkpoint for one in again] == [checkpoint(10, trial=1), None, None, None]
    assert [one.endings for one in again] == [{"interrupted": 1}] * 2 + [{}] * 2
    assert {one.lease.trial_id for one in again} == {one.trial.id for one in again}
    assert [one.trial.number for one in ledger.claim_together(study.id, "other", {}, 9)] == [5]
    assert ledger.claim_together(study.id, "worker", {}, 9) == []


@pytest.mark.longer
@pytest.mark.parametrize("together", [1, 2, 4])
def test_the_budget_holds_when_threads_claim_at_once(ledger, together):
    study = submit(ledger, budget={"trials": 21})
    barrier = Barrier(16)

    def work(worker):
        barrier.wait()
        name = f"worker {worker}"
        claims = iter(lambda: ledger.claim_together(study.id, name, {}, together), [])
        return [one.trial.number for one in itertools.chain(*claims)]

    with ThreadPoolExecutor(16) as pool:
        numbers = list(itertools.chain(*pool.map(work, range(16))))
    assert sorted(numbers) == list(range(21))
    assert ledger.study("small").reserved == 21


def url_of(ledger):
    return ledger.engine.url.render_as_string(hide_password=False)


def claim_all(url, study_id, barrier, numbers):
    """Claim until there is nothing left, in a process of its own."""
    ledger = Ledger(database.ledger_engine(url))
    barrier.wait()
    for one in iter(lambda: ledger.claim(study_id, "worker", {}), None):
        numbers.put(one.trial.number)
    numbers.put(None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_the_budget_holds_when_processes_claim_at_once(ledger):
    study = submit(ledger, budget={"trials": 60})
    barrier, numbers = FORK.Barrier(4), FORK.Queue()
    arguments = (url_of(ledger), study.id, barrier, numbers)
    processes = [FORK.Process(target=claim_all, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    got = [list(iter(numbers.get, None)) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(itertools.chain(*got)) == list(range(60))
    assert ledger.study("small").reserved == 60


def test_the_table_itself_allows_one_live_attempt_a_trial(ledger):
    held = claim(ledger, submit(ledger))
    with ledger.engine.execution_options(writes=True).begin() as tx:
        row = dict(tx.execute(select(attempts)).one()._mapping)
        del row["id"]
        tx.execute(insert(attempts).values(**row | {"number": 2, "live": False}))
        with pytest.raises(IntegrityError, match=r"(?i)unique"):
            tx.execute(insert(attempts).values(**row | {"number": 3}))
    draw(ledger, held)


# --- fencing ----------------------------------------------------------------------------------

FENCED = {
    "draw": lambda ledger, lease: ledger.draw(
        lease, PARAMS, attrs={"a": 1}, study_attrs={"b": 1}, asked_revision=3
    ),
    "append": lambda ledger, lease: ledger.append(lease, rows(20, 30)),
    "report": lambda ledger, lease: ledger.report(
        lease, rows(20, 30), went_on(30, 0.5), attrs={"a": 1}
    ),
    "save_checkpoint": lambda ledger, lease: ledger.save_checkpoint(lease, checkpoint(20)),
    "finish": lambda ledger, lease: ledger.finish(
        lease, completed(1.0), chunk=rows(20, 30), report=went_on(30, 0.5), attrs={"a": 1}
    ),
    "release": lambda ledger, lease: ledger.release(lease, "interrupted", "Ctrl-C"),
    "begin_at_first_step": lambda ledger, lease: ledger.begin_at_first_step(lease),
    "begin_with": lambda ledger, lease: ledger.begin_with(lease, rows(0, 40)),
}


def test_every_method_that_takes_a_lease_has_a_case_here():
    methods = inspect.getmembers(Ledger, inspect.isfunction)
    taking = {
        name
        for name, method in methods
        if not name.startswith("_")
        and "AttemptLease" in map(str, inspect.get_annotations(method).values())
    }
    assert taking == set(FENCED)


def taken_away(ledger, study, lease, how):
    """End an attempt in one of the ways in which an attempt ends."""
    match how:
        case "reaped":
            expire(ledger, lease)
            assert ledger.reap() == 1
        case "reaped and claimed again":
            expire(ledger, lease)
            assert ledger.reap() == 1
            claim(ledger, study, "another")
        case "released":
            ledger.release(lease, "interrupted", "Ctrl-C")
        case "finished":
            ledger.finish(lease, completed(1.0))


HOW = ["reaped", "reaped and claimed again", "released", "finished"]
REPEATED = {("finish", "finished"), ("release", "released")}


@pytest.mark.longer
@pytest.mark.parametrize(
    ("name", "how"), [pair for pair in itertools.product(FENCED, HOW) if pair not in REPEATED]
)
def test_a_stale_token_is_refused_and_leaves_nothing_behind(ledger, name, how):
    study = submit(ledger)
    held = claim(ledger, study)
    ledger.append(held.lease, rows(0, 20))
    taken_away(ledger, study, held.lease, how)
    before = contents(ledger)
    with pytest.raises(LeaseLost, match="its token is refused"):
        FENCED[name](ledger, held.lease)
    assert contents(ledger) == before


@pytest.mark.parametrize(("name", "how"), sorted(REPEATED))
def test_a_last_call_that_is_repeated_does_nothing(ledger, name, how):
    """Its answer may have been lost with the connection."""
    study = submit(ledger)
    held = claim(ledger, study)
    taken_away(ledger, study, held.lease, how)
    before = contents(ledger)
    FENCED[name](ledger, held.lease)
    assert contents(ledger) == before


def entries_of(held):
    """Give an entry of each kind, for four trials."""
    first, second, third, fourth = (one.lease for one in held)
    return [
        Entry(lease=first, chunk=rows(0, 20)),
        Entry(lease=second, chunk=rows(0, 10), report=went_on(10, 0.5), attrs={"a": 1}),
        Entry(lease=third, chunk=rows(0, 0), outcome=diverged(0)),
        Entry(
            lease=fourth,
            chunk=rows(0, 10),
            report=went_on(10, 0.7),
            attrs={"a": 2},
            outcome=pruned(0.7),
        ),
    ]


CLOCK = {"created_at", "ended_at", "expires_at", "started_at", "revision", "claim"}


def timeless(ledger):
    """Give what is in the ledger but for times, and for how many commits that took."""
    with ledger.engine.begin() as tx:
        return {
            table.name: [
                {key: value for key, value in row._mapping.items() if key not in CLOCK}
                for row in tx.execute(table.select().order_by(*table.primary_key))
            ]
            for table in metadata.sorted_tables
        }


@pytest.mark.longer
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_what_is_committed_together_is_what_is_committed_one_by_one(new_ledger, order):
    found = []
    for together in (True, False):
        ledger = new_ledger()
        study = submit(ledger)
        entries = entries_of(ledger.claim_together(study.id, "worker", {}, 4))
        groups = [[entries[i] for i in order]] if together else [[one] for one in entries]
        for group in groups:
            assert not ledger.commit(group).lost
            assert not ledger.commit([one for one in group if one.outcome]).lost, "repeated"
        found.append(timeless(ledger))
    assert found[0] == found[1]


@pytest.mark.parametrize("gone", range(4))
def test_of_what_is_committed_together_only_the_lost_is_refused(ledger, gone):
    study = submit(ledger)
    held = ledger.claim_together(study.id, "worker", {}, 4)
    entries = entries_of(held)
    taken_away(ledger, study, held[gone].lease, "reaped and claimed again")
    assert ledger.commit(entries).lost == {held[gone].lease}
    ended = [trial.state for trial in ledger.trials(study.id)]
    expected = [RUNNING, RUNNING, "diverged", "pruned"]
    assert ended == [RUNNING if n == gone else state for n, state in enumerate(expected)]
    steps = [trial.steps for trial in ledger.trials(study.id)]
    assert steps == [0 if n == gone else many for n, many in enumerate([20, 10, 0, 10])]


@pytest.mark.parametrize("name", FENCED)
def test_a_forged_token_is_refused(ledger, name):
    study = submit(ledger)
    held = claim(ledger, study)
    ledger.append(held.lease, rows(0, 20))
    forged = AttemptLease(**{**vars(held.lease), "token": held.lease.token + 1})
    before = contents(ledger)
    with pytest.raises(LeaseLost):
        FENCED[name](ledger, forged)
    assert contents(ledger) == before
    FENCED[name](ledger, held.lease)


@pytest.mark.longer
@pytest.mark.parametrize("name", FENCED)
def test_a_lease_is_of_one_database_row_for_good(ledger, name):
    """Rows that were deleted lend their ids to nobody: a sleeper's lease fits no other study."""
    held = claim(ledger, submit(ledger))
    with ledger.engine.execution_options(writes=True).begin() as tx:
        for table in reversed(metadata.sorted_tables):
            tx.execute(table.delete())
    claim(ledger, submit(ledger, study={"name": "another"}))
    before = contents(ledger)
    with pytest.raises(LeaseLost):
        FENCED[name](ledger, held.lease)
    assert contents(ledger) == before


@pytest.mark.parametrize("name", sorted(FENCED.keys() - {"finish", "release"}))
def test_every_commit_renews_the_lease(ledger, name):
    study = submit(ledger)
    held = claim(ledger, study)
    ledger.append(held.lease, rows(0, 20))
    expire(ledger, held.lease)
    FENCED[name](ledger, held.lease)
    assert ledger.reap() == 0
    (attempt,) = ledger.attempts(study.id)
    assert attempt.expires_at > attempt.started_at + 20


# --- reaping ----------------------------------------------------------------------------------


def test_an_expired_lease_is_reaped_once(ledger):
    study = submit(ledger)
    lost, kept = claim(ledger, study), claim(ledger, study)
    expire(ledger, lost.lease)
    assert [ledger.reap(), ledger.reap()] == [1, 0]
    first, second = ledger.attempts(study.id)
    assert (first.live, first.ending, first.reason) == (False, "stale", "its lease expired")
    assert (second.live, second.ending) == (True, None)
    assert ledger.counts(study.id)["waiting"] == 1
    draw(ledger, kept)


def test_a_lease_that_is_renewed_while_the_reaper_looks_is_not_reaped(ledger):
    study = submit(ledger)
    late, other = claim(ledger, study, "late"), claim(ledger, study, "other")
    expire(ledger, late.lease)

    def look(worker):
        assert worker == "other", "what has expired is gone whoever has it"
        ledger.renew([late.lease])  # just in time
        return False

    assert ledger.reap(look) == 0
    draw(ledger, late)
    draw(ledger, other)


@pytest.mark.longer
def test_many_may_reap_at_once(ledger):
    study = submit(ledger, budget={"trials": 5})
    for one in [claim(ledger, study) for _ in range(5)]:
        expire(ledger, one.lease)
    with ThreadPoolExecutor(8) as pool:
        reaped = sum(pool.map(lambda _: ledger.reap(), range(8)))
    assert reaped == 5
    assert {attempt.ending for attempt in ledger.attempts(study.id)} == {"stale"}


@pytest.mark.parametrize(("spare", "state"), [(0, FAILED), (1, CANCELLED)])
def test_a_trial_lost_after_its_study_stopped_is_cancelled_unless_it_has_failed(
    ledger, spare, state
):
    study = submit(ledger, budget={"retries": {"stale": spare}})
    lost = claim(ledger, study)
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(studies).values(state=STOPPED))
    expire(ledger, lost.lease)
    assert ledger.reap() == 1
    assert [trial.state for trial in ledger.trials(study.id)] == [state]


def test_the_attempts_of_a_worker_that_is_gone_are_reaped_at_once(ledger):
    study = submit(ledger)
    lost, kept = claim(ledger, study, "gone"), claim(ledger, study, "here")
    assert ledger.reap(lambda worker: worker == "gone") == 1
    draw(ledger, kept)
    with pytest.raises(LeaseLost):
        draw(ledger, lost)
    assert ledger.attempts(study.id)[0].reason == "its worker's process is gone"


@pytest.mark.longer
def test_a_trial_fails_once_its_retries_are_spent(ledger):
    study = submit(ledger)
    for lost in range(1, STALE_RETRIES + 2):
        assert ledger.trials(study.id)[0].state == RUNNING if lost > 1 else True
        held = claim(ledger, study)
        assert held.trial.number == 0
        assert held.lease.token == lost
        expire(ledger, held.lease)
        assert ledger.reap() == 1
    (trial,) = ledger.trials(study.id)
    assert trial.state == FAILED
    assert trial.reason == "Its worker was lost 4 times; the last time, its lease expired."
    assert trial.ended_at is not None
    assert claim(ledger, study).trial.number == 1


def test_interruptions_do_not_count_as_losses(ledger):
    study = submit(ledger)
    for _ in range(2 * STALE_RETRIES):
        ledger.release(claim(ledger, study).lease, "interrupted", "Ctrl-C")
    assert claim(ledger, study).trial.number == 0


# --- curves and checkpoints -------------------------------------------------------------------


def test_rows_are_consecutive_and_none_is_written_twice(ledger):
    held = claim(ledger, submit(ledger))
    ledger.append(held.lease, rows(0, 12))
    ledger.append(held.lease, rows(0, 12, losses=[7.0] * 12))  # nothing new
    ledger.append(held.lease, rows(5, 25, losses=[8.0] * 20))  # 13 new rows
    with pytest.raises(AssertionError, match="the rows before these are missing"):
        ledger.append(held.lease, rows(26, 30))
    curve = ledger.curve(held.trial.id)
    assert curve.columns["train_loss"].tolist() == [1 / (1 + n) for n in range(12)] + [8.0] * 13
    assert curve.eval_steps.tolist() == [0, 10, 20]
    assert ledger.curve(held.trial.id, since=12).first_step == 12
    assert len(ledger.curve(held.trial.id, since=25).times) == 0


def test_numbers_that_are_not_finite_survive(ledger):
    held = claim(ledger, submit(ledger))
    losses = [1.0, INF, -INF, NAN, 5e-324, -0.0, 1.7976931348623157e308]
    ledger.finish(held.lease, diverged(), chunk=rows(0, 7, losses=losses))
    stored = ledger.curve(held.trial.id).columns["train_loss"]
    np.testing.assert_array_equal(stored, losses)
    assert np.signbit(stored[5])


def test_an_evaluation_before_the_first_step_is_kept_where_no_step_follows(ledger):
    held = claim(ledger, submit(ledger))
    ledger.finish(held.lease, diverged(0), chunk=rows(0, 0))
    assert ledger.curve(held.trial.id).eval_steps.tolist() == [0]


def late(until: int):
    """Return rows from step 10 on, with an evaluation at step 10."""
    return rows(9, until).after(10, evaluated=False)


@pytest.mark.parametrize("until", [10, 12], ids=["at the end", "with rows"])
@pytest.mark.parametrize("known", [False, True], ids=["late", "made again"])
def test_an_evaluation_at_the_end_of_the_committed_rows_is_committed_once(ledger, until, known):
    held = claim(ledger, submit(ledger))
    ledger.append(held.lease, rows(0, 9))
    ledger.append(held.lease, rows(9, 10) if known else without_evaluations(rows(9, 10)))
    assert late(until).eval_steps.tolist() == [10]
    ledger.finish(held.lease, completed(0.5), chunk=late(until))
    curve = ledger.curve(held.trial.id)
    assert curve.next_step == until
    assert curve.eval_steps.tolist() == [0, 10]


def test_an_evaluation_of_a_trial_that_goes_on_waits_for_a_row(ledger):
    held = claim(ledger, submit(ledger))
    ledger.append(held.lease, without_evaluations(rows(0, 10)))
    ledger.append(held.lease, late(10))
    ledger.append(held.lease, late(20))
    assert ledger.curve(held.trial.id).eval_steps.tolist() == [10, 20]


def without_evaluations(chunk):
    nothing = np.empty(0, dtype=np.int64)
    metrics = {name: np.empty(0) for name in chunk.metrics}
    return replace(chunk, eval_steps=nothing, eval_times=np.empty(0), metrics=metrics)


def test_the_times_of_a_trial_never_go_back(ledger):
    study = submit(ledger)
    held = claim(ledger, study)
    ledger.append(held.lease, rows(0, 10, time=1000.0))
    ledger.release(held.lease, "interrupted", "Ctrl-C")
    again = claim(ledger, study)
    ledger.append(again.lease, rows(10, 30, time=500.0))  # the clock was set back
    ledger.append(again.lease, rows(30, 40, time=2000.0))
    curve = ledger.curve(held.trial.id)
    assert np.all(np.diff(curve.times) >= 0)
    assert np.all(np.diff(curve.eval_times) >= 0)
    assert curve.times[10] == 1010.0
    assert ledger.trials(study.id)[0].last_time == curve.last_time == 2040.0


def test_a_checkpoint_replaces_the_one_before(ledger):
    study = submit(ledger)
    held = claim(ledger, study)
    ledger.append(held.lease, rows(0, 20))
    assert ledger.save_checkpoint(held.lease, checkpoint(10)) == []
    assert ledger.save_checkpoint(held.lease, checkpoint(20)) == [checkpoint(10)]
    assert ledger.save_checkpoint(held.lease, checkpoint(20)) == []
    assert ledger.checkpoints(study.id) == [checkpoint(20)]
    ledger.finish(held.lease, completed(1.0))
    assert ledger.checkpoints(study.id) == []


def test_a_checkpoint_whose_rows_are_not_committed_is_refused(ledger):
    study = submit(ledger)
    held = claim(ledger, study)
    ledger.append(held.lease, rows(0, 20))
    ledger.save_checkpoint(held.lease, checkpoint(20))
    with pytest.raises(AssertionError, match="the rows up to the checkpoint are not committed"):
        ledger.save_checkpoint(held.lease, checkpoint(21))
    assert ledger.checkpoints(study.id) == [checkpoint(20)]


def test_a_trial_is_taken_up_at_its_last_checkpoint_whose_rows_are_committed(ledger):
    study = submit(ledger)
    held = claim(ledger, study)
    ledger.append(held.lease, rows(0, 30))
    with ledger.engine.execution_options(writes=True).begin() as tx:
        for step in (10, 30, 20, 31, 40):
            row = {"trial_id": held.trial.id, "attempt_id": held.lease.row_id, "step": step}
            tx.execute(insert(checkpoints).values(**row, path=f"{step}.pt", digest="d1935"))
    ledger.release(held.lease, "interrupted", "Ctrl-C")
    again = claim(ledger, study)
    assert again.checkpoint == checkpoint(30)
    assert [attempt.first_step for attempt in ledger.attempts(study.id)] == [0, 30]


def test_a_trial_without_a_checkpoint_begins_anew_and_keeps_its_rows(ledger):
    study = submit(ledger)
    held = claim(ledger, study)
    draw(ledger, held)
    ledger.append(held.lease, rows(0, 30))
    ledger.release(held.lease, "interrupted", "Ctrl-C")
    again = claim(ledger, study)
    assert (again.checkpoint, again.trial.steps, again.trial.params) == (None, 30, PARAMS)
    ledger.append(again.lease, rows(0, 40))
    assert ledger.curve(held.trial.id).next_step == 40


# --- outcomes ---------------------------------------------------------------------------------


def test_a_finish_commits_rows_report_and_outcome(ledger):
    study = submit(ledger)
    held = claim(ledger, study)
    report = Report(step=20, value=0.5, pruned=True, reason="Pruned.")
    ledger.finish(held.lease, pruned(0.5), chunk=rows(0, 20), report=report, attrs={"rung": 1})
    (trial,) = ledger.trials(study.id)
    assert (trial.state, trial.value, trial.steps) == (PRUNED, 0.5, 20)
    assert (trial.reports, trial.attrs) == ((report,), {"rung": 1})
    (attempt,) = ledger.attempts(study.id)
    assert (attempt.live, attempt.ending, attempt.reason) == (False, "finished", PRUNED)
    assert attempt.ended_at == pytest.approx(trial.ended_at, abs=60)


def statements_of(ledger, action):
    """List what a call executes, transaction control left out."""
    seen = []

    def note(_conn, _cursor, statement, *_):
        if not statement.startswith("BEGIN"):
            seen.append(statement)

    event.listen(ledger.engine, "before_cursor_execute", note)
    try:
        action()
    finally:
        event.remove(ledger.engine, "before_cursor_execute", note)
    return seen


class BrokenError(Exception):
    """The failure that a test injects."""


@pytest.mark.longer
def test_a_finish_is_one_commit(new_ledger):
    """Wherever it breaks, nothing of it is there; and it can be done again."""

    def prepared():
        ledger = new_ledger()
        study = submit(ledger)
        held = claim(ledger, study)
        ledger.append(held.lease, rows(0, 10))
        ledger.save_checkpoint(held.lease, checkpoint(10))

        def finish():
            ledger.finish(
                held.lease,
                completed(0.5),
                chunk=rows(10, 20),
                report=went_on(20, 0.5),
                attrs={"a": 1},
            )

        return ledger, finish

    ledger, finish = prepared()
    statements = statements_of(ledger, finish)
    assert len(statements) > 5
    for broken in range(len(statements)):
        ledger, finish = prepared()
        before = contents(ledger)
        left = itertools.count()

        def fail(_conn, _cursor, statement, *_, broken=broken, left=left):
            if not statement.startswith("BEGIN") and next(left) == broken:
                raise BrokenError

        event.listen(ledger.engine, "after_cursor_execute", fail)
        with pytest.raises(BrokenError):
            finish()
        assert contents(ledger) == before, f"after statement {broken}: {statements[broken]}"
        event.remove(ledger.engine, "after_cursor_execute", fail)
        finish()


@pytest.mark.longer
@pytest.mark.parametrize("value", [None, NAN, INF, -INF])
def test_a_completed_trial_has_a_finite_value(ledger, value):
    held = claim(ledger, submit(ledger))
    before = contents(ledger)["tuner_trials"]
    with pytest.raises(AssertionError):
        ledger.finish(held.lease, completed(value))
    with pytest.raises(AssertionError):
        ledger.report(held.lease, rows(0, 10), went_on(10, NAN), attrs={})
    assert contents(ledger)["tuner_trials"] == before


# --- what others read -------------------------------------------------------------------------


@pytest.mark.longer
def test_changes_are_exactly_what_changed(ledger):
    study = submit(ledger)
    other = submit(ledger, study={"name": "other"})
    seen = ledger.study("small").revision

    def changed():
        nonlocal seen
        changes = ledger.changes(study.id, seen)
        everything = {trial.number: trial for trial in ledger.trials(study.id)}
        for trial in changes.trials:
            assert trial == everything[trial.number]
        searched = ledger.searched(study.id, seen)
        assert list(searched.trials) == [trial.searched() for trial in changes.trials]
        assert (searched.revision, searched.attrs) == (changes.revision, changes.attrs)
        numbers = [trial.number for trial in changes.trials]
        assert (changes.revision > seen) == bool(numbers), "a revision for each change seen"
        seen = changes.revision
        return numbers

    assert changed() == []
    held = [claim(ledger, study) for _ in range(3)]
    assert changed() == [0, 1, 2]
    assert changed() == []
    draw(ledger, held[1])
    assert changed() == [1]
    draw(ledger, held[2])
    draw(ledger, claim(ledger, other))
    draw(ledger, held[0])
    assert changed() == [0, 2]
    ledger.append(held[0].lease, rows(0, 10))  # search does not see rows,
    ledger.save_checkpoint(held[0].lease, checkpoint(10))  # checkpoints,
    ledger.renew([held[0].lease])  # leases
    ledger.release(held[0].lease, "interrupted", "Ctrl-C")
    held[0] = claim(ledger, study)
    assert changed() == []
    ledger.report(held[1].lease, rows(0, 10), went_on(10, 0.5), attrs={"rung": 0.5})
    assert changed() == [1]
    ledger.finish(held[2].lease, diverged())
    ledger.finish(held[1].lease, completed(0.5), chunk=rows(10, 20))
    assert changed() == [1, 2]
    assert [trial.number for trial in ledger.changes(study.id, 0).trials] == [0, 1, 2]


def test_a_trial_that_fails_by_its_losses_is_a_change(ledger):
    study = submit(ledger)
    for _ in range(STALE_RETRIES + 1):
        revision = ledger.study("small").revision
        expire(ledger, claim(ledger, study).lease)
        ledger.reap()
    changes = ledger.changes(study.id, revision)
    assert [trial.state for trial in changes.trials] == [FAILED]


def test_what_a_sampler_keeps_on_the_study_is_merged(ledger):
    study = submit(ledger)
    for attrs in ({"a": 1, "b": 1}, {}, {"b": 2}):
        lease = claim(ledger, study).lease
        ledger.draw(lease, PARAMS, attrs={}, study_attrs=attrs, asked_revision=1)
    assert ledger.changes(study.id, 0).attrs == {"a": 1, "b": 2}


def test_what_is_drawn_is_read_back_as_it_was(ledger):
    study = submit(ledger)
    held = claim(ledger, study)
    params = {**PARAMS, "lr": 0.1 + 0.2, "n": 3, "one": 1.0, "flag": True, "name": "é"}
    ledger.draw(
        held.lease, params, attrs={"rung": INF, "x": [1, None]}, study_attrs={}, asked_revision=7
    )
    (trial,) = ledger.trials(study.id)
    assert trial.params == params
    assert [type(value) for value in trial.params.values()] == [
        float,
        str,
        str,
        int,
        float,
        bool,
        str,
    ]
    assert (trial.attrs, trial.asked_revision) == ({"rung": INF, "x": [1, None]}, 7)


@pytest.mark.longer
def test_counts_are_by_outcome_and_by_who_trains(ledger):
    study = submit(ledger, budget={"trials": 20})
    assert ledger.counts(study.id) == dict.fromkeys((*KINDS, RUNNING, "waiting"), 0)
    outcomes = [completed(1.0)] * 3 + [pruned()] * 2 + [diverged()] * 4
    outcomes.append(Outcome(kind=CANCELLED, reason="Stopped."))
    for outcome in outcomes:
        ledger.finish(claim(ledger, study).lease, outcome)
    for one in [claim(ledger, study) for _ in range(5)][:2]:
        ledger.release(one.lease, "interrupted", "Ctrl-C")
    assert ledger.counts(study.id) == {
        "completed": 3, "pruned": 2, "diverged": 4, "failed": 0, "cancelled": 1,
        "running": 3, "waiting": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("direction", "outcomes", "best"),
    [
        ("minimize", [], None),
        ("minimize", [diverged(), pruned(0.0)], None),
        ("minimize", [completed(2.0), pruned(0.0), completed(1.0), completed(3.0)], 2),
        ("maximize", [completed(2.0), pruned(9.0), completed(1.0), completed(3.0)], 3),
        ("minimize", [completed(2.0), completed(1.0), completed(1.0)], 1),
        ("maximize", [completed(1.0), completed(2.0), completed(2.0)], 1),
        ("minimize", [completed(0.0), completed(-1.0), completed(-0.5)], 1),
        ("maximize", [completed(-2.0), completed(-1e-300), completed(-1.0)], 1),
    ],
)
def test_the_best_trial_is_the_first_of_the_best_completed_ones(ledger, direction, outcomes, best):
    study = submit(ledger, study={"name": "small", "direction": direction})
    for outcome in outcomes:
        held = claim(ledger, study)
        draw(ledger, held)
        ledger.finish(held.lease, outcome)
    found = ledger.best(study)
    assert (None if found is None else found.number) == best


def test_the_environment_of_an_attempt_is_kept(ledger):
    study = submit(ledger)
    ledger.claim(study.id, "host:1:2", {"device": "cpu", "packages": {"torch": "2"}})
    (attempt,) = ledger.attempts(study.id)
    assert (attempt.worker, attempt.number, attempt.live) == ("host:1:2", 1, True)
    assert attempt.environment == {"device": "cpu", "packages": {"torch": "2"}}


def test_the_databases_clock_counts_seconds_since_1970(ledger):
    import time

    study = submit(ledger)
    assert study.created_at == pytest.approx(time.time(), abs=5)
    held = claim(ledger, study)
    assert held.lease.started_at == pytest.approx(time.time(), abs=5)


def test_no_row_is_left_half_written(ledger):
    """JSON columns hold JSON: no `null` where nothing was stored yet."""
    study = submit(ledger)
    claim(ledger, study)
    with ledger.engine.begin() as tx:
        row = tx.execute(text("SELECT params, attrs FROM tuner_trials")).one()
        assert row.params is None
        assert json.loads(row.attrs) == {}
        assert tx.scalar(select(trials.c.id).where(trials.c.params.is_(None))) is not None
