"""Every snippet of the documentation is valid here, or runs in the test that is named here."""

from __future__ import annotations

import functools
import re
import textwrap
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tuner.config import building, cluster, reading
from tuner.training.programs import current
from tuner.training.workloads import Workload

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REST: dict[str, Any] = {
    "study": {"name": "documented"},
    "workload": {"factory": "studies.digits:mlp"},
    "training": {"steps": 900},
    "budget": {"trials": 10},
}
"""The tables of a study file that a snippet leaves out."""
RUN_BY = {
    "README.md": "test_readme",
    "own_loop.md": "test_own_loops",
    "python.md": "test_python_first, test_asking",
    "cohorts.md": "here",
    "space.md": "here",
    "scaling.md": "here",
    "search.md": "test_custom_samplers",
    "clusters.md": "test_executors",
    "programs.md": "test_programs, test_ranks",
    "loaders.md": "test_loaders",
    "integrations.md": "test_integrations",
}
"""Where the Python of a page runs."""


def blocks(page: Path, language: str) -> list[str]:
    """Return the snippets of a page, also those within a list."""
    found = re.findall(
        rf"^( *)```{language}\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE
    )
    return [textwrap.dedent(text) for _, text in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_a_study_file(page: Path) -> None:
    for block in blocks(page, "toml"):
        tables = tomllib.loads(block)
        if page.name == "clusters.md":
            assert cluster.parse(block, page.name)
            continue
        rest = {name: table for name, table in REST.items() if name not in tables}
        if "training" in tables and not {"steps", "epochs"} & tables["training"].keys():
            tables["training"] |= REST["training"]
        if "rates" in tables.get("space", {}):  # a train function's
            rest["workload"] = {"train": "studies.mine:train"}
        assert reading.parse(building.toml({**rest, **tables}), page.name)


def test_the_python_of_every_page_runs_in_a_test() -> None:
    assert {page.name for page in PAGES if blocks(page, "python")} == set(RUN_BY)


def run(block: str, **names: Any) -> dict[str, Any]:
    """Run a snippet of Python beside these names; return all of its names."""
    namespace = {"torch": torch, **names}
    exec(compile(block, "snippet", "exec"), namespace)
    return namespace


def test_each_group_of_the_documented_function_has_its_own_rate() -> None:
    (block,) = blocks(ROOT / "docs" / "space.md", "python")
    made: list[Any] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

    trial = current._alone(lr=0.1, steps=4, seed=0, more={})
    seen = SimpleNamespace(lr=trial.lr, schedule=made.append)
    run(block, Model=Model)["train"](seen, head_lr=0.5)
    trial.schedule(made[0])
    assert [group["lr"] for group in made[0].param_groups] == [0.1, 0.5]


@pytest.mark.longer
def test_the_documented_parametrization_and_noise_scale(capsys: pytest.CaptureFixture[str]) -> None:
    parametrized, noise = blocks(ROOT / "docs" / "scaling.md", "python")
    rows, classes = torch.randn(8, 64), torch.arange(8)
    workload = run(parametrized)["classify"](rows, classes, hidden=64)
    multipliers = {"2.weight": 0.5, "4.weight": 0.5}
    assert workload.rate_multipliers == multipliers
    assert workload.model(0, torch.float64)(rows.double()).shape == (8, 10)
    found = run(noise)["found"]
    assert 0 < found.low <= found.rows <= found.high
    assert " rows (" in capsys.readouterr().out


def test_the_documented_programs_are_those_that_are_tuned_in_tests() -> None:
    names = ("plain.py", "script/train.py", "lines.py", "torchrun/train.py")
    shown = blocks(ROOT / "docs" / "programs.md", "python")
    assert shown == [(ROOT / "tests" / "jobs" / name).read_text() for name in names]


def test_the_documented_script_runs_without_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    _, block, *_ = blocks(ROOT / "docs" / "programs.md", "python")
    monkeypatch.setattr(current, "_CURRENT", [])
    monkeypatch.delenv(current.TRIAL, raising=False)
    monkeypatch.setattr("sys.argv", ["train.py", "--epochs", "3"])
    names = run(block)
    assert (names["trial"].lr, names["trial"].alone, names["epoch"]) == (0.1, True, 2)


def test_the_documented_loader_gives_an_epoch_the_same_batches() -> None:
    factory, block = blocks(ROOT / "docs" / "cohorts.md", "python")
    assert run(factory, functools=functools, nn=nn, Workload=Workload)["mlp"](0.1, 0.2) is None
    dataset = TensorDataset(torch.arange(128.0))
    batches = run(block, DataLoader=DataLoader, dataset=dataset)["batches"]
    first, again, other = (torch.cat([rows for (rows,) in batches(epoch)]) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
