"""Several ranks in one trial: each stops where rank 0 stops, and none is left."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from processes import end, processes_in, rows, start, tuner, until

from tests.test_isolation import TASK, train, trainer_of
from tests.test_own_loops import put, work
from tests.test_programs import JOBS, PYTHON, here, job, programs, spec_of
from tests.test_reference import curve_of
from tuner.ledger import Ledger
from tuner.training.programs.conversation import ProgramError
from tuner.training.programs.decisions import STOP, Decisions, Position
from tuner.training.trainer import Event, Status

__all__ = ["here"]  # a fixture

GO = {"due": False}


def row(step: int) -> Position:
    return Position(step, is_row=True)


def metrics(step: int) -> Position:
    return Position(step, is_row=False)


def test_a_rank_gets_the_answer_that_rank_0_gets_to_the_same_report():
    decisions = Decisions(2)
    assert decisions.arrive(1, row(0)) is None  # it waits for rank 0
    assert decisions.arrive(0, row(0)) is None  # it is to be judged
    decisions.decide(row(0), GO)
    assert decisions.arrive(1, row(0)) is GO
    decisions.arrive(0, row(1))
    decisions.decide(row(1), {"due": True})
    decisions.arrive(0, row(2))
    decisions.decide(row(2), GO)
    assert decisions.arrive(1, row(1)) == {"due": True}  # it is behind
    assert decisions.arrive(1, metrics(2)) == {}  # rank 0 has not made this report


@pytest.mark.parametrize("ahead", [0, 1], ids=["rank 0 arrives first", "rank 1 arrives first"])
def test_all_ranks_stop_at_the_same_report(ahead):
    decisions = Decisions(2)
    for rank in (0, 1):
        decisions.arrive(rank, row(0))
        decisions.decide(row(0), GO)
    decisions.stopping = True
    assert decisions.arrive(1, row(0)) is GO  # rank 0 has gone on from there
    assert decisions.arrive(ahead, row(1)) is STOP
    assert decisions.arrive(1 - ahead, row(1)) is STOP


def test_a_stop_at_metrics_of_rank_0_alone_comes_at_the_next_row():
    decisions = Decisions(2)
    for rank in (0, 1):
        decisions.arrive(rank, row(0))
        decisions.decide(row(0), GO)
    decisions.arrive(0, metrics(1))  # pruned
    decisions.stopping = True
    assert decisions.arrive(0, metrics(1)) == {}
    assert decisions.arrive(1, row(1)) is STOP
    assert decisions.arrive(0, row(1)) is STOP


def test_a_stop_of_ranks_that_never_report_is_not_delayed():
    decisions = Decisions(4)
    decisions.stopping = True
    assert decisions.arrive(0, metrics(0)) is STOP


def test_answers_are_forgotten_after_a_while(monkeypatch):
    monkeypatch.setattr("tuner.training.programs.decisions.KEPT", 3)
    decisions = Decisions(2)
    for step in range(5):
        decisions.arrive(0, row(step))
        decisions.decide(row(step), {"step": step})
    assert [decisions.arrive(1, row(step)) for step in range(5)] == [
        {}, {}, {"step": 2}, {"step": 3}, {"step": 4},
    ]  # fmt: skip


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.thorough
def test_a_job_of_two_ranks_is_pruned_and_diverges_on_both(ledger: Ledger, here, tmp_path):
    text = (JOBS / "torchrun" / "train.py").read_text().replace("argparse\n", "argparse, atexit\n")
    leaves = "\natexit.register(lambda: print(f'rank {rank} leaves at epoch {epoch}'))\nfor epoch"
    (here / "train.py").write_text(text.replace("\nfor epoch", leaves, 1))
    spec = spec_of(
        ["train.py", "--epochs", "{steps}"],
        workload={"processes": 2},
        space={"lr": [0.3, 0.001, 1e25], "schedule": "constant", "optimizer": "sgd"},
        search={"sampler": "grid", "pruner": {"name": "median", "startup_trials": 1}},
        budget={"trials": 3},
    )
    put(ledger, spec, PYTHON)
    work(ledger, tmp_path, "program", PYTHON)
    assert [trial.state for trial in ledger.trials(1)] == ["completed", "pruned", "diverged"]
    for number in range(3):
        (output,) = (here / ".tuner" / "programs").glob(f"*/trial-{number}-*/output.log")
        left = dict(re.findall(r"rank (\d) leaves at epoch (\d+)", output.read_text()))
        assert left.keys() == {"0", "1"}
        assert left["0"] == left["1"]


@pytest.mark.slow
@pytest.mark.thorough
def test_an_interrupted_job_of_two_ranks_goes_on_at_its_checkpoint(tmp_path):
    """By Ctrl-C, after which both ranks have left at the same step, and by `kill -9`."""
    words = ["python", "ranks.py", "--lr", "{lr}", "--epochs", "{steps}"]
    words += ["--folder", "{checkpoint_dir}", "--slow", str(tmp_path)]
    folder = job(tmp_path, words, [0.2], 'processes = 2\nfolder = "trial"')
    (folder / "ranks.py").write_text((JOBS / "ranks.py").read_text())
    text = (folder / "study.toml").read_text().replace("steps = 12", "steps = 100")
    text = text.replace("[space]", "checkpoint_seconds = 0.01\n\n[space]")
    (folder / "study.toml").write_text(text)
    (folder / "slow").touch()  # so that it does not end before it is interrupted
    begun = [0]
    for number in (signal.SIGINT, signal.SIGKILL):
        process = start(folder, "run", "study.toml", cold=number == signal.SIGKILL)
        saved = f"SELECT 1 FROM tuner_checkpoints WHERE step > {begun[-1] + 3}"
        until(lambda saved=saved: rows(folder, saved), "a checkpoint", seconds=200)
        ranks = programs(folder)
        assert len(ranks) >= 3  # two ranks and their launcher
        os.kill(process.pid, number)
        assert end(process).code == (130 if number == signal.SIGINT else -signal.SIGKILL)
        psutil.wait_procs(ranks, timeout=60)
        until(lambda: not processes_in(folder) and not programs(folder), "the end of all ranks")
        begun.append(rows(folder, "SELECT max(step) FROM tuner_checkpoints")[0][0])
    (folder / "slow").unlink()
    done = end(start(folder, "run", "study.toml", "--json"))
    assert done.code == 0, done.err
    assert done.json["trials"]["completed"] == 1
    attempts = rows(folder, "SELECT first_step, ending FROM tuner_attempts ORDER BY number")
    endings = ["interrupted", "stale", "finished"]
    assert attempts == list(zip(begun, endings, strict=True))
    by_ctrl_c, *_ = sorted(
        folder.glob(".tuner/programs/*/trial-0-*"), key=lambda one: one.stat().st_mtime
    )
    left = dict(
        re.findall(r"rank (\d) leaves at epoch (\d+)", (by_ctrl_c / "output.log").read_text())
    )
    assert left.keys() == {"0", "1"}
    assert left["0"] == left["1"]
    assert tuner(folder, "doctor", "--json").json["problems"] == []


@pytest.mark.thorough
@pytest.mark.slow
def test_a_train_function_on_two_ranks_measures_the_same_when_it_is_resumed(here):
    """Its metrics are of rank 0 alone; the random numbers are those of each rank."""
    drawn = [torch.Generator().manual_seed(3 + rank) for rank in (0, 1)]
    expected = [sum(torch.rand((), generator=one).item() for one in drawn) for _ in range(12)]
    trainer = trainer_of("on_ranks", processes=2)
    trainer.admit(TASK)
    events = []
    while not events or events[-1].next_step < 6:
        events += trainer.advance(6 - (events[-1].next_step if events else 0))
    snapshot = trainer.snapshot(0)
    trainer.evict(0)
    assert (here / "rank-0").read_text() == (here / "rank-1").read_text()
    rest = train(trainer, replace(TASK, snapshot=snapshot))
    assert rest[0].first_step > 3
    assert rest[-1].status is Status.FINISHED
    measured = curve_of(rest)[0]["train_loss"]
    np.testing.assert_allclose(measured, expected[-len(measured) :], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.thorough
def test_each_rank_of_a_killed_job_ends_with_the_values_of_an_uninterrupted_one(here):
    """Parameters, momenta and random numbers."""
    trainer = trainer_of("learning_on_ranks", processes=2)

    def states() -> list[list[torch.Tensor]]:
        return [torch.load(here / f"state-{rank}.pt") for rank in (0, 1)]

    whole = curve_of(train(trainer, TASK))
    expected = states()
    trainer.admit(TASK)
    events: list[Event] = []
    while not events or events[-1].next_step < 6:
        events += trainer.advance(6 - (events[-1].next_step if events else 0))
    snapshot = trainer.snapshot(0)
    os.kill(int((here / "pid-1").read_text()), signal.SIGKILL)
    with pytest.raises(ProgramError, match="rank 1: ended by SIGKILL"):
        events.extend(event for _ in range(1000) for event in trainer.advance(1))
    trainer.evict(0)
    resumed = train(trainer, replace(TASK, snapshot=snapshot))
    assert resumed[0].first_step > 3
    losses = curve_of(resumed)[0]["train_loss"]
    np.testing.assert_array_equal(losses, whole[0]["train_loss"][-len(losses) :])
    for found, rank in zip(states(), expected, strict=True):
        for one, other in zip(found, rank, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
    first, second = expected
    assert not torch.equal(first[-1], second[-1])  # the random numbers of each rank


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_and_is_the_reason(here):
    with pytest.raises(ProgramError, match="rank 1: ended by SIGKILL"):
        train(trainer_of("dying", processes=2), TASK)
    pids = [int((here / f"pid-{rank}").read_text()) for rank in (0, 1)]
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
