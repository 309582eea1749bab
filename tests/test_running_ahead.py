"""A program runs a little ahead of its judgment, and stops at the step that it is ordered to."""

from __future__ import annotations

import io
import json
import math
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tuner.config.study import WorkloadTable
from tuner.training.programs.conversation import Conversation
from tuner.training.programs.current import ProgramStopped, Worker
from tuner.training.programs.decisions import AHEAD_SECONDS, MOST_AHEAD, Decisions
from tuner.training.rate_source import rate_source

PARAMS = {"lr": 0.1, "schedule": "constant", "optimizer": "sgd", "constant.warmup": 0.0}
STEPS = 12


def untils(seconds: list[float]) -> list[int]:
    """Return the steps up to which a program may go, after rows at these times."""
    decisions = Decisions(2)
    found = []
    for step, now in enumerate(seconds):
        decisions.extend(step, now)
        found.append(decisions.until)
    return found


def test_a_program_with_slow_steps_waits_for_the_judgment_of_each():
    slow = 1.01 * AHEAD_SECONDS
    assert untils([slow * step for step in range(5)]) == [0, 1, 2, 3, 4]


def test_a_program_with_fast_steps_is_ahead_by_a_moment():
    found = untils([0.02 * step for step in range(100)])
    assert found[0] == 0
    assert all(step < until <= step + 25 for step, until in enumerate(found[1:], 1))
    assert untils([1e-9 * step for step in range(3)])[-1] <= 2 + MOST_AHEAD


def test_rows_that_arrive_together_after_a_pause_do_not_count_as_fast_steps():
    steady = [0.1 * step for step in range(50)]
    burst = [steady[-1] + 1.0 + 1e-4 * step for step in range(10)]
    assert untils(steady + burst)[-1] <= len(steady + burst) + 5


# --- the end of the program


@dataclass
class Link:
    """A connected program, and the worker's end of its connection."""

    program: Worker
    connection: socket.socket

    def send(self, **message: Any) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def report(self, step: int, loss: float = 1.0) -> None:
        self.program.trained(step, loss, 0.1, math.nan)

    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.connection.recv(1 << 16).splitlines()]


@pytest.fixture(params=[1, 2], ids=["one process", "two ranks"])
def link(request, tmp_path: Path, monkeypatch) -> Iterator[Link]:
    monkeypatch.chdir(tmp_path)  # the addresses of sockets are short
    monkeypatch.setenv("WORLD_SIZE", str(request.param))
    about = {"first_step": 0, "checkpoint_dir": str(tmp_path), "socket": "socket"}
    rates = rate_source(PARAMS, STEPS, "minimize")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        listener.listen()
        program = Worker(about, rates, {}, 0, STEPS, {4})
        connection, _ = listener.accept()
    with connection, program._socket:
        yield Link(program, connection)


def test_rows_wait_for_no_answer_up_to_the_step_of_an_order(link):
    link.send(order="go on", step=2)
    link.send(order="stop", step=3)
    for step in range(3):
        link.report(step)
    with pytest.raises(ProgramStopped):
        link.report(3)
    introduction, *rows = link.requests()
    assert introduction == {"rank": 0}
    assert [row["step"] for row in rows] == [0, 1, 2, 3]


def test_a_checkpoint_is_due_from_the_step_of_an_order_and_at_steps_to_keep(link):
    link.send(order="go on", step=10)
    link.send(order="save", step=1)
    due = []
    for step in range(5):
        link.report(step)
        due.append(link.program.due())
        link.program._due = False  # as after a save
    assert due == [False, True, False, True, False]


def test_metrics_wait_for_their_answer_which_comes_after_orders(link):
    link.send(order="go on", step=10)
    link.report(0)
    link.send(order="stop", step=2)
    link.send(due=True, value=0.5)
    link.program.evaluated(1, {"val_loss": 0.5})
    assert link.program.due()
    link.report(1)
    with pytest.raises(ProgramStopped):
        link.report(2)


def test_a_report_against_the_rules_waits_for_its_error(link):
    link.send(order="go on", step=10)
    link.report(3)
    link.send(error="steps increase")
    with pytest.raises(ValueError, match="steps increase"):
        link.report(3)
    assert "ahead" not in link.requests()[-1]


def test_a_program_without_a_worker_is_over(link):
    link.send(order="go on", step=10)
    link.connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ProgramStopped):
        link.report(0)


@pytest.mark.parametrize("link", [1], indirect=True)
def test_a_loss_that_ends_the_trial_by_itself_waits_for_its_answer(link):
    link.send(order="go on", step=10)
    link.send(stop=True)
    with pytest.raises(ProgramStopped):
        link.report(0, math.inf)
    assert "ahead" not in link.requests()[-1]


def test_a_checkpoint_leaves_out_what_other_ranks_are_writing(tmp_path):
    """They write and remove their own files at any time; those of the same call are added later."""
    names = ["trial.pt", "deep/weights.pt", "trial-rank-1-3.pt", ".trial-rank-1-4.pt.0f.partial"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"state")
    trial = SimpleNamespace(params=PARAMS, number=0)
    one = Conversation(
        trial,
        WorkloadTable(command=["true"]),
        tmp_path,
        io.BytesIO(),
        evaluated=0,
        metric="val_loss",
        ranks=2,
    )
    assert set(one._read_files()) == {"trial.pt", "deep/weights.pt"}
