"""Programs that others wrote: what they are given, and what ends them."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import until

from tests.test_reference import advance
from tuner.config import StudySpec
from tuner.core.commands import clean_environment, quoted, run_limited
from tuner.core.errors import UsageError, WorkloadError
from tuner.training.function_trainer import FunctionTrainer
from tuner.training.programs import command, other_user
from tuner.training.trainer import Status, Task

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


@pytest.mark.longer
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


# --- another user for commands --------------------------------------------------------------------

SHELL = """#!/bin/sh
cd "$TUNER_CHECKPOINT_DIR" || exit 1
cat SECRET && echo '{"step": 1, "val_loss": 99}'
cat /proc/$PPID/environ && echo '{"step": 1, "val_loss": 98}'
[ "$HOME" = HOME_OF_USER ] || exit 1
echo state > weights
ln -s weights latest
echo '{"step": 6, "checkpoint": true, "val_loss": '$(id -u)'}'
LINK
echo '{"step": 12, "checkpoint": true, "val_loss": '$(id -u)'}'
"""


@pytest.fixture
def open_folder(monkeypatch):
    """A folder that other users may pass through, with a file that they may not read."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        monkeypatch.chdir(name)
        secret = Path(name) / "secret"
        secret.touch(mode=0o600)
        secret.write_text("mine")
        yield Path(name)


def trained_by_nobody(folder: Path, link: str):
    """Train a trial whose program is another user's; return its events and its checkpoint."""
    nobody = pwd.getpwnam("nobody")
    text = SHELL.replace("SECRET", str(folder / "secret")).replace("LINK", link)
    (folder / "train.sh").write_text(text.replace("HOME_OF_USER", nobody.pw_dir))
    (folder / "train.sh").chmod(0o644)
    spec = StudySpec.model_validate({
        "study": {"name": "program"},
        "workload": {"command": ["sh", "train.sh"]},
        "training": {"steps": 12, "evaluate_every": 6},
        "space": {"lr": [0.1], "schedule": "constant", "optimizer": "sgd"},
        "search": {"sampler": "grid", "pruner": "none"},
        "budget": {"trials": 1},
    })  # fmt: skip
    trainer = FunctionTrainer(command.load(spec, ("command:sh",)), spec)
    params = {"lr": 0.1, "schedule": "constant", "optimizer": "sgd", "constant.warmup": 0.0}
    trainer.admit(Task(number=0, seed=3, params=params))
    try:
        events = advance(trainer, ())
        return events, trainer.snapshot(0)
    finally:
        trainer.evict(0)


@pytest.mark.slow
def test_a_program_of_another_user_reads_nothing_of_the_workers(open_folder, monkeypatch):
    monkeypatch.setenv(other_user.USER, "nobody")
    if os.geteuid() != 0:  # who has no right to do that says so
        with pytest.raises(WorkloadError, match="only a worker of root"):
            trained_by_nobody(open_folder, "")
        return
    events, snapshot = trained_by_nobody(open_folder, "")
    assert (events[-1].status, events[-1].value) == (
        Status.FINISHED,
        float(pwd.getpwnam("nobody").pw_uid),
    )
    assert {one.metrics["val_loss"] for event in events for one in event.evaluations} == {
        events[-1].value
    }
    assert b"state\n" in snapshot


@pytest.mark.slow
@pytest.mark.parametrize(
    "link",
    [
        "ln -s SECRET weights.old",
        "mkdir below && ln -s SECRET below/weights",
        "cd .. && rm -r checkpoint && ln -s SECRET_FOLDER checkpoint",
    ],
)
def test_a_checkpoint_holds_no_file_from_outside_its_folder(open_folder, monkeypatch, link):
    if os.geteuid() == 0:
        monkeypatch.setenv(other_user.USER, "nobody")
    link = link.replace("SECRET_FOLDER", str(open_folder)).replace(
        "SECRET", str(open_folder / "secret")
    )
    with pytest.raises(WorkloadError, match="a link out of its folder"):
        trained_by_nobody(open_folder, link)


def test_the_user_of_commands_is_one_with_fewer_rights(monkeypatch):
    assert other_user.OtherUser.of({}) is None
    for name, message in (("root", "fewer rights"), ("no such user", "the name of a user")):
        with pytest.raises(WorkloadError, match=f"{other_user.USER}.*{message}"):
            other_user.OtherUser.of({other_user.USER: name})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(WorkloadError, match="only a worker of root"):
        other_user.OtherUser.of({other_user.USER: "nobody"})
