"""The README's commands run as they are, and print what it shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)  # all of the tour, one command after another

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a wheel of this project where other packages are seen, but nothing of the clone.

    Return the folder of its commands.
    """
    folder = tmp_path_factory.mktemp("installed")
    clone = folder / "clone"
    clone.mkdir()
    for name in ("tuner", "studies"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(clone)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    install = ["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # the path of the packages only: what is installed there in editable mode stays unseen
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    shutil.rmtree(clone)
    return python.parent


@pytest.fixture(scope="module")
def tour(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run the tour in an empty folder, with an installed wheel; return each command's output."""
    folder = tmp_path_factory.mktemp("tour")
    path = f"{installed}{os.pathsep}{os.environ['PATH']}"
    own = {k: v for k, v in os.environ.items() if not k.startswith(("TUNER_", "PYTHON"))}
    environment = own | {"PATH": path, "COLUMNS": "200"}
    outputs = {}
    commands = [line for block in blocks("sh") for line in block.splitlines() if line]
    assert commands[:2] == ["tuner init", "tuner run studies/first.toml"]
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
            [str(installed / "python"), "-c", code],
            check=False,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
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
def test_the_package_brings_no_other_top_level_package(
    installed: Path, tour: dict[str, str]
) -> None:
    (site,) = (installed.parent / "lib").glob("python*/site-packages")
    brought = {path.name for path in site.iterdir() if path.is_dir()}
    assert {name for name in brought if "." not in name} == {"tuner"}
    assert "studies/digits.py" in tour["tuner examples --all"]


@pytest.mark.nightly
def test_the_numbers_of_the_oldest_example_are_those_that_it_prints(tour: dict[str, str]) -> None:
    shown = re.search(r"Best: (val_loss \S+ in trial \d+ with lr \S+), constant", README)
    assert shown is not None
    assert shown[1] in tour["tuner best house-prices"]
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
        name, _, anchor = target.partition("#")
        assert (ROOT / name).exists(), target
        headings = (
            re.findall(r"^#+ (.+)$", (ROOT / name).read_text(), re.MULTILINE) if anchor else []
        )
        anchors = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
        assert not anchor or anchor in anchors, target
