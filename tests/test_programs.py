"""Commands: a program is a trial, judged, stopped, recorded and resumed like others."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from processes import assert_whole, end, left, prepare, processes_in, start, tuner, until

from tests.test_own_loops import function, put, work
from tests.test_reference import advance, curve_of
from tuner.config import StudySpec, reading
from tuner.core.errors import StudyFileError, UsageError, WorkloadError
from tuner.ledger import Ledger
from tuner.training import checkpoint_files, trainer_choice
from tuner.training.function_trainer import FunctionTrainer
from tuner.training.programs import command, conversation, limits, permission
from tuner.training.programs.lines import PatternReports, of_json
from tuner.training.trainer import Status, Task

JOBS = Path(__file__).parent / "jobs"
PYTHON = ("command:python",)
PATTERNS = {
    "step": r"Epoch (?P<value>\d+)/",
    "train_loss": r"train loss: (?P<value>\S+)",
    "val_loss": r"val loss: (?P<value>\S+)",
}


def spec_of(words, *, workload=None, **tables) -> StudySpec:
    content = {
        "study": {"name": "program"},
        "workload": {"command": ["python", *map(str, words)], **(workload or {})},
        "training": {"steps": 12, "evaluate_every": 1},
        "space": {"lr": [0.1], "schedule": "constant", "optimizer": "sgd"},
        "search": {"sampler": "grid", "pruner": "none"},
        "budget": {"trials": 1},
    }
    return StudySpec.model_validate_json(json.dumps(content | tables))


def script(folder: Path, text: str) -> Path:
    file = folder / "train.py"
    file.write_text(text)
    return file


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- what a program prints ------------------------------------------------------------------------


def read(patterns, text, first=0):
    reports = PatternReports(patterns, first)
    found = [report for line in text.splitlines() for report in reports.read(line)]
    return found + list(reports.flush())


VALUE = r"(?P<value>\S+)"


@pytest.mark.parametrize(
    ("patterns", "first", "text", "reports"),
    [
        (  # a step of its own pattern; metrics are those after the step
            {"step": r"epoch (?P<value>\d+)", "train_loss": f"loss={VALUE}", "acc": f"acc={VALUE}"},
            1,
            "epoch 1\nloss=2.5, acc=10%\nepoch 2\nloss=1e-3\nepoch 3\nacc=30%",
            [
                {"step": 0, "train_loss": 2.5}, {"step": 1, "acc": 10.0},
                {"step": 1, "train_loss": 1e-3}, {"step": 3, "acc": 30.0},
            ],
        ),
        (  # a step in the same line, sparse
            {"train_loss": rf"it (?P<step>\d+) loss {VALUE}"},
            0,
            "it 0 loss 5\nnothing\nit 100 loss nan\nit 200 loss 1 tail",
            [{"step": 0, "train_loss": 5.0}, {"step": 100, "train_loss": float("nan")},
             {"step": 200, "train_loss": 1.0}],
        ),
        (  # steps that nobody numbers are counted
            {"train_loss": f"loss {VALUE}", "val_loss": f"valid {VALUE}"},
            0,
            "loss 3\nloss 2\nvalid 2.5\nloss x\nloss 1",
            [{"step": 0, "train_loss": 3.0}, {"step": 1, "train_loss": 2.0},
             {"step": 2, "val_loss": 2.5}, {"step": 2, "train_loss": 1.0}],
        ),
    ],
)  # fmt: skip
def test_patterns_read_reports_from_lines(patterns, first, text, reports):
    assert repr(read(patterns, text, first)) == repr(reports)


def test_lines_of_json_are_reports_if_they_have_a_step():
    assert of_json('{"step": 3, "val_loss": 1}') == {"step": 3, "val_loss": 1}
    for line in ("", "step 3", "{", '{"loss": 1}', '[{"step": 3}]'):
        assert of_json(line) is None


# --- study files and permissions ------------------------------------------------------------------


def mistakes_in(**changes) -> str:
    tables = {
        "study": '{ name = "p" }',
        "workload": '{ command = ["python", "train.py", "--lr", "{lr}"] }',
        "training": "{ steps = 10 }",
        "space": '{ lr = 0.1, schedule = "constant", optimizer = ["sgd", "adamw"] }',
        "budget": "{ trials = 1 }",
    } | changes
    try:
        reading.parse("\n".join(f"{key} = {value}" for key, value in tables.items()), "a")
    except StudyFileError as error:
        return str(error)
    return ""


COSINE = {"space": '{ schedule = "cosine" }'}
PATTERN = "patterns = { val_loss = 'loss (?P<value>.*)' }"


@pytest.mark.parametrize(
    ("table", "changes", "expected"),
    [
        ('{ command = ["python", "{lr}"] }', {}, ""),
        ("{ command = [] }", {}, "at least 1 item"),
        ('{ command = ["{lr}"] }', {}, "a program without placeholders as first word"),
        ('{ command = ["a"], train = "b:c" }', {}, "nothing, since command is set"),
        ('{ command = ["a"], arguments = { b = 1 } }', {}, "has its arguments in command"),
        ('{ train = "b:c", folder = "trial" }', {}, "nothing, since it is for a command"),
        ('{ command = ["a", "{nothing}"] }', {}, "placeholders for what every trial has"),
        ('{ command = ["a", "{sgd.momentum}"] }', {}, "only some trials have is in"),
        ('{ command = ["a", "{{nothing}}"] }', {}, ""),
        ("{ command = ['a'], patterns = { val_loss = '(' } }", {}, "a regular expression, got"),
        ("{ command = ['a'], patterns = { val_loss = 'x' } }", {}, "with a group value"),
        ("{ command = ['a'], patterns = { acc = '(?P<value>x)' } }", {}, "the study's metric"),
        (f"{{ command = ['a'], {PATTERN} }}", COSINE, "gets one rate"),
        (f"{{ command = ['a', '{{rates}}'], {PATTERN} }}", COSINE, ""),
        ("{ command = ['a'] }", {"probe": "{ enabled = true }"}, "a command cannot train many"),
        ("{ command = ['a'] }", {"training": "{ steps = 1, batch_size = 3 }"}, "pass it in"),
        ("{ command = ['a', '{batch_size}'] }", {"training": "{ steps = 1, batch_size = 3 }"}, ""),
    ],
)  # fmt: skip
def test_mistakes_of_a_command_are_found_when_it_is_submitted(table, changes, expected):
    found = mistakes_in(workload=table, **changes)
    assert expected in found if expected else found == ""


def test_a_command_is_allowed_by_its_first_words_and_not_run_before(here):
    script(here, "raise SystemExit('it was run')")
    spec = spec_of(["train.py", "--lr", "{lr}"])
    allowed = permission.permission("python 'train.py'")
    assert trainer_choice.load(spec, [allowed]).name == "python train.py --lr '{lr}'"
    assert trainer_choice.load(spec, permission.of_file(spec))
    others = (
        "command:python train",
        "command:train.py",
        "command:python train.py --lr 1",
        "python",
    )
    for prefixes in ((), *((other,) for other in others)):
        for call in (trainer_choice.load, lambda s, p: trainer_choice.code_digest(s.workload, p)):
            with pytest.raises(WorkloadError, match="not started to run this command"):
                call(spec, prefixes)
    with pytest.raises(UsageError, match="first words of a command"):
        permission.permission(" ")


def test_the_digest_is_of_the_command_and_of_its_files(here):
    script(here, "1")
    spec, other = spec_of(["train.py"]), spec_of(["train.py", "2"])
    digests = [trainer_choice.code_digest(one.workload, PYTHON) for one in (spec, other)]
    script(here, "2")
    digests.append(trainer_choice.code_digest(spec.workload, PYTHON))
    assert len(set(digests)) == 3


def test_files_of_a_checkpoint_stay_in_their_folder(tmp_path):
    for name in ("../x", "/tmp/x"):
        with pytest.raises(WorkloadError, match="outside of its folder"):
            checkpoint_files.restore({name: np.zeros(1, np.uint8)}, tmp_path / "folder")


def test_the_study_file_of_the_document_is_valid():
    text = (Path(__file__).parents[1] / "docs" / "programs.md").read_text()
    (study,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert reading.parse(study, "programs.md").workload.patterns.keys() == PATTERNS.keys()


# --- programs that run ----------------------------------------------------------------------------


def train(spec, task=None, chunks=()):
    trainer = FunctionTrainer(command.load(spec, PYTHON), spec)
    trainer.admit(task or task_of())
    try:
        return advance(trainer, chunks)
    finally:
        trainer.evict(0)


def task_of(**params) -> Task:
    own = {"lr": 0.1, "schedule": "constant", "optimizer": "sgd", "constant.warmup": 0.0}
    return Task(number=0, seed=3, params=own | params)


@pytest.mark.slow
def test_a_program_gets_its_trial_and_no_secret(here, monkeypatch):
    monkeypatch.setenv("TUNER_DATABASE_URL", "postgresql://me:secret@db/tuning")
    monkeypatch.setenv("MY_SETTING", "1")
    monkeypatch.setenv(command.KEPT, "MY_SETTING")
    script(
        here,
        """
import json, os, sys
about = json.load(open(os.environ["TUNER_TRIAL"]))
assert os.getcwd() == about["folder"] != sys.argv[3], os.getcwd()
assert os.getpgid(0) == os.getpid()
assert sys.argv[1:3] == ["0.1", "{}"] and sys.argv[3].endswith("train.py")
assert os.environ["TUNER_PARAM_LR"] == "0.1" and os.environ["TUNER_SEED"] == "3"
assert about["params"]["lr"] == 0.1 and os.environ["MY_SETTING"] == "1"
assert json.load(open(os.environ["TUNER_RATES"])) == [0.1] * 12
assert not [value for value in os.environ.values() if "secret" in value]
print('{"step": 12, "val_loss": 0.5}')
""",
    )
    event = train(spec_of(["train.py", "{lr}", "{{}}", "train.py"]))[-1]
    assert (event.status, event.value) == (Status.FINISHED, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("print('hello')\n1 / 0", "exit code 1: ZeroDivisionError: division by zero", "train.py:2"),
        ("import sys; sys.exit(7)", "exit code 7", "train.py:7"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV", "train.py:139"),
        ("print('{\"step\": 5, \"val_loss\": \"a\"}')", "expected val_loss to be one", "output:0"),
    ],
)  # fmt: skip
def test_a_program_that_fails_says_why(here, text, message, place):
    script(here, text)
    with pytest.raises(conversation.ProgramError, match=message) as raised:
        train(spec_of(["train.py"]))
    assert raised.value.place == place


BUSY = """
import signal, subprocess, sys
waiting = [sys.executable, "-c", "import signal; signal.pause()"]
children = [subprocess.Popen(waiting, start_new_session=True) for _ in range(3)]
memory = bytearray(b"x") * (200 << 20)
print('{"step": 1, "val_loss": 1}', flush=True)
signal.pause()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (limits.MEMORY, "100MiB", r"it used \d.*MiB of memory, more than 100.0MiB"),
        (limits.PROCESSES, "3", r"it had \d processes, more than 3"),
        (limits.SECONDS, "0.01", "it ran longer than 0.01 seconds"),
    ],
)
def test_a_program_that_exceeds_a_limit_is_ended(here, monkeypatch, name, value, message):
    """Also those of its processes that have left its group."""
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(limits, "LOOK_SECONDS", 0.05)
    script(here, BUSY)
    with pytest.raises(conversation.ProgramError, match=message) as raised:
        train(spec_of(["train.py"]))
    assert name in str(raised.value)
    assert raised.value.place == "limit:0"
    (folder,) = here.glob(".tuner/programs/*/trial-*")
    assert processes_in(folder) == []


def test_limits_are_read_from_the_workers_environment():
    found = limits.Limits.of({limits.MEMORY: "8GiB", limits.PROCESSES: "64"})
    assert found == limits.Limits(memory=8 << 30, processes=64)
    for name in (limits.MEMORY, limits.PROCESSES, limits.SECONDS):
        for text in ("0", "-1", "many"):
            with pytest.raises(WorkloadError, match=f"{name}: expected .*, got '{text}'"):
                limits.Limits.of({name: text})


@pytest.mark.slow
def test_a_stopped_program_is_ended_with_what_it_has_started(here):
    script(
        here,
        """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print('{"step": 1, "val_loss": %d}' % child.pid, flush=True)
while True:
    signal.pause()
""",
    )
    spec = spec_of(["train.py"])
    trainer = FunctionTrainer(command.load(spec, PYTHON), spec)
    trainer.admit(task_of())
    events = []
    while not (events and events[-1].evaluations):
        events += trainer.advance(10)
    child = psutil.Process(int(events[-1].value))
    program = child.parent()
    trainer.evict(0)
    psutil.wait_procs([child, program], timeout=30)
    assert not child.is_running()
    assert not program.is_running()


@pytest.mark.slow
@pytest.mark.thorough
def test_a_connected_program_measures_what_a_train_function_does(here, monkeypatch):
    """The same loop, in the worker's process and in its own, also interrupted and resumed."""
    import tuner as package

    def loop(trial):
        monkeypatch.setattr(sys, "argv", ["connected.py"])
        monkeypatch.setattr(package, "current_trial", lambda **_: trial, raising=False)
        exec((JOBS / "connected.py").read_text(), {})

    spec = spec_of(
        [JOBS / "connected.py"],
        training={"steps": 12, "evaluate_every": 1, "checkpoint_seconds": 1e-9},
        space={"lr": 0.1, "schedule": "cosine", "optimizer": "sgd"},
    )
    task = task_of(schedule="cosine", **{"cosine.warmup": 0.0, "cosine.final": 0.0})
    trainer = FunctionTrainer(function(loop), spec)
    trainer.admit(task)
    own = curve_of(advance(trainer, []))
    trainer.evict(0)
    trainer = FunctionTrainer(command.load(spec, PYTHON), spec)
    trainer.admit(task)
    events = []
    while not events or events[-1].next_step < 5:
        events += trainer.advance(5 - (events[-1].next_step if events else 0))
    snapshot = trainer.snapshot(0)
    trainer.evict(0)
    rest = train(spec, replace(task, snapshot=snapshot))
    assert 3 <= rest[0].first_step <= 5
    again = curve_of([*(one for one in events), *rest])
    left = len(curve_of(rest)[0]["lr"])
    for name, column in own[0].items():
        np.testing.assert_array_equal(curve_of(rest)[0][name], column[-left:])
    assert dict(again[1]).items() <= dict(own[1]).items()
    assert again[2] == own[2] == (Status.FINISHED, "", None)


@pytest.mark.slow
@pytest.mark.thorough
def test_the_script_of_the_document_is_tuned(ledger: Ledger, here, tmp_path):
    script(here, (JOBS / "script" / "train.py").read_text())
    space = {"lr": [0.3, 1e25], "schedule": "constant", "optimizer": "sgd"}
    words = ["train.py", "--epochs", "{steps}"]
    put(ledger, spec_of(words, space=space, budget={"trials": 2}), PYTHON)
    work(ledger, tmp_path, "program", PYTHON)
    trials = ledger.trials(1)
    assert [trial.state for trial in trials] == ["completed", "diverged"]
    assert trials[0].steps == 12


STUDY = """
[study]
name = "job"

[workload]
command = {command}

[training]
steps = 12
evaluate_every = 2

[space]
lr = {lr}
schedule = "constant"
optimizer = "sgd"

[search]
sampler = "grid"
pruner = {{ name = "median", startup_trials = 1 }}

[budget]
trials = 4
"""


def job(folder: Path, words: list[str], lr: object, more: str = "") -> Path:
    text = STUDY.format(command=json.dumps(words), lr=json.dumps(lr))
    return prepare(folder, text.replace("[training]", f"{more}\n[training]"))


def rows(folder: Path, query: str):
    with closing(sqlite3.connect(folder / "tuner.db")) as database:
        return database.execute(query).fetchall()


@pytest.mark.slow
def test_an_untouched_script_is_tuned_by_patterns(tmp_path):
    words = ["python", "plain.py", "--lr", "{lr}", "--epochs", "{steps}", "--seed", "{seed}"]
    folder = job(tmp_path, words, [0.3, 0.001, 1e6, 0.0001], PATTERNS_TABLE)
    (folder / "plain.py").write_text((JOBS / "plain.py").read_text())
    done = tuner(folder, "run", "study.toml", "--json")
    assert done.code == 0, done.err
    assert done.json["trials"] == {
        "completed": 1, "pruned": 2, "diverged": 1, "failed": 0, "cancelled": 0
    }  # fmt: skip
    assert done.json["best"]["params"]["lr"] == 0.3
    assert tuner(folder, "doctor", "--json").json["problems"] == []
    outputs = sorted((folder / ".tuner" / "programs").glob("*/trial-0-*/output.log"))
    assert "Epoch 12/12" in outputs[0].read_text()


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
def test_an_interrupted_program_goes_on_at_its_checkpoint(tmp_path, number):
    folder = job(tmp_path, ["python", "lines.py"], [0.2])
    text = (JOBS / "lines.py").read_text()
    (folder / "lines.py").write_text(f"import time\n{text}    time.sleep(0.5)\n")
    text = (folder / "study.toml").read_text()
    text = text.replace("evaluate_every = 2", "evaluate_every = 2\ncheckpoint_seconds = 0.01")
    (folder / "study.toml").write_text(text)
    process = start(folder, "run", "study.toml", cold=number == signal.SIGKILL)
    saved = "SELECT step FROM tuner_checkpoints WHERE step > 3"
    until(lambda: rows(folder, saved), "a checkpoint")
    os.kill(process.pid, number)
    end(process)
    until(lambda: not processes_in(folder) and not programs(folder), "the end of the program")
    done = tuner(folder, "run", "study.toml", "--json")
    assert done.code == 0, done.err
    assert done.json["trials"]["completed"] == 1
    first, second = rows(folder, "SELECT first_step FROM tuner_attempts ORDER BY number")
    assert first == (0,)
    assert second[0] > 3
    assert tuner(folder, "doctor", "--json").json["problems"] == []
    x = 0.0
    for _ in range(12):
        x -= 0.2 * 2 * (x - 2)
    assert done.json["best"]["value"] == (x - 2) ** 2


PATTERNS_TABLE = "counts_from = 1\n[workload.patterns]\n" + "\n".join(
    f"{name} = '{text}'" for name, text in PATTERNS.items()
)
ENDS = {  # lr by how its trial ends, and more of [workload]
    "plain.py": ([0.3, 0.001, 1e6], PATTERNS_TABLE),
    "script/train.py": ([0.3, 0.001, 1e25], ""),
}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(ENDS))
def test_a_program_without_checkpoints_that_is_killed_and_interrupted_begins_again(tmp_path, name):
    lr, more = ENDS[name]
    slow = tmp_path / "slow"
    text = (JOBS / name).read_text()
    text = f"import os, time\n{text}    time.sleep(0.3 * os.path.exists({str(slow)!r}))\n"
    folders = []
    for part in ("whole", "parts"):
        (tmp_path / part).mkdir()
        words = ["python", "train.py", "--lr", "{lr}", "--epochs", "{steps}"]
        folders.append(job(tmp_path / part, words, lr, more))
        (folders[-1] / "train.py").write_text(text)
    whole, parts = folders
    command = ("run", "study.toml", "--no-report", "--json")
    done = tuner(whole, *command)
    assert done.code == 0, done.err
    expected = left(whole, "job")
    states = [trial["state"] for trial in expected.ledger.values()]
    assert states == ["completed", "pruned", "diverged"]

    slow.touch()
    killed = start(parts, *command, cold=True)
    until(lambda: rows(parts, "SELECT 1 FROM tuner_trials WHERE steps > 3"), "some rows")
    killed.kill()
    end(killed)
    until(lambda: not processes_in(parts) and not programs(parts), "the end of the program")
    interrupted = start(parts, *command)
    again = "SELECT 1 FROM tuner_attempts WHERE live AND number = 2"
    until(lambda: rows(parts, again), "the second attempt")
    interrupted.send_signal(signal.SIGINT)
    assert end(interrupted).code == 130
    until(lambda: not programs(parts), "the end of the program")
    slow.unlink()
    done = tuner(parts, *command)
    assert done.code == 0, done.err
    endings = rows(parts, "SELECT ending FROM tuner_attempts ORDER BY id")
    assert endings[:2] == [("stale",), ("interrupted",)]
    assert_whole(parts, expected, "job")


def programs(folder: Path) -> list[psutil.Process]:
    """Find what runs in the folders of trials."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder / ".tuner" / "programs"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_row_with_a_command_is_refused_by_a_worker_that_does_not_allow_it(
    ledger: Ledger, tmp_path, here
):
    script(here, "raise SystemExit('it was run')")
    spec = spec_of(["train.py"])
    put(ledger, spec, PYTHON)
    with pytest.raises(WorkloadError, match="allow it with --allow-command 'python train"):
        work(ledger, tmp_path, "program", ("tests.", "command:python other.py"))
    assert [trial.state for trial in ledger.trials(1)] == []
