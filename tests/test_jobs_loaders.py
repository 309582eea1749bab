"""Jobs as people have them: a few lines make them trials, which nothing loses or doubles."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from processes import (
    assert_whole,
    end,
    left,
    prepare,
    processes_in,
    rows,
    start,
    stopped,
    tuner,
    until,
)

JOBS = Path(__file__).parent / "jobs"
NAMES = ("loaders", "gan", "partial_fit")
MOST_LINES = 5


@pytest.mark.parametrize("name", NAMES)
def test_a_job_needs_few_lines(name):
    lines = (JOBS / name / "job.py").read_text().splitlines()
    assert 0 < sum(line.endswith("# tuner") for line in lines) <= MOST_LINES


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_a_job_that_is_killed_and_interrupted_is_what_it_would_have_been(name, tmp_path):
    """Pruned, diverged and completed trials; killed, interrupted by Ctrl-C, and run to the end."""
    study = (JOBS / name / "study.toml").read_text()
    whole, folder = prepare(tmp_path / "whole", study), prepare(tmp_path / "parts", study)
    command = ("run", "study.toml", "--no-report", "--json")
    done = tuner(whole, *command)
    assert done.code == 0, done.err
    assert_whole(whole)
    expected = left(whole)
    assert {trial["state"] for trial in expected.ledger.values()} == {
        "completed", "pruned", "diverged"
    }  # fmt: skip

    armed = {"TUNER_FAILPOINTS_LOG": str(folder / "failpoints.log")}
    kill, stop = ({"TUNER_FAILPOINTS": f"checkpoint.renamed={one}@2"} for one in ("kill", "stop"))
    # a warm process looks as if it lived as long as its parent, and a loader's workers end with it
    killed = end(start(folder, *command, env=armed | kill, cold=True))
    assert killed.code == -signal.SIGKILL, killed.err
    until(lambda: processes_in(folder) == [], "the ends of a loader's workers")

    process = start(folder, *command, env=armed | stop)
    until(lambda: stopped(folder), "the second checkpoint")
    os.killpg(process.pid, signal.SIGINT)
    for one in stopped(folder):
        one.resume()
    done = end(process)
    assert done.code == 130, done.err
    until(lambda: processes_in(folder) == [], "the ends of a loader's workers")
    endings = "SELECT ending FROM tuner_attempts WHERE ending IN ('stale', 'interrupted')"
    assert sorted(rows(folder, endings)) == [("interrupted",), ("stale",)]

    done = tuner(folder, *command)
    assert done.code == 0, done.err
    assert_whole(folder, expected)
