"""The README's commands run as they stand, and say what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run the tour in an empty folder beside the studies; give each command's output."""
    folder = tmp_path_factory.mktemp("tour")
    shutil.copytree(ROOT / "studies", folder / "studies")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "COLUMNS": "200"}
    outputs = {}
    commands = [line for block in blocks("sh") for line in block.splitlines() if line]
    assert len(commands) >= 5
    for command in commands:
        done = subprocess.run(
            command,
            shell=True,
            check=False,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        outputs[command] = done.stdout
    for code in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", code], check=False, cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        outputs["python"] = outputs.get("python", "") + done.stdout
    return outputs


@pytest.mark.nightly
def test_the_tour_runs_and_ends_well(tour: dict[str, str]) -> None:
    assert "Everything matches." in tour["tuner doctor"]
    assert "'lr'" in tour["python"]
    assert "Equal: trial 2 of 'houses'" in tour["python"]


@pytest.mark.nightly
def test_the_numbers_of_the_oldest_example_are_those_that_it_prints(tour: dict[str, str]) -> None:
    said = re.search(r"Best: (val_loss \S+ in trial \d+ with lr \S+), constant", README)
    assert said is not None
    assert said[1] in tour["tuner best house-prices"]
    printed = tour["tuner run studies/house_prices.toml"]
    assert "280.3" in printed
    assert "2.316e+05" in printed


@pytest.mark.nightly
def test_a_second_run_goes_on_where_the_first_one_ended(tour: dict[str, str]) -> None:
    first, second = (text for command, text in tour.items() if "study.name=short" in command)
    assert "trial 9 of 10" in first
    assert "trial 9 of" not in second
    assert "trial 11 of 12" in second


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
