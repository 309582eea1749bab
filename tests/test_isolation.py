"""Trials in processes of their own: what one breaks, the worker and the next do not notice."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from processes import end, prepare, processes_in, rows, start, until

from tests.test_own_loops import put, work
from tests.test_programs import mistakes_in, spec_of
from tests.test_reference import advance, curve_of
from tuner.core import failures
from tuner.ledger import Ledger
from tuner.training import trainer_choice
from tuner.training.function_trainer import FunctionTrainer
from tuner.training.programs import limits
from tuner.training.programs.conversation import ProgramError
from tuner.training.programs.function import environment
from tuner.training.trainer import Event, Status, Task

FAULTS = ["none", "segfault", "exit", "sys.exit", "interrupt", "raise", "leak"]
TASK = Task(
    number=0,
    seed=3,
    params={"lr": 0.1, "schedule": "constant", "optimizer": "sgd", "constant.warmup": 0.0},
)


def trainer_of(name: str, isolation: str = "process", **workload: object) -> FunctionTrainer:
    own = {"command": None, "train": f"tests.faulty:{name}", "isolation": isolation} | workload
    spec = spec_of([], workload=own, training={"steps": 12, "checkpoint_seconds": 1e-9})
    space = {"lr": 0.1, "schedule": "constant", "optimizer": "sgd"}
    if name in ("descend", "state", "run_on"):
        space["arguments"] = {"fault": FAULTS}
    spec = spec.model_validate(spec.model_dump() | {"space": space})
    return FunctionTrainer(trainer_choice.load(spec, ["tests."]), spec)


def with_fault(fault: str) -> Task:
    return replace(TASK, params=TASK.params | {"fault": fault})


def train(trainer, task, chunks=()):
    trainer.admit(task)
    try:
        return advance(trainer, chunks)
    finally:
        trainer.evict(task.number)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def servers() -> list[psutil.Process]:
    """Return the fork servers of this process."""
    living = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    return [one for one in living if "fork_server" in str(one.cmdline())]


@pytest.fixture(scope="module")
def descending() -> FunctionTrainer:
    """One trainer, and so one fork server, for all faults."""
    return trainer_of("descend")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("{ train = 'b:c', isolation = 'process' }", ""),
        ("{ train = 'b:c', processes = 2 }", ""),
        ("{ command = ['a'], processes = 2, isolation = 'process' }", ""),
        ("{ command = ['a'], isolation = 'thread' }", "a command has its own"),
        ("{ train = 'b:c', processes = 2, isolation = 'thread' }", "processes are of their own"),
        ("{ factory = 'b:c', isolation = 'process' }", "for a train function or a command"),
        ("{ factory = 'b:c', processes = 2 }", "for a train function or a command"),
        ("{ train = 'b:c', processes = 0 }", 'a number of at least 1 or "gpus"'),
        ("{ train = 'b:c', processes = 'gpus' }", 'device = "cuda" in [training]'),
    ],
)
def test_mistakes_are_found_when_it_is_submitted(table, expected):
    found = mistakes_in(workload=table)
    assert expected in found if expected else found == ""


def test_a_function_gets_the_worker_s_environment_without_addresses_and_passwords(monkeypatch):
    for name in ("TUNER_DATABASE_URL", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("MY_SETTING", "1")
    found = environment()
    assert found["MY_SETTING"] == "1"
    assert "secret" not in found.values()


@pytest.mark.slow
def test_it_measures_what_it_does_in_the_worker_s_process(here, descending):
    """Also interrupted and resumed; random numbers included."""
    own = curve_of(train(trainer_of("descend", "thread"), with_fault("none")))
    assert curve_of(train(descending, with_fault("none")))[0]["train_loss"].tolist() == (
        own[0]["train_loss"].tolist()
    )
    descending.admit(with_fault("none"))
    step = 0
    while step < 5:
        step = descending.advance(5 - step)[0].next_step
    snapshot = descending.snapshot(0)
    descending.evict(0)
    rest = train(descending, replace(with_fault("none"), snapshot=snapshot))
    assert rest[0].first_step > 2
    measured = curve_of(rest)[0]["train_loss"]
    np.testing.assert_array_equal(measured, own[0]["train_loss"][-len(measured) :])
    assert rest[-1].status is Status.FINISHED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("segfault", r"ProgramError: ended by SIGSEGV: Fatal Python error: .* \(faulty.py:\d+\)"),
        ("exit", r"ProgramError: its process ended with exit code 0 before it returned \(faulty"),
        ("sys.exit", r"RuntimeError: tests.faulty:descend raised SystemExit \(faulty.py:\d+\)"),
        ("interrupt", r"RuntimeError: tests.faulty:descend raised KeyboardInterrupt \(faulty"),
    ],
)
def test_a_process_that_ends_fails_its_trial_alone(here, descending, fault, sentence):
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        train(descending, with_fault(fault))
    assert re.search(sentence, failures.sentence(raised.value, "tests.faulty:descend"))
    assert train(descending, with_fault("none"))[-1].status is Status.FINISHED


@pytest.mark.slow
def test_rows_that_the_function_did_not_wait_with_are_judged_and_kept(here):
    own = curve_of(train(trainer_of("run_on", "thread"), with_fault("none")))
    assert own[2] == (Status.DIVERGED, own[2][1], 9)
    trainer = trainer_of("run_on")
    found = curve_of(train(trainer, with_fault("none")))
    assert found[0]["train_loss"].tolist() == own[0]["train_loss"].tolist()
    assert found[2] == own[2]
    trainer.admit(with_fault("exit"))
    events: list[Event] = []
    with pytest.raises(ProgramError):
        events.extend(event for _ in range(1000) for event in trainer.advance(100))
    assert events[-1].next_step == 9


@pytest.mark.slow
def test_an_exception_has_the_reason_and_the_traceback_of_its_process(here, descending):
    found = []
    for trainer in (trainer_of("descend", "thread"), descending):
        with pytest.raises(RuntimeError) as raised:
            train(trainer, with_fault("raise"))
        found.append(failures.sentence(raised.value, "tests.faulty:descend"))
        assert "nn.Linear(2, 2)(torch.ones(3))" in failures.full_traceback(raised.value)
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (limits.MEMORY, "200MiB", "MiB of memory, more than 200.0MiB"),
        (limits.PROCESSES, "3", "it had 4 processes, more than 3"),
    ],
)
def test_limits_of_programs_hold_for_its_process_and_what_it_has_started(
    here, monkeypatch, name, value, message
):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(limits, "LOOK_SECONDS", 0.05)
    trainer = trainer_of("greedy")
    with pytest.raises(ProgramError, match=message) as raised:
        train(trainer, TASK)
    assert raised.value.place == "limit:0"
    left = {psutil.Process(), *servers()}
    until(lambda: left.issuperset(processes_in(here)), "the end of its processes")


@pytest.mark.slow
def test_leaked_memory_and_threads_end_with_the_trial(here, descending):
    train(descending, with_fault("none"))
    threads = threading.active_count()
    assert train(descending, with_fault("leak"))[-1].status is Status.FINISHED
    assert threading.active_count() == threads
    until(lambda: not any(one.children() for one in servers()), "the end of the trial's processes")


@pytest.mark.slow
def test_global_state_is_that_of_a_new_process_in_each_trial(here):
    trainer = trainer_of("state")
    values = [train(trainer, replace(TASK, number=n))[-1].value for n in range(2)]
    assert values == [0.0, 0.0]
    assert "FAULTY" not in os.environ


@pytest.mark.slow
def test_a_server_that_was_killed_is_replaced(here, descending):
    train(descending, with_fault("none"))
    for server in servers():
        server.kill()
        server.wait()
    assert train(descending, with_fault("none"))[-1].status is Status.FINISHED


@pytest.mark.slow
def test_a_module_with_threads_is_not_forked(here, caplog):
    (here / "threaded.py").write_text(
        "import threading\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "def train(trial):\n    trial.report(trial.steps, val_loss=1.0)\n"
    )
    spec = spec_of(
        [], workload={"command": None, "train": "threaded:train", "isolation": "process"}
    )
    try:
        trainer = FunctionTrainer(trainer_choice.load(spec, ["threaded."]), spec)
        assert train(trainer, TASK)[-1].status is Status.FINISHED
        assert "each trial starts an interpreter" in caplog.text
    finally:
        sys.modules.pop("threaded", None)


STUDY = """
[study]
name = "faulty"

[workload]
train = "tests.faulty:wait"
isolation = "process"

[training]
steps = 12

[space]
lr = [0.1]
schedule = "constant"
optimizer = "sgd"

[search]
sampler = "grid"
pruner = "none"

[budget]
trials = 1
"""


@pytest.mark.slow
def test_a_worker_survives_its_trials(ledger: Ledger, here, tmp_path):
    space = {"lr": 0.1, "schedule": "constant", "optimizer": "sgd"}
    own = {"command": None, "train": "tests.faulty:descend", "isolation": "process"}
    faults = ["segfault", "exit", "none"]
    spec = spec_of(
        [], workload=own, space=space | {"arguments": {"fault": faults}}, budget={"trials": 3}
    )
    put(ledger, spec, ["tests."])
    work(ledger, tmp_path, "program", ["tests."])
    ended = {trial.params["fault"]: trial.state for trial in ledger.trials(1)}
    assert ended == {"segfault": "failed", "exit": "failed", "none": "completed"}


@pytest.mark.thorough
@pytest.mark.slow
def test_nothing_is_left_of_a_worker_that_was_killed(tmp_path):
    folder = prepare(tmp_path, STUDY)
    process = start(folder, "run", "study.toml", cold=True)
    until(lambda: rows(folder, "SELECT 1 FROM tuner_trials WHERE steps > 0"), "a report")
    os.kill(process.pid, signal.SIGKILL)
    end(process)
    until(lambda: not processes_in(folder), "the end of the trial's processes")
