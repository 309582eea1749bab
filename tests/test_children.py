"""Processes: those of a workload keep nothing of ours; those of a command end with it."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import warm
from children import STAYING
from processes import (
    STUDY,
    assert_whole,
    end,
    environment,
    prepare,
    processes_in,
    rows,
    start,
    trained_steps,
    tuner,
    until,
)

from tuner.core.forking import keep_from_children
from tuner.core.processes import stop_on_signals

# --- what children have of ours


@contextmanager
def forked() -> Iterator[int]:
    """Let a child that was forked wait until the body has ended."""
    there, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(there)
        os.close(tell)
        while True:
            signal.pause()
    os.close(tell)
    os.read(there, 1)  # its end
    os.close(there)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_pipe_ends_though_a_forked_child_lives():
    reading, writing = (os.fdopen(one, mode) for one, mode in zip(os.pipe(), "rw", strict=True))
    keep_from_children(writing)
    with forked(), reading:
        writing.close()
        assert reading.read() == ""


def test_a_port_is_free_though_a_forked_child_lives():
    with socket.create_server(("127.0.0.1", 0)) as server:
        keep_from_children(server)
        address = server.getsockname()
        with forked():
            server.close()
            socket.create_server(address).close()


def test_what_is_closed_hinders_no_child(tmp_path: Path):
    with (tmp_path / "closed").open("w") as closed:
        keep_from_children(closed)
    with forked() as child:
        assert psutil.Process(child).is_running()


class Interrupted(io.StringIO):
    """A stream that a signal interrupts in each write, and that cannot be written meanwhile."""

    def __init__(self):
        super().__init__()
        self.writing = False

    def write(self, text):
        assert not self.writing, "written while it was being written"
        self.writing = True
        if "interrupted here" in text:
            signal.raise_signal(signal.SIGINT)
        self.writing = False
        return super().write(text)


def test_a_signal_may_come_while_a_line_is_logged(monkeypatch):
    stream = Interrupted()
    handler = logging.StreamHandler(stream)
    monkeypatch.setattr(handler, "handleError", lambda record: stream.write("failed"))
    logging.root.addHandler(handler)
    try:
        with stop_on_signals("saving the trial") as stop:
            logging.getLogger("tuner").warning("interrupted here")
            assert stop.is_set()
        for thread in threading.enumerate():
            if thread.name == "signal":
                thread.join()
    finally:
        logging.root.removeHandler(handler)
    lines = stream.getvalue().splitlines()
    assert lines == ["interrupted here", "SIGINT: saving the trial; repeat to end at once"]


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGTERM], -signal.SIGTERM),
        ([signal.SIGINT], 0),
        ([signal.SIGINT, signal.SIGINT], 1),
    ],
    ids=["SIGTERM", "Ctrl-C", "Ctrl-C twice"],
)
def test_a_forked_child_is_not_stop_on_signals_in_our_place(numbers, code, capfd):
    """Its parent ends it by SIGTERM; a first Ctrl-C in the terminal is for us alone."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a process of its own
    with stop_on_signals("saving the trial") as stop:
        child = os.fork()
        if not child:
            try:
                for number in numbers:
                    os.kill(os.getpid(), number)
                os._exit(0)
            except KeyboardInterrupt:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
        assert not stop.is_set()
    assert "saving" not in capfd.readouterr().err


SMALL = """
[study]
name = "small"

[workload]
{workload}
arguments = {{ start = "{start}" }}

[training]
steps = 8

[space]
lr = [0.1, 0.01]
schedule = "constant"
optimizer = "sgd"

[search]
sampler = "grid"
pruner = "none"

[budget]
trials = 2
"""


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(
    ("workload", "method", "staying"),
    [("train", "fork", 2), ("train", "spawn", 1), ("factory", "fork", 0)],
)
def test_a_run_waits_for_no_child_of_its_workload(tmp_path, workload, method, staying):
    function = f'{workload} = "tests.children:{workload}"'
    study = SMALL.format(workload=function, start=method)
    if workload == "factory":
        study = study.replace("steps = 8", "steps = 8\nbatch_size = 8")
    folder = prepare(tmp_path, study)
    try:
        done = tuner(folder, "run", "study.toml", "--no-report", "--json")
    finally:
        left = (folder / STAYING).read_text().split() if (folder / STAYING).exists() else []
        for number in left:
            os.kill(int(number), signal.SIGKILL)
    assert done.code == 0, done.err
    assert len(left) == staying
    assert done.json["trials"]["completed"] == 2
    assert_whole(folder)
    until(lambda: processes_in(folder) == [], "the end of all that need not stay")


@pytest.mark.slow
def test_ctrl_c_says_what_a_run_waits_for_at_its_end(tmp_path):
    folder = prepare(tmp_path, sampler='"random"', pruner='"none"')
    run = start(folder, "run", "study.toml", "--no-report")
    assert run.stderr is not None
    until(lambda: len(programs(folder)) == 2, "the recorder")
    program, recorder = sorted(programs(folder), key=psutil.Process.create_time)
    (started,) = program.children()  # it stands for the recorder, a fork of a server
    recorder.suspend()
    waits = f"waiting for the recorder (process {started.pid}) to publish what is left"
    assert waits in next(line for line in run.stderr if "recorder" in line)
    os.kill(run.pid, signal.SIGINT)
    assert f"SIGINT: {waits}; repeat to end at once" in run.stderr.readline()
    recorder.resume()
    assert end(run).code == 0
    assert_whole(folder)


def programs(folder: Path) -> list[psutil.Process]:
    """Return the programs that work in a folder, without what stands for those that begin.

    Such a stand-in is a child of who starts the program, whose own parent is the server.
    """
    found = processes_in(folder)
    return [one for one in found if one.ppid() not in {other.pid for other in found}]


# --- workers of a command end with it


def slow(folder: Path, **changes: str) -> Path:
    arguments = "arguments = { step_seconds = 0.01 }\n\n[training]"
    calm = {"lr": "[0.001, 0.002]", "sampler": '"random"', "pruner": '"none"'}
    return prepare(folder, STUDY.replace("\n[training]", arguments, 1), **calm, **changes)


@pytest.mark.thorough
@pytest.mark.slow
def test_workers_of_a_command_that_is_killed_save_their_trials_and_end(tmp_path):
    folder = slow(tmp_path, steps="300", trials="2")
    run = start(folder, "run", "study.toml", "--workers", "2", "--no-report")
    until(lambda: live(folder) == 2, "both workers")
    until(lambda: trained_steps(folder) > 10, "some steps")
    run.kill()
    until(lambda: processes_in(folder) == [], "the workers' ends")
    run.communicate()
    endings = rows(folder, "SELECT live, ending FROM tuner_attempts")
    assert endings == [(0, "interrupted")] * 2
    done = tuner(folder, "run", "study.toml", "--no-report", "--json")
    assert done.code == 0, done.err
    assert_whole(folder)


@pytest.mark.slow
def test_a_worker_that_was_started_by_itself_outlives_who_started_it(tmp_path):
    folder = slow(tmp_path, trials="2")
    assert tuner(folder, "submit", "study.toml").code == 0
    command = [warm.python(), "-m", "tuner", "worker", "--until-idle"]
    code = f"import subprocess; subprocess.Popen({command!r}, stdin=subprocess.DEVNULL)"
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(folder), check=True)
    until(lambda: rows(folder, "SELECT 1 FROM tuner_attempts"), "the worker's first trial")
    until(lambda: processes_in(folder) == [], "the worker's end", seconds=120)
    assert rows(folder, "SELECT count(*) FROM tuner_trials WHERE state <> 'running'") == [(2,)]
    assert_whole(folder)


def live(folder: Path) -> int:
    return int(rows(folder, "SELECT count(*) FROM tuner_attempts WHERE live")[0][0])
