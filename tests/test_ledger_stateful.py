"""Workers come, work, die, are reaped and wake up, in any order; the invariants always hold."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from helpers import (
    checkpoint,
    completed,
    contents,
    diverged,
    draw,
    expire,
    pruned,
    rows,
    submit,
    went_on,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from test_ledger import FENCED

from tuner.config import BudgetTable
from tuner.core.errors import LeaseLost
from tuner.core.outcome import FAILED, RUNNING
from tuner.ledger import Ledger, database

STALE_RETRIES = BudgetTable(trials=1).retries.stale


class Workers(RuleBasedStateMachine):
    """What the workers do, and what should then be true by their own accounts."""

    make = None  # a fresh ledger; set by the test
    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.ledger = type(self).make()
        self.study = submit(self.ledger, budget={"trials": 2})
        self.limit = 2
        self.holder = {}  # trial number: the lease that holds it
        self.endings = {}  # by attempt: how it ended
        self.dead = set()  # attempts whose worker sleeps past its lease
        self.losses = {}  # trial number: the committed losses
        self.lost = {}  # trial number: attempts lost with their worker
        self.saved = {}  # trial number: step of the checkpoint
        self.reports = {}  # trial number: steps
        self.ended = {}  # trial number: the outcome's kind
        self.number = {}  # trial id: number
        self.known = {}  # what one sees who only ever reads changes
        self.revision = 0

    def holds(self, lease):
        return self.holder.get(self.number[lease.trial_id]) == lease

    def commit(self, lease, action, ending=None):
        """Do it; a worker without its lease is refused, and leaves nothing behind.

        Except who asks again for the end that it has had: that may have been a lost answer.
        """
        if self.holds(lease):
            action()
            if ending:
                self.endings[lease.row_id] = ending
            self.dead.discard(lease.row_id)  # its lease is renewed
            return True
        before = contents(self.ledger)
        again = ending is not None and self.endings.get(lease.row_id) == ending
        with nullcontext() if again else pytest.raises(LeaseLost):
            action()
        assert contents(self.ledger) == before
        return False

    @rule(target=leases, more=st.booleans())
    def claim(self, more):
        if more:
            self.limit += 1
            submit(self.ledger, budget={"trials": self.limit})
        waiting = [n for n in self.losses if n not in self.holder and n not in self.ended]
        claimed = self.ledger.claim(self.study.id, "worker", {})
        if claimed is None:
            assert not waiting
            assert len(self.losses) == self.limit
            return next(iter(self.holder.values()), None)
        number = claimed.trial.number
        assert number == min(waiting, default=len(self.losses))
        self.holder[number] = claimed.lease
        self.number[claimed.trial.id] = number
        self.losses.setdefault(number, [])
        at = claimed.checkpoint.step if claimed.checkpoint else None
        assert at == self.saved.get(number)
        if claimed.trial.params is None:
            draw(self.ledger, claimed)
        return claimed.lease

    @rule(
        lease=leases.filter(lambda lease: lease is not None), name=st.sampled_from(sorted(FENCED))
    )
    def wake_up_late(self, lease, name):
        if not self.holds(lease):
            ending = {"finish": "finished", "release": "interrupted"}.get(name)
            self.commit(lease, lambda: FENCED[name](self.ledger, lease), ending)

    @rule(
        lease=leases.filter(lambda lease: lease is not None),
        back=st.integers(0, 15),
        count=st.integers(0, 20),
        mark=st.floats(allow_nan=True, allow_infinity=True),
        rung=st.booleans(),
    )
    def measure(self, lease, back, count, mark, rung):
        number = self.number[lease.trial_id]
        steps = len(self.losses[number])
        first = max(0, steps - back)
        count = max(count, first == 0)  # only the end of a trial is without rows
        chunk = rows(first, first + count, losses=[mark] * count, time=1000.0 - steps)
        step = chunk.next_step
        if rung and step > max(self.reports.get(number, [0])):
            done = self.commit(
                lease,
                lambda: self.ledger.report(lease, chunk, went_on(step, 1.0), attrs={"at": step}),
            )
            if done:
                self.reports.setdefault(number, []).append(step)
        else:
            done = self.commit(lease, lambda: self.ledger.append(lease, chunk))
        if done:
            self.losses[number] += [mark] * (step - steps)

    @rule(lease=leases.filter(lambda lease: lease is not None), back=st.integers(0, 5))
    def save(self, lease, back):
        number = self.number[lease.trial_id]
        step = max(0, len(self.losses[number]) - back)
        record = checkpoint(step, number)
        if self.commit(lease, lambda: self.ledger.save_checkpoint(lease, record)):
            self.saved[number] = step

    @rule(
        lease=leases.filter(lambda lease: lease is not None),
        outcome=st.sampled_from([completed(1.0), diverged(), pruned()]),
        count=st.integers(0, 5),
    )
    def finish(self, lease, outcome, count):
        number = self.number[lease.trial_id]
        steps = len(self.losses[number])
        chunk = rows(steps, steps + count, losses=[0.0] * count)
        if self.commit(lease, lambda: self.ledger.finish(lease, outcome, chunk=chunk), "finished"):
            self.losses[number] += [0.0] * count
            self.ended[number] = outcome.kind
            self.saved.pop(number, None)
            del self.holder[number]

    @rule(lease=leases.filter(lambda lease: lease is not None))
    def release(self, lease):
        if self.commit(
            lease, lambda: self.ledger.release(lease, "interrupted", "Ctrl-C"), "interrupted"
        ):
            del self.holder[self.number[lease.trial_id]]

    @rule(lease=leases.filter(lambda lease: lease is not None))
    def fall_asleep(self, lease):
        if self.holds(lease):
            expire(self.ledger, lease)
            self.dead.add(lease.row_id)

    @rule()
    def reap(self):
        assert self.ledger.reap() == len(self.dead)
        for number, lease in list(self.holder.items()):
            if lease.row_id in self.dead:
                del self.holder[number]
                self.lost[number] = self.lost.get(number, 0) + 1
                if self.lost[number] > STALE_RETRIES:
                    self.ended[number] = FAILED
        self.dead.clear()

    @invariant()
    def the_ledger_agrees(self):
        study = self.ledger.study(self.study.name)
        trials = self.ledger.trials(study.id)
        attempts = self.ledger.attempts(study.id)
        assert study.reserved == len(trials) <= study.limit == self.limit
        assert [trial.number for trial in trials] == list(range(len(trials)))
        assert {trial.number: trial.state for trial in trials} == {
            number: self.ended.get(number, RUNNING) for number in self.losses
        }
        live = [attempt for attempt in attempts if attempt.live]
        assert sorted((self.number[one.trial_id], one.number) for one in live) == sorted(
            (number, lease.token) for number, lease in self.holder.items()
        )
        for trial in trials:
            own = [attempt.number for attempt in attempts if attempt.trial_id == trial.id]
            assert own == list(range(1, len(own) + 1))
            assert (trial.reason is None) == (trial.ended_at is None) == (trial.state == RUNNING)
            assert [r.step for r in trial.reports] == self.reports.get(trial.number, [])
        counts = self.ledger.counts(study.id)
        assert sum(counts.values()) == study.reserved
        assert counts["running"] == len(self.holder)

    @invariant()
    def curves_are_whole(self):
        for trial in self.ledger.trials(self.study.id):
            curve = self.ledger.curve(trial.id)
            losses = self.losses[trial.number]
            assert curve.next_step == trial.steps == len(losses)
            np.testing.assert_array_equal(curve.columns.get("train_loss", []), losses)
            assert np.all(np.diff(curve.times) >= 0)
            assert len(set(curve.eval_steps.tolist())) == len(curve.eval_steps)

    @invariant()
    def changes_tell_all_that_search_sees(self):
        changes = self.ledger.changes(self.study.id, self.revision)
        assert changes.revision >= self.revision
        for trial in changes.trials:
            assert self.revision < trial.revision <= changes.revision
        self.revision = changes.revision
        self.known |= {trial.number: trial for trial in changes.trials}
        assert {number: seen(trial) for number, trial in self.known.items()} == {
            trial.number: seen(trial) for trial in self.ledger.trials(self.study.id)
        }
        revisions = [trial.revision for trial in self.known.values()]
        assert len(set(revisions)) == len(revisions)


def seen(trial):
    """Leave out of a trial what search does not see."""
    return replace(trial, steps=0, last_time=0.0)


@pytest.mark.longer
def test_the_invariants_hold_whatever_workers_do(new_ledger):
    hold(new_ledger, examples=12)


@pytest.mark.slow
def test_the_invariants_hold_on_postgresql(postgres, migrated, tmp_path):
    engines = []

    def make():
        places = database.addresses({"TUNER_DATABASE_URL": postgres.database(migrated)}, tmp_path)
        engines.append(database.ledger_engine(places.ledger))
        return Ledger(engines[-1], grace_seconds=0.0)

    hold(make, examples=6)
    for engine in engines:
        engine.dispose()


def hold(make, examples):
    machine = type("Workers", (Workers,), {"make": staticmethod(make)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
