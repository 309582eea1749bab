"""The recipes: each file is what it says it is, and its command is one that we have."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

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
TEMPLATES = r"\{\{ ds \}\}|\{key\}|\$\{\{ [\w.]+ \}\}|\$\(date[^)]*\)|\$JOB_NAME|\bKEY\b"
"""What each scheduler puts its key for."""


def commands(path: Path) -> list[list[str]]:
    """Give the arguments of every `tuner` in a file, with a date for the key."""
    text = re.sub(TEMPLATES, "2026-03-01", path.read_text())
    found = re.findall(r"(?<![\w/.`])tuner (retrain\b[^\n>\]]*)", text)
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


@pytest.mark.parametrize("name", ["airflow_dag.py", "prefect_flow.py"])
def test_the_pipelines_are_python(name: str) -> None:
    tree = ast.parse((RECIPES / name).read_text())
    crons = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg in {"schedule", "cron"}
    ]
    assert crons == ["0 6 * * *"]


def test_the_line_of_cron_has_five_fields_and_escapes_percent_signs() -> None:
    lines = (RECIPES / "crontab").read_text().splitlines()
    (line,) = [one for one in lines if one[0].isdigit()]
    checked(Timetable(expression=" ".join(line.split()[:5]), zone="UTC"), 0.0)
    assert not re.search(r"(?<!\\)%", line)


def test_every_recipe_is_in_the_table() -> None:
    text = (RECIPES / "README.md").read_text()
    assert {path.name for path in FILES} - {"README.md"} == set(
        re.findall(r"\]\((\w[\w.]+)\)", text)
    )
