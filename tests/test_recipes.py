"""The recipes: each file is what it says it is, and its command is one that we have."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import click
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import validators

from tuner.cli.app import cli
from tuner.core.cron import Timetable, checked

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "docs" / "recipes"
FILES = sorted(path for path in RECIPES.iterdir())
TEMPLATES = r"\{key\}|\$\{\{ github[\w.]+ \}\}|\$\(date[^)]*\)|\$day|\bKEY\b"
"""What each scheduler puts its key for."""


def commands(path: Path) -> list[list[str]]:
    """Give the arguments of every `tuner` in a file, with a date for the key."""
    text = re.sub(TEMPLATES, "2026-03-01", path.read_text())
    found = re.findall(r"(?<![\w/.`])tuner (retrain\b[^\n>\]|]*)", text)
    return [shlex.split(line.rstrip('",') if line.count('"') % 2 else line) for line in found]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_its_command_is_one_that_we_have(path: Path) -> None:
    found = commands(path)
    assert found
    for name, *arguments in found:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        with command.make_context(name, list(arguments)) as context:
            assert context.params["name"] == "digits"
            assert context.params["run_key"] == "2026-03-01"
            assert context.params["as_json"]


def loaded(name: str) -> Any:
    # YAML 1.1 reads the key `on` as true
    text = re.sub(r"^on:", '"on":', (RECIPES / name).read_text(), flags=re.MULTILINE)
    return yaml.safe_load(text)


def test_the_workflow_fits_the_schema_of_workflows() -> None:
    workflow = loaded("workflow.yml")
    schema = get_builtin_schema("vendor.github-workflows")
    validators.validator_for(schema)(schema).validate(workflow)
    assert workflow["on"]["schedule"] == [{"cron": "0 6 * * *"}]


def test_the_cron_job_is_one() -> None:
    job = loaded("cronjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    spec = job["spec"]
    checked(Timetable(expression=spec["schedule"], zone=spec["timeZone"]), 0.0)
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # as a pod failure policy asks for
    (container,) = pod["containers"]
    (rule,) = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert {one["name"] for one in container["env"]} >= {"JOB_NAME", "TUNER_DATABASE_URL"}
    json.dumps(job)


@dataclass(frozen=True)
class Machine:
    """A folder with a program `tuner` that records its arguments and ends as it is asked to."""

    folder: Path

    def calls(self) -> list[list[str]]:
        """Return the arguments of each call."""
        file = self.folder / "calls"
        return [shlex.split(line) for line in file.read_text().splitlines()]

    def end_with(self, code: int) -> None:
        (self.folder / "code").write_text(str(code))

    def shell(self, command: str, **env: str) -> int:
        """Run a command with no more than cron gives it, and return its exit code."""
        path = {"PATH": f"{self.folder / '.venv/bin'}:/usr/bin:/bin"}
        done = subprocess.run(["sh", "-c", command], env=path | env, check=False)
        return done.returncode


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    program = tmp_path / ".venv" / "bin" / "tuner"
    program.parent.mkdir(parents=True)
    program.write_text(
        f"""#!/bin/sh
        echo "$@" >> {tmp_path / "calls"}
        echo '{{"outcome": "promoted", "model": "digits"}}'
        exit $(cat {tmp_path / "code"})
        """
    )
    program.chmod(0o755)
    made.end_with(0)
    return made


def key_of(call: list[str]) -> str:
    return call[call.index("--run-key") + 1]


def test_the_line_of_cron_runs_with_cron_s_environment_on_the_machine_s_day(
    machine: Machine,
) -> None:
    text = (RECIPES / "crontab").read_text().replace("/srv/tuning", str(machine.folder))
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    env = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    assert {"TUNER_DATABASE_URL", "MLFLOW_TRACKING_URI"} <= env.keys()
    (line,) = [line for line in lines if line[0].isdigit()]
    *when, command = line.split(maxsplit=5)
    checked(Timetable(expression=" ".join(when), zone="UTC"), 0.0)
    assert not re.search(r"(?<!\\)%", command)
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):  # never on the same day
        assert machine.shell(command.replace("\\%", "%"), **env, TZ=zone) == 0
    first, second = map(key_of, machine.calls())
    assert date.fromisoformat(first) == date.fromisoformat(second) + timedelta(days=1)
    assert len((machine.folder / "retrain.jsonl").read_text().splitlines()) == 2


def test_a_pod_retrains_the_day_of_its_job_and_ends_as_its_policy_reads(machine: Machine) -> None:
    spec = loaded("cronjob.yaml")["spec"]["jobTemplate"]["spec"]
    assert spec["activeDeadlineSeconds"] > 0
    (container,) = spec["template"]["spec"]["containers"]
    env = {one["name"]: one.get("value", "") for one in container["env"]}
    (mount,) = container["volumeMounts"]
    (volume,) = spec["template"]["spec"]["volumes"]
    assert env["TUNER_CHECKPOINTS"] == mount["mountPath"]
    assert volume["name"] == mount["name"]
    assert "persistentVolumeClaim" in volume
    assert {"requests", "limits"} == container["resources"].keys()
    shell, option, command = container["command"]
    assert (shell, option) == ("sh", "-c")
    at = datetime(2026, 3, 4, 6, tzinfo=ZoneInfo("Europe/Berlin"))
    job = f"retrain-digits-{int(at.timestamp()) // 60}"
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 20]
    for code, ended in ((0, 0), (10, 0), (20, 20), (4, 4)):
        machine.end_with(code)
        assert machine.shell(command, JOB_NAME=job) == ended
    assert {key_of(one) for one in machine.calls()} == {"2026-03-04"}
    late = datetime(2026, 3, 5, 0, 30, tzinfo=ZoneInfo("Europe/Berlin"))  # 4 March in UTC
    assert machine.shell(command, JOB_NAME=f"retrain-digits-{int(late.timestamp()) // 60}") == 4
    assert key_of(machine.calls()[-1]) == "2026-03-05"


@pytest.mark.parametrize(
    ("code", "calls", "ended"), [(0, 1, 0), (10, 1, 0), (20, 1, 20), (4, 3, 4)]
)
def test_the_workflow_repeats_what_may_succeed(
    machine: Machine, code: int, calls: int, ended: int
) -> None:
    job = loaded("workflow.yml")["jobs"]["retrain"]
    assert not job["env"]["TUNER_CHECKPOINTS"].startswith("$"), "outside of the workspace"
    (step,) = [one for one in job["steps"] if one.get("name") == "retrain"]
    command = step["run"].replace("${{ github.run_id }}", "1234")
    machine.end_with(code)
    assert machine.shell(f"set -e\n{command}", RETRY_SECONDS="0") == ended
    assert [key_of(one) for one in machine.calls()] == ["1234"] * calls


class FailForGoodError(Exception):
    """Stands for Airflow's exception that ends a task without retries."""


class SkipError(Exception):
    """Stands for Airflow's exception that skips a task and what follows."""


def decorator(*arguments: Any, **options: Any) -> Any:
    """Stand for a decorator of a task or flow, which a test calls as the plain function."""
    return arguments[0] if arguments else lambda function: function


def library(name: str, monkeypatch: pytest.MonkeyPatch, **content: Any) -> None:
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))


def recipe(name: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a recipe's module with `tuner` on the machine's path, and return its names."""
    monkeypatch.setenv("PATH", f"{machine.folder / '.venv/bin'}:/usr/bin:/bin")
    text = (RECIPES / name).read_text().replace("/srv/tuning", str(machine.folder))
    module: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(text, name, "exec"), module)
    return module


def test_airflow_skips_what_follows_and_does_not_retry_what_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {"AirflowFailException": FailForGoodError, "AirflowSkipException": SkipError}
    dags = list[dict[str, Any]]()

    def dag(**options: Any) -> Any:  # the tasks of a graph are not run when it is made
        dags.append(options)
        return lambda function: lambda: None

    library("airflow", monkeypatch)
    library("airflow.sdk", monkeypatch, dag=dag, task=decorator)
    library("airflow.sdk.exceptions", monkeypatch, **failing)
    module = recipe("airflow_dag.py", machine, monkeypatch)
    assert [one["schedule"] for one in dags] == ["0 6 * * *"]
    for code, error in ((20, FailForGoodError), (10, SkipError), (4, CalledProcessError)):
        machine.end_with(code)
        with pytest.raises(error):
            module["retrain"]("2026-03-04")
    machine.end_with(0)
    assert module["deploy"](module["retrain"]("2026-03-04")) == "models:/digits@champion"
    assert key_of(machine.calls()[-1]) == "2026-03-04"


def test_prefect_retries_all_but_what_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = datetime(2026, 3, 4, 6, tzinfo=UTC)
    run = SimpleNamespace(flow_run=SimpleNamespace(scheduled_start_time=start))
    library("prefect", monkeypatch, flow=decorator, task=decorator, runtime=run)
    module = recipe("prefect_flow.py", machine, monkeypatch)
    assert module["retrain_digits"]() == "promoted"
    assert key_of(machine.calls()[0]) == "2026-03-04"
    for code, again in ((20, False), (4, True)):
        machine.end_with(code)
        state = SimpleNamespace(result=module["retrain_digits"])
        assert module["may_succeed"](None, None, state) is again


def test_every_recipe_is_in_the_table() -> None:
    text = (RECIPES / "README.md").read_text()
    assert {path.name for path in FILES} - {"README.md"} == set(
        re.findall(r"\]\((\w[\w.]+)\)", text)
    )
