"""Executors: settings, what engines are asked for, what is recorded, and who may cancel what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers import submit as submitted
from processes import (
    ROOT,
    STUDY,
    change,
    end,
    prepare,
    reader,
    rows,
    start,
    trained_steps,
    tuner,
    until,
)

import tuner as package
from tests.test_documented_snippets import blocks, run
from tuner.config import cluster
from tuner.config.cluster import ClusterSpec, RayTable, SlurmTable, WorkerTable
from tuner.core.environment import identity, person, processor
from tuner.core.errors import StudyFileError, UnavailableError, UsageError
from tuner.executors import WorkerState, starting
from tuner.executors.ray import RayExecutor, options_of
from tuner.executors.slurm import SlurmExecutor
from tuner.ledger import Ledger, launches
from tuner.operations import workers
from tuner.training import gpus

KEY = "0123456789ab"
HOSTILE = ["$(id)", "`id`", "; id", "' \"", "a b", "*", "&& id", "${HOME}", "-x", "\\", "#", "é{}"]


def launched(ledger: Ledger, handles: list[str], executor: str = "local") -> launches.Launch:
    """Record a launch; return it."""
    study = submitted(ledger)
    made = launches.add(ledger, study, executor, len(handles), person())
    launches.answered(ledger, made.key, handles)
    (found,) = launches.of_study(ledger, study.name)
    return found


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[worker]\ncpus = 0", "[worker] cpus: expected a number of at least 1, got 0"),
        (
            '[worker]\nmemory = "much"',
            '[worker] memory: expected a size such as "8GiB", got "much"',
        ),
        ('[worker]\nenvironment = { "A B" = "x" }', "expected the name of a variable"),
        ("[worker]\ngrace_seconds = 1", "[worker] grace_seconds: expected a number of at least 5"),
        ('[slurm]\npartition = "a\\nb"', "[slurm] partition: expected printable text"),
        (
            '[slurm]\nsetup = ["module load \'x"]',
            "[slurm] setup: expected a command, with balanced",
        ),
        ("[slurm]\npartion = 1", "an unknown key; did you mean partition?"),
        (
            "[slrum]\n",
            "got an unknown table; did you mean slurm?",
        ),
        ("[ray]\nresources = { big = 0.0 }", "[ray] resources: expected a number above 0"),
        ('[ray]\nplacement = "any"', '[ray] placement: expected "spread" or "pack", got "any"'),
        ("[worker", "expected TOML, got a syntax error"),
    ],
)
def test_a_mistake_in_settings_is_named(text: str, problem: str) -> None:
    with pytest.raises(StudyFileError) as error:
        cluster.parse(text, "cluster.toml")
    (line,) = error.value.problems
    assert line.startswith("cluster.toml: ")
    assert problem in line


def test_the_settings_of_the_folder_are_used_if_they_are_there(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cluster.load(None) == ClusterSpec()
    Path("cluster.toml").write_text("[worker]\ncpus = 2\n")
    assert cluster.load(None).worker.cpus == 2
    with pytest.raises(StudyFileError, match="a file to read"):
        cluster.load(Path("nowhere.toml"))


def test_workers_of_an_engine_need_a_database_that_they_can_reach(ledger, places) -> None:
    submitted(ledger)
    with pytest.raises(UsageError, match="cannot share the SQLite file"):
        workers.start(ledger, places, ClusterSpec(), "small", workers=1, executor="slurm")
    assert launches.of_study(ledger, "small") == []


# --- Slurm's requests, with stand-ins for its programs --------------------------------------------


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a program on the path that keeps its arguments and input in a file, which is returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)

    def put(name: str, script: str) -> Path:
        asked = tmp_path / f"{name}.asked"
        (folder / name).write_text(
            f"#!/bin/bash\nprintf '%s\\n' \"$@\" >>{asked}\n{script}\n", encoding="utf-8"
        )
        (folder / name).chmod(0o755)
        return asked

    return put


RESOURCES = WorkerTable(cpus=2, memory="1.5GiB", gpus=1, grace_seconds=30, device="auto")
NAMED = SlurmTable(partition="low", account="lab", minutes=90, gpu_type="a100", options=("--nice",))


def test_every_setting_is_an_argument_of_sbatch(tmp_path: Path) -> None:
    asked = SlurmExecutor(NAMED, tmp_path / "100%")._options(KEY, 16, RESOURCES)
    assert {
        f"--job-name=tuner-{KEY}", "--array=0-15", "--cpus-per-task=2", "--mem=1536M",
        "--gres=gpu:a100:1", "--time=90", "--partition=low", "--account=lab", "--requeue",
        "--signal=B:USR1@30", "--nice", f"--output={tmp_path}/100%%/%A_%a.log",
    } <= set(asked)  # fmt: skip
    assert not [one for one in asked if not one.startswith("--") or "None" in one]


def test_a_worker_gets_its_launch_its_device_and_its_grace() -> None:
    words = starting.command(KEY, RESOURCES, ["--study", "small"])
    assert words[words.index("tuner") :] == [
        "tuner", "worker", "--launch", KEY, "--study", "small", "--device", "auto", "--grace", "30",
    ]  # fmt: skip
    assert starting.is_worker_of(KEY, words)
    assert not starting.is_worker_of("another", words)


def test_a_script_obeys_nothing_that_is_in_a_value(tmp_path: Path) -> None:
    executor = SlurmExecutor(SlurmTable(setup=("printf '%s\\n' '$(id)'",)), tmp_path)
    script = executor._script(["printf", "%s\\n", *HOSTILE])
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["$(id)", *HOSTILE]
    with pytest.raises(UsageError, match="control characters"):
        executor._script(["tuner", "a\n#SBATCH --uid=0"])


WORKER = """
import signal, sys
def end(number, frame):
    print("saved", flush=True)
    raise SystemExit(3)
signal.signal(signal.SIGTERM, end)
print("started", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_is_queued_again_before_its_limit_and_not_when_it_is_ended(
    number, program, tmp_path: Path
) -> None:
    """Slurm sends SIGUSR1 to the script alone, and SIGTERM to every process of the job."""
    asked = program("scontrol", "")
    program("squeue", "echo RUNNING")
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, str(tmp_path / "worker.py")]
    (tmp_path / "script").write_text(SlurmExecutor(SlurmTable(), tmp_path)._script(command))
    job = subprocess.Popen(
        ["bash", tmp_path / "script"],
        env=os.environ | {"SLURM_JOB_ID": "12"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "started\n"
    if number == signal.SIGUSR1:
        job.send_signal(number)
    else:
        os.killpg(job.pid, number)
    out, _ = job.communicate(timeout=60)
    assert (out, job.returncode) == ("saved\n", 3)
    again = asked.read_text().split() if asked.exists() else []
    assert again == (["requeue", "12"] if number == signal.SIGUSR1 else [])


@pytest.mark.slow
def test_an_array_is_submitted_and_its_elements_are_the_workers(program, tmp_path: Path) -> None:
    asked = program("sbatch", "cat >script; printf '%s' \"$EXTRA\" >extra; echo '77;cluster'")
    resources = WorkerTable(environment={"EXTRA": "a b"})
    executor = SlurmExecutor(SlurmTable(), tmp_path / "logs")
    assert executor.launch(KEY, 2, resources, ["--study", "a b"]) == ("77_0", "77_1")
    assert "--array=0-1" in asked.read_text().splitlines()
    assert f"--launch {KEY} --study 'a b'" in Path("script").read_text()
    assert Path("extra").read_text() == "a b"


@pytest.mark.slow
def test_what_slurm_says_of_workers_is_their_state(program, ledger) -> None:
    found = launched(ledger, [f"77_{index}" for index in range(6)], "slurm")
    name = f"tuner-{found.key}"
    lines = [
        f"{name}|77_0|PENDING||Resources",
        f"{name}|77_1|RUNNING|n1|None",
        f"{name}|77_2|COMPLETED|n1|None",
        f"{name}|77_3|FAILED|n2|NonZeroExitCode",
        f"{name}|77_4|WHAT|n2|None",
        "tuner-another|77_5|RUNNING|n2|None",
        "nonsense",
    ]
    asked = program("squeue", "cat <<'END'\n" + "\n".join(lines) + "\nEND")
    program("scontrol", "echo JobId=80 ExitCode=2:0 DerivedExitCode=0:0")
    states = SlurmExecutor(SlurmTable(), Path("logs")).poll([found])[found.key]
    assert states == [
        WorkerState(handle="77_0", phase="waiting", detail="Resources"),
        WorkerState(handle="77_1", phase="running", where="n1"),
        WorkerState(handle="77_2", phase="ended", where="n1"),
        WorkerState(
            handle="77_3", phase="failed", code=2, where="n2", detail="FAILED, NonZeroExitCode"
        ),
        WorkerState(handle="77_4", phase="unknown", where="n2"),
        WorkerState(handle="77_5", phase="ended"),  # Slurm knows nothing of it any more
    ]
    assert f"--name={name}" in asked.read_text().splitlines()


@pytest.mark.slow
def test_workers_of_a_launcher_that_died_are_found_by_the_name_of_their_job(program, ledger):
    study = submitted(ledger)
    made = launches.add(ledger, study, "slurm", 2, person())
    lines = "".join(f"tuner-{made.key}|9_{index}|RUNNING|n1|None\n" for index in range(2))
    program("squeue", f"printf '{lines}'")
    fleet = workers.Fleet(
        ledger=ledger, study=study, executor=SlurmExecutor(SlurmTable(), Path("logs")),
        resources=WorkerTable(), arguments=(),
    )  # fmt: skip
    ((_, states),) = fleet.running()
    assert [one.handle for one in states] == ["9_0", "9_1"]
    (found,) = launches.of_study(ledger, "small", running=True)
    assert found.handles == ("9_0", "9_1")


@pytest.mark.slow
def test_while_slurm_is_away_nothing_is_known_to_have_ended(program, ledger, places) -> None:
    found = launched(ledger, ["77_0"], "slurm")
    program(
        "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    )
    with pytest.raises(UnavailableError, match="Slurm does not answer"):
        SlurmExecutor(SlurmTable(), Path("logs")).poll([found])
    assert launches.of_study(ledger, "small", running=True) == [found]


@pytest.mark.parametrize(
    ("environment", "index"),
    [
        ({"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, 3),
        ({"JOB_COMPLETION_INDEX": "0"}, 0),
        ({"SLURM_ARRAY_TASK_ID": "4294967294x"}, None),
        ({}, None),
    ],
)
def test_a_worker_knows_its_place_in_its_launch(environment, index) -> None:
    assert starting.index_of(environment) == index


# --- Ray's requests; tests/test_ray.py has a real one ---------------------------------------------


def test_an_actor_takes_of_a_node_what_its_worker_gets() -> None:
    settings = RayTable(resources={"big": 1.0}, placement="pack")
    shares = WorkerTable(cpus=2, memory="1.5GiB", gpus=1, workers_per_gpu=4)
    assert options_of(settings, shares) == {
        "num_cpus": 2, "num_gpus": 0.25, "memory": 1536 * 2**20, "resources": {"big": 1.0},
        "scheduling_strategy": "DEFAULT",
    }  # fmt: skip
    assert options_of(RayTable(), WorkerTable()) == {
        "num_cpus": 1, "num_gpus": 0, "resources": {}, "scheduling_strategy": "SPREAD",
    }  # fmt: skip


def test_the_folder_that_goes_with_workers_must_be_there(monkeypatch, tmp_path) -> None:
    (tmp_path / "ray.py").touch()
    monkeypatch.syspath_prepend(tmp_path)  # as if it were installed
    with pytest.raises(UsageError, match=r"\[ray\] working_dir: expected a folder, got 'nowhere'"):
        RayExecutor(RayTable(working_dir="nowhere"))


# --- workers of this machine ----------------------------------------------------------------------


@pytest.mark.slow
def test_workers_are_started_listed_and_stopped_by_different_processes(tmp_path: Path) -> None:
    folder = prepare(tmp_path, factory='"tests.workloads:paced"')
    (folder / "slow").touch()
    assert tuner(folder, "submit", "study.toml").code == 0
    started = tuner(folder, "workers", "start", "small", "--workers", "2", "--json").json
    assert (started["executor"], len(started["handles"])) == ("local", 2)
    until(lambda: trained_steps(folder) > 0, "a step")
    listed = tuner(folder, "workers", "list", "small", "--json").json["workers"]
    assert [(one["handle"], one["phase"]) for one in listed] == [
        (handle, "running") for handle in started["handles"]
    ]
    assert {one["os_user"] for one in listed} == {person().os_user}
    known = [one for one in listed if one["device"]]  # those that have claimed a trial
    assert known
    assert all(one["peak_memory_mib"] > 50 for one in known)
    shown = f"{processor()}, at most "
    assert shown in tuner(folder, "workers", "list", "small").out
    assert f"({shown}" in tuner(folder, "status", "small", env={"COLUMNS": "300"}).out
    log = tuner(folder, "workers", "logs", "small", started["handles"][0])
    assert '"worker started"' in log.out
    assert tuner(folder, "workers", "stop", "small").code == 0
    until(
        lambda: not tuner(folder, "workers", "list", "small", "--json").json["workers"],
        "their end",
        every=0.2,
    )
    found = rows(folder, "SELECT ending, environment FROM tuner_attempts")
    assert {ending for ending, _ in found} >= {"interrupted"}
    assert {json.loads(one)["launch"] for _, one in found} == {started["launch"]}
    assert tuner(folder, "workers", "logs", "small", "nobody").code == 2


@pytest.mark.slow
def test_the_documented_snippet_starts_and_lists_workers(tmp_path, monkeypatch) -> None:
    folder = prepare(tmp_path, name='"digits"', trials="1")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert tuner(folder, "submit", "study.toml").code == 0
    (block,) = blocks(ROOT / "docs" / "clusters.md", "python")
    namespace = run(block)
    (found,) = namespace["tune"](1, "local")
    assert found["phase"] == "running"
    with package.load("digits") as study:
        assert study.stop_workers()["problems"] == []
        until(lambda: not study.workers(), "its end")


def test_a_row_lets_nobody_end_a_process_that_is_no_worker(ledger, places) -> None:
    with subprocess.Popen(["sleep", "600"]) as innocent:
        launched(ledger, [identity(innocent.pid), identity(), "elsewhere:1:1"])
        done = workers.stop(ledger, places, ClusterSpec(), "small")
        assert "is a process of another machine" in done["problems"][0]
        assert psutil.Process(innocent.pid).status() != psutil.STATUS_ZOMBIE
        assert innocent.poll() is None
        innocent.kill()


def test_a_launch_that_cannot_be_read_stops_nothing(ledger, places) -> None:
    launched(ledger, [identity()])
    change(places.file.parent, "UPDATE tuner_launches SET key = '../../x'")
    assert workers.listed(ledger, places, ClusterSpec(), "small")["workers"] == []


# --- the grace, and GPUs --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_ends_within_its_grace_and_releases_what_it_could_not_save(tmp_path: Path):
    folder = prepare(
        tmp_path,
        STUDY.replace("steps = 40", 'steps = 40\ntrainer = "reference"\nthreads = 1'),
        factory='"tests.workloads:stuck"',
        trials="1",
    )
    assert tuner(folder, "submit", "study.toml").code == 0
    worker = start(folder, "worker", "--grace", "2", "--no-recorder")
    until((folder / "stuck").exists, "a step")
    worker.send_signal(signal.SIGTERM)
    done = end(worker)  # in the middle of a step that takes an hour
    assert done.code == 0
    assert "the grace is over" in done.err
    ledger = reader(folder)
    (attempt,) = ledger.attempts(ledger.study("small").id)
    assert (attempt.live, attempt.ending) == (False, "interrupted")
    ledger.engine.dispose()


SMI = "[ \"$1\" = --query-gpu=uuid ] && printf 'GPU-aa\\nGPU-bb\\nGPU-cc\\n'"


@pytest.mark.slow
def test_each_worker_of_a_machine_has_a_gpu_of_its_own(program, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(gpus, "_taken", [])
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    assert gpus.take() is None  # there is no driver
    program("nvidia-smi", SMI)
    taken = []
    for _ in range(4):  # as other processes do, which have the same variable
        # as CUDA reads it: what follows -1 is not visible
        monkeypatch.setenv(gpus.VISIBLE, "2,0,-1,1")
        taken.append(gpus.take(workers_per_gpu=2))
        assert os.environ[gpus.VISIBLE] == taken[-1]
    assert taken == ["GPU-cc", "GPU-aa", "GPU-cc", "GPU-aa"]
    monkeypatch.setenv(gpus.VISIBLE, "2,0,-1,1")
    with pytest.raises(UsageError, match="other workers have the 2 visible GPUs"):
        gpus.take(workers_per_gpu=2)
    monkeypatch.setenv(gpus.VISIBLE, "GPU-b")
    assert gpus.take() == "GPU-bb"
