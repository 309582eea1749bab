"""A process forked from the server of imports is as one that the interpreter starts."""

import os
import signal

import pytest
from processes import end, prepare, processes_in, start, trained_steps, until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("arguments", ["--version", "status nothing --json", "frobnicate"])
def test_it_prints_and_ends_as_a_cold_one(arguments, tmp_path):
    folder = prepare(tmp_path)
    assert end(start(folder, *arguments.split())) == end(
        start(folder, *arguments.split(), cold=True)
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_a_signal_reaches_it(number, tmp_path):
    arguments = '"tests.workloads:noisy"\narguments = { step_seconds = 0.05 }'
    folder = prepare(tmp_path, factory=arguments)
    process = start(folder, "run", "study.toml", "--no-report")
    until(lambda: trained_steps(folder) > 0, "some steps")
    os.killpg(process.pid, number)
    assert end(process).code == (130 if number == signal.SIGTERM else -number)
    until(lambda: not processes_in(folder), "its recorder to end")
