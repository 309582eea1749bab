"""Programs that others wrote: what they are given, and what ends them."""

from __future__ import annotations

import subprocess

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import until

from tuner.core.commands import clean_environment, quoted, run_limited
from tuner.core.errors import UsageError

SECRETS = {
    "TUNER_DATABASE_URL": "postgresql://me:secret@db/tuning",
    "PGPASSWORD": "secret",
    "PGPASSFILE": "/secret",
    "MLFLOW_TRACKING_PASSWORD": "secret",
    "MLFLOW_TRACKING_URI": "http://me:secret@mlflow",
    "TUNER_NOTIFY_WEBHOOK": "https://hooks/secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
}


def run(script: str, seconds: float = 60.0, **more: int):
    command = ["sh", "-c", script]
    return run_limited(command, environment=clean_environment(), seconds=seconds, **more)


def test_an_environment_has_no_secret():
    found = clean_environment(SECRETS | {"PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": ""})
    assert set(found) == {"PATH", "LC_ALL", "CUDA_VISIBLE_DEVICES"}
    kept = clean_environment(SECRETS | {"WANDB_MODE": "offline"}, keep=["WANDB_", "AWS_REGION"])
    assert set(kept) == {"WANDB_MODE"}


def test_a_command_ends_with_its_code_and_the_end_of_its_output():
    ended = run("head -c 1000000 /dev/zero; echo end >&2; exit 3", output_bytes=10)
    assert (ended.code, ended.timed_out) == (3, False)
    assert ended.output == "\0" * 6 + "end\n"


def test_a_command_that_takes_too_long_is_killed_with_its_children():
    ended = run("sleep 600 & echo $!; wait", seconds=1.0)
    assert (ended.code, ended.timed_out) == (-9, True)
    until(lambda: not lives(int(ended.output)), "the end of its child")


def test_what_a_command_leaves_running_is_killed_when_it_ends():
    ended = run("sleep 600 & echo $!")
    assert (ended.code, ended.timed_out) == (0, False)
    until(lambda: not lives(int(ended.output)), "the end of its child")


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


HOSTILE = ["$(touch x)", "`id`", "; rm -rf /", "a b", "'", '"', "\\", "*", "#SBATCH", "-x", "", "é"]


def test_a_shell_obeys_nothing_that_is_quoted():
    line = quoted("printf", "%s\\n", *HOSTILE)
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == HOSTILE


@given(st.text(alphabet=st.characters(categories=["Cc", "Cf", "Zl", "Zp"]), min_size=1))
def test_what_would_begin_another_line_is_refused(text: str):
    with pytest.raises(UsageError, match="cannot be in a job script"):
        quoted("tuner", "worker", "--study", text)
