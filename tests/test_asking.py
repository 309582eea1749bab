"""Ask and tell: the caller trains under a lease, and everything else is as with workers."""

from __future__ import annotations

import gc
import math
import re
import subprocess
import threading
from pathlib import Path

import pytest
import warm
from helpers import expire

import tuner
from tuner.config import reading
from tuner.core.errors import LeaseLost, StudyFileError, UsageError, WorkloadError
from tuner.ledger import Ledger, database
from tuner.operations import ask, run
from tuner.operations.ask import Asker
from tuner.operations.doctor import examine
from tuner.operations.enqueue import enqueue

DOCUMENT = Path(__file__).parents[1] / "docs" / "python.md"
SPACE = {"lr": tuner.log(1e-4, 1), "schedule": "constant", "optimizer": "sgd"}


def study(trials=4, steps=None, **tables):
    budget = tuner.Budget(trials=trials, steps=steps)
    return tuner.Study("asked", budget=budget, **{"space": SPACE, **tables})


@pytest.fixture
def asking(ledger, places):
    """Make what asks for trials of a study; nothing is published."""
    made: list[Asker] = []

    def make(*arguments, again: Ledger | None = None, **tables) -> Asker:
        known = again or ledger
        record = ask.submitted(known, study(*arguments, **tables).spec)
        made.append(Asker(known, places, record, recorder=False))
        return made[-1]

    yield make
    for one in made:
        one.close()


def told(ledger):
    record = ledger.study("asked")
    return [(one.state, one.value, one.steps) for one in ledger.trials(record.id)]


@pytest.mark.longer
def test_trials_are_asked_for_and_told_until_the_budget_is_spent(ledger, asking):
    asker = asking(3)
    for value in (3.0, 1.0, 2.0):
        trial = asker.ask()
        assert set(trial.params) >= {"lr", "schedule", "optimizer"}
        assert trial.tell(value) == "completed"
    assert asker.ask() is None
    assert told(ledger) == [("completed", v, 0) for v in (3.0, 1.0, 2.0)]
    assert ledger.best(ledger.study("asked")).number == 1


@pytest.mark.longer
def test_the_draws_are_those_of_a_worker(asking, new_ledger):
    other = new_ledger()
    one, two = asking(3), asking(3, again=other)
    for value in (1.0, 2.0, 3.0):
        mine, same = one.ask(), two.ask()
        assert (mine.params, mine.seed) == (same.params, same.seed)
        mine.tell(value)
        same.tell(value)


def test_reports_make_a_curve_and_steps_may_be_left_out(ledger, asking):
    trial = asking(1, 10).ask()
    assert trial.report(0, train_loss=5.0, val_loss=6.0)
    assert trial.report(4, val_loss=3.0)
    assert trial.report(4, train_loss=2.0, grad_norm=1.0)
    assert trial.report(10, val_loss=1.0)
    trial.tell(1.0)
    record = ledger.study("asked")
    curve = ledger.curve(ledger.trials(record.id)[0].id)
    assert curve.next_step == 10
    losses = list(curve.columns["train_loss"])
    assert (losses[0], losses[4]) == (5.0, 2.0)
    assert all(map(math.isnan, losses[1:4] + losses[5:]))
    assert [step for step, known in enumerate(curve.reported) if known] == [0, 4]
    assert list(curve.eval_steps) == [0, 4, 10]
    assert list(curve.metrics["val_loss"]) == [6.0, 3.0, 1.0]


@pytest.mark.longer
@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ([{"step": 3, "train_loss": 1.0}, {"step": 2, "train_loss": 1.0}], "expected step 4"),
        ([{"step": 10, "train_loss": 1.0}], "steps below 10"),
        ([{"step": 11, "val_loss": 1.0}], "steps up to 10"),
        ([{"step": 1, "val_loss": 1.0}, {"step": 1, "val_loss": 1.0}], "of step 1 once"),
        ([{"step": 1, "score": 1.0}], "expected the metrics val_loss, score"),
        ([{"step": 1, "val_loss": "low"}], "expected val_loss to be one number"),
    ],
)
def test_reports_against_the_rules(asking, reports, message):
    trial = asking(1, 10).ask()
    *before, last = reports
    for report in before:
        assert trial.report(**report)
    with pytest.raises(ValueError, match=message):
        trial.report(**last)


@pytest.mark.longer
def test_the_pruner_ends_a_trial_at_a_rung(ledger, asking):
    pruner = {"name": "median", "startup_trials": 1, "warmup_steps": 1}
    asker = asking(2, 10, search={"pruner": pruner}, training={"steps": 10, "evaluate_every": 2})
    for loss in (1.0, 9.0):
        trial = asker.ask()
        going = [trial.report(step, val_loss=loss) for step in range(2, 11, 2)]
        ended = trial.tell(loss)
    assert going[-1] is False
    assert ended == "pruned"  # it has ended, so its value is not needed
    assert told(ledger)[1][:2] == ("pruned", 9.0)


@pytest.mark.longer
@pytest.mark.parametrize(
    ("end", "state", "reason"),
    [
        (lambda trial: trial.report(3, train_loss=math.nan), "diverged", "The loss was nan."),
        (lambda trial: trial.report(3, val_loss=math.inf), "diverged", "val_loss was inf at step"),
        (lambda trial: trial.tell(math.nan), "diverged", "Its val_loss was nan."),
        (lambda trial: trial.tell(failed="no data"), "failed", "no data."),
        (lambda trial: trial.tell(failed=KeyError("x")), "failed", "raised KeyError: 'x'"),
    ],
)
def test_other_ends(ledger, asking, end, state, reason):
    trial = asking(1, 10).ask()
    end(trial)
    assert trial.state == state
    (one,) = ledger.trials(ledger.study("asked").id)
    assert one.state == state
    assert reason in one.reason


def test_a_trial_is_told_a_value_or_a_reason(asking):
    trial = asking(1).ask()
    for arguments in ({}, {"value": 1.0, "failed": "x"}):
        with pytest.raises(UsageError, match="the trial's value, or failed"):
            trial.tell(**arguments)


@pytest.mark.longer
def test_a_lost_trial_is_given_to_the_next_ask_and_its_first_holder_is_refused(ledger, asking):
    one = asking(1, 10)
    trial = one.ask()
    trial.report(0, train_loss=1.0)
    trial.report(3, train_loss=1.0)
    trial._sink._commit()
    expire(ledger, trial.claim.lease)
    assert ledger.reap() == 1
    again = asking(1, 10).ask()
    assert (again.number, again.params) == (trial.number, trial.params)
    with pytest.raises(LeaseLost, match="attempt 1 at the trial was given up"):
        trial.tell(1.0)
    again.report(0, train_loss=1.0)
    again.report(5, val_loss=0.5)
    assert again.tell(0.5) == "completed"
    assert told(ledger) == [("completed", 0.5, 5)]


@pytest.mark.slow
def test_a_lease_is_renewed_while_the_trial_is_kept(asking):
    asker = asking(2)
    trial = asker.ask()
    lease = trial.claim.lease
    assert asker._renewer.holds(lease)
    del trial
    gc.collect()
    assert not asker._renewer.holds(lease)  # it expires, as that of a worker that died


@pytest.mark.longer
def test_closing_leaves_trials_to_the_next_ask(ledger, asking):
    one = asking(2)
    trial = one.ask()
    one.close()
    assert asking(2).ask().number == trial.number


@pytest.mark.slow
def test_threads_ask_for_different_trials(ledger, asking):
    asker, found = asking(8), []

    def work():
        while trial := asker.ask():
            found.append(trial.number)
            trial.tell(float(trial.number))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(8))


def test_enqueued_trials_are_asked_for_first(ledger, asking):
    asker = asking(3)
    enqueue(ledger, "asked", {"lr": 0.25})
    assert asker.ask().lr == 0.25


def test_workers_refuse_a_study_that_is_asked(ledger, places, asking):
    asking(1)
    todo = run.Work(names=("asked",), prefixes=("tests.",), until_idle=True)
    with pytest.raises(WorkloadError, match=r"no function to train: .* study\.ask"):
        run.train(ledger, places, todo, recorder=False)


def test_a_study_with_a_function_is_not_asked(ledger):
    made = study(1, 5, train="studies.mine:train")
    with pytest.raises(UsageError, match=r"trains studies\.mine:train, so its workers take"):
        ask.submitted(ledger, made.spec)


def test_any_parameter_may_be_asked_for(asking):
    space = {**SPACE, "hidden": tuner.ints(8, 64), "batch_size": [16, 32]}
    trial = asking(1, space=space).ask()
    assert 8 <= trial.params["hidden"] <= 64
    assert trial.params["batch_size"] in (16, 32)


def test_a_file_says_so_too():
    text = study(4, 10).to_toml()
    assert "ask_and_tell = true" in text
    assert reading.parse(text, "asked.toml") == study(4, 10).spec
    with pytest.raises(StudyFileError, match=r"\[workload\] train: expected nothing, as ask_and"):
        reading.parse(
            text.replace("ask_and_tell = true", 'ask_and_tell = true\ntrain = "a:b"'), "x.toml"
        )


@pytest.mark.slow
def test_the_documented_script_asks_and_everything_is_published(tmp_path):
    script = tmp_path / "script.py"
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)[1]
    dies = "        if trial.number == 2 and 'die' in sys.argv:\n            os._exit(9)\n"
    loop = "    while trial := study.ask():\n"
    assert loop in code
    code = "import os, sys\n" + code.replace(loop, loop + dies)
    script.write_text(f"{code}    print(len(study.trials()))\n")
    log = tmp_path / "log"  # a file, since the recorder of a script that dies outlives it

    def call(*arguments):
        command = [warm.python(), "-m", "script", str(script), *arguments]
        with log.open("a") as errors:
            return subprocess.run(
                command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=errors, text=True, check=False
            )

    assert call("die").returncode == 9
    done = call()
    assert done.returncode == 0, log.read_text()
    assert done.stdout.splitlines()[-1] == "5"
    places = database.addresses({}, tmp_path)
    assert examine(database.ledger_engine(places.ledger), places) == []


@pytest.mark.longer
def test_constraints_are_judged_by_told_and_by_reported_metrics(ledger, asking):
    asker = asking(3, 10, constraints=["accuracy >= 0.97"])
    first, second, third = (asker.ask() for _ in range(3))
    assert first.tell(1.0, metrics={"accuracy": 0.9}) == "completed"
    second.report(5, val_loss=3.0, accuracy=0.99)
    assert second.tell(2.0) == "completed"
    assert third.tell(0.5) == "failed"
    record = ledger.study("asked")
    assert ledger.best(record).number == second.number
    assert [one.infeasible for one in ledger.trials(record.id)] == [True, False, False]
