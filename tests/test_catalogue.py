"""The catalogue is complete: in the study file, in training, in the documentation, and in use."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers import complete
from test_reference import curve_of, make_spec, train

from tuner.config import Choice, Space
from tuner.config.optimizers import NEED_NO_RATE, OptimizerChoice, OptimizerName
from tuner.config.schedules import ScheduleChoice, ScheduleName
from tuner.examples import digits
from tuner.training.optimizers import OPTIMIZERS
from tuner.training.rate_source import STATEFUL
from tuner.training.schedules import SCHEDULES
from tuner.training.trainer import Status, Task
from tuner.training.workloads import Workload

PAGE = (Path(__file__).parents[1] / "docs" / "catalogue.md").read_text()


def classes(union: Any) -> dict[str, type[Choice]]:
    """Give the classes of a union by the names that they have in a study file."""
    members = get_args(get_args(union)[0])
    return {get_args(one.model_fields["name"].annotation)[0]: one for one in members}


SPEC = {"Schedules": classes(ScheduleChoice), "Optimizers": classes(OptimizerChoice)}
CODE: dict[str, dict[str, Any]] = {
    "Schedules": {**SCHEDULES, **STATEFUL},
    "Optimizers": {**OPTIMIZERS},
}
NAMES = {"Schedules": get_args(ScheduleName), "Optimizers": get_args(OptimizerName)}
ALL = [(part, name) for part, found in SPEC.items() for name in found]


def sections(part: str) -> dict[str, str]:
    """Give the text below each name in a part of the page."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    [whole] = [chapter for chapter in text if chapter.startswith(f"{part}\n")]
    _, *named = re.split(r"^### ", whole, flags=re.MULTILINE)
    return {name: rest for name, _, rest in (section.partition("\n") for section in named)}


@pytest.mark.parametrize("part", SPEC)
def test_every_name_is_everywhere_and_no_other_is(part: str) -> None:
    names = list(SPEC[part])
    assert list(NAMES[part]) == names
    assert list(CODE[part]) == names
    assert list(sections(part)) == names


@pytest.mark.parametrize(("part", "name"), ALL)
def test_what_trains_takes_the_parameters_of_the_study_file(part: str, name: str) -> None:
    parameters = inspect.signature(CODE[part][name]).parameters.values()
    keywords = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert keywords == {*SPEC[part][name].model_fields} - {"name"}


@pytest.mark.parametrize(("part", "name"), ALL)
def test_the_page_has_every_parameter_and_its_default(part: str, name: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| .+ \|$", sections(part)[name], re.MULTILINE)
    said = {key: tomllib.loads(f"value = {default}")["value"] for key, default in rows}
    chosen = SPEC[part][name]
    assert [*said] == [key for key in chosen.model_fields if key not in {"name", "warmup"}]
    assert chosen.model_validate({"name": name, **said}) == chosen.model_validate({"name": name})


@pytest.mark.parametrize(("part", "name"), ALL)
def test_the_page_says_where_it_is_from(part: str, name: str) -> None:
    prose = sections(part)[name].partition("\n| ")[0]
    assert len(prose) > 80
    assert "https://" in prose or "torch's" in prose


def test_the_page_has_an_example_of_a_space_and_the_default_space() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    example, default = (Space.model_validate(tomllib.loads(block)["space"]) for block in blocks)
    assert len(example.schedule) == len(example.optimizer) == 2
    assert default == Space()


# --- in use ---------------------------------------------------------------------------------------

RATES = {
    "sgd": 0.5, "adam": 3e-3, "adamw": 3e-3, "nadam": 3e-3, "rmsprop": 1e-3, "adagrad": 0.03,
    "lion": 1e-3, "muon": 0.01, "schedule_free_sgd": 1.0, "schedule_free_adamw": 0.01,
}  # fmt: skip
"""Those that find a rate by themselves have not found it after so few steps."""
assert set(RATES) == set(SPEC["Optimizers"]) - NEED_NO_RATE


@pytest.fixture(scope="module")
def workload() -> Workload:
    return digits.mlp()


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("schedule", SPEC["Schedules"])
@pytest.mark.parametrize("optimizer", RATES)
def test_each_optimizer_learns_on_each_schedule(
    workload: Workload, optimizer: str, schedule: str
) -> None:
    spec = make_spec(steps=60, batch_size=64, dtype="float32")
    params = complete(RATES[optimizer], {"name": schedule, "warmup": 0.1}, optimizer)
    task = Task(number=0, seed=1, params=params)
    _, evaluations, (status, _, _) = curve_of(train(workload, spec, task))
    losses = [metrics["val_loss"] for _, metrics in evaluations]
    assert status is Status.FINISHED
    assert losses[-1] < 0.9 * losses[0]
