"""Studies that are written in Python: the tables of a file, and functions of scripts."""

from __future__ import annotations

import functools
import math
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import training_here
import warm

import tuner
from tuner.config import building, reading
from tuner.core.errors import StudyFileError, UsageError, WorkloadError
from tuner.training import capture

STUDIES = Path(__file__).parents[1] / "studies"
DOCUMENT = Path(__file__).parents[1] / "docs" / "python.md"
FILE = """
[study]
name = "mine"
seed = 3
[workload]
train = "studies.mine:train"
arguments = { size = 2 }
[training]
steps = 500
evaluate_every = 50
[space]
lr = { low = 1e-5, high = 1.0 }
schedule = ["cosine", { name = "step", drops = { low = 1, high = 5, log = true } }]
optimizer = { name = "sgd", momentum = [0.0, 0.9] }
[search]
sampler = "gp"
[budget]
trials = 40
retries = { failed = 1 }
"""


def written(**changes):
    tables = {
        "seed": 3,
        "train": "studies.mine:train",
        "arguments": {"size": 2},
        "training": {"evaluate_every": 50},
        "space": {
            "lr": tuner.log(1e-5, 1),
            "schedule": ["cosine", {"name": "step", "drops": tuner.ints(1, 5, log=True)}],
            "optimizer": {"name": "sgd", "momentum": [0.0, 0.9]},
        },
        "search": {"sampler": "gp"},
        "budget": tuner.Budget(trials=40, steps=500, retries={"failed": 1}),
    }
    return tuner.Study("mine", **{**tables, **changes})


def test_a_study_in_python_is_that_of_its_file():
    expected = reading.parse(FILE, "mine.toml")
    study = written()
    assert study.spec == expected
    assert study.spec.digest() == expected.digest()
    assert reading.parse(study.to_toml(), "mine.toml") == expected


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_specification_survives_its_file(file):
    spec = reading.load(file)
    text = building.toml(spec.model_dump(mode="json", exclude_none=True, exclude_defaults=True))
    assert reading.parse(text, "again.toml") == spec


def test_to_toml_writes_the_file(tmp_path):
    study = written()
    assert study.to_toml(tmp_path / "mine.toml") == (tmp_path / "mine.toml").read_text()
    assert reading.load(tmp_path / "mine.toml") == study.spec


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(StudyFileError) as error:
        written(direction="up", budget=tuner.Budget(trials=0), training={}, space={"lr": -1.0})
    lines = str(error.value)
    for part in ("[study] direction", "[budget] trials", "[training] steps", "[space] lr"):
        assert f"tuner.Study('mine'): {part}: expected" in lines


def test_ranges_are_the_tables_of_a_file():
    assert tuner.log(1, 10) == {"low": 1.0, "high": 10.0, "log": True}
    assert tuner.floats(0, 0.5) == {"low": 0.0, "high": 0.5}
    assert tuner.ints(1, 8) == {"low": 1, "high": 8}
    assert tuner.ints(1, 8, when={"optimizer": "sgd"})["when"] == {"optimizer": "sgd"}
    with pytest.raises(UsageError, match="whole numbers"):
        tuner.ints(1, 8.5)


def test_names_that_the_space_does_not_know_are_arguments():
    found = building.space_table({"lr": 0.1, "width": tuner.ints(8, 64)})
    assert found == {"lr": 0.1, "arguments": {"width": {"low": 8, "high": 64}}}
    sizes = {"batch_size": [16, 32]}
    assert building.space_table(sizes) == sizes
    assert building.space_table(sizes, own_loop=True) == {"arguments": sizes}


def test_any_argument_is_searched():
    study = tuner.Study(
        "mine",
        train="studies.mine:train",
        space={
            "lr": tuner.log(1e-5, 1),
            "hidden": tuner.ints(32, 512, log=True),
            "dropout": [0.0, 0.1, 0.5],
            "nesterov": {"values": [True, False], "when": {"optimizer": "sgd"}},
            "schedule": ["cosine", "wsd"],
        },
        budget=tuner.Budget(trials=40, steps=500),
    )
    names = [one.name for one in study.spec.space.parameters() if "." not in one.name]
    assert set(names) == {"lr", "schedule", "optimizer", "hidden", "dropout", "nesterov"}
    assert reading.parse(study.to_toml(), "mine.toml") == study.spec


def test_the_file_is_written_as_a_person_writes_one():
    space = {"lr": tuner.log(0.1, 1), "width": 2 ** np.arange(3), "drop": np.float32(0.5)}
    study = tuner.Study("mine", space=space, budget=tuner.Budget(trials=np.int64(4), steps=9))
    assert study.to_toml().startswith('[study]\nname = "mine"\n\n[workload]\n')
    assert "\nlr = { low = 0.1, high = 1.0, log = true }\n" in study.to_toml()
    assert study.spec.space.arguments == {"width": (1, 2, 4), "drop": 0.5}


def test_what_toml_does_not_have_is_refused():
    with pytest.raises(UsageError, match="got <object object"):
        written(arguments={"size": object()})


def test_a_name_alone_is_a_study_of_the_database():
    study = tuner.Study("mine")
    assert repr(study) == "tuner.load('mine')"


# --- functions of scripts and notebooks


def module(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Run a script's text as `__main__`."""
    file = tmp_path / "script.py"
    file.write_text(text)
    made = types.ModuleType("__main__")
    made.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "__main__", made)
    exec(compile(text, str(file), "exec"), made.__dict__)
    return made


SCRIPT = """
import math as m
from pathlib import Path
from statistics import fmean

RATES = [0.1, 0.2]
model = object()

class Base:
    factor = 2.0

class Line(Base):
    def __init__(self):
        super().__init__()
    def at(self, x):
        return m.sqrt(x) * self.factor

def helper(x, again=RATES[0]):
    return fmean([Line().at(x), again])

def train(trial, size=RATES[1]):
    model = helper(size)
    return recursive(2) + model

def recursive(n):
    return n and recursive(n - 1)

def unused():
    return Path(model)
"""


def test_a_function_of_a_script_is_captured_with_what_it_uses(tmp_path, monkeypatch):
    script = module(SCRIPT, tmp_path, monkeypatch)
    assert capture.must_be_captured(script.train)
    captured = capture.capture(script.train, "My study")
    assert captured.name.startswith("studies.my_study_")
    assert "unused" not in captured.text
    assert "object()" not in captured.text
    namespace: dict[str, object] = {"__name__": "captured"}
    exec(captured.text, namespace)
    assert namespace["train"](None) == script.train(None) == math.sqrt(0.2) + 0.05
    assert capture.capture(script.train, "My study") == captured


def test_another_source_is_another_module(tmp_path, monkeypatch):
    one = capture.capture(module(SCRIPT, tmp_path, monkeypatch).train, "mine")
    changed = module(SCRIPT.replace("factor = 2.0", "factor = 3.0"), tmp_path / "", monkeypatch)
    import linecache

    linecache.checkcache()
    other = capture.capture(changed.train, "mine")
    assert one.module != other.module


def test_a_captured_module_is_written_once(tmp_path, monkeypatch):
    captured = capture.capture(module(SCRIPT, tmp_path, monkeypatch).train, "mine")
    file = captured.write(tmp_path)
    assert file == tmp_path / (captured.module.replace(".", "/") + ".py")
    assert file.read_text() == captured.text


def test_what_workers_cannot_get_is_refused_with_advice(tmp_path, monkeypatch):
    text = "data = object()\ndef train(trial):\n    return data\n"
    script = module(text, tmp_path, monkeypatch)
    with pytest.raises(WorkloadError, match=r"uses data: .* move all of them into a file"):
        tuner.Study("mine", train=script.train, budget=tuner.Budget(trials=1, steps=2))


@pytest.mark.parametrize(
    ("function", "got"),
    [(lambda trial: None, "a lambda"), (functools.partial(max, 1), "a partial")],
)
def test_what_is_no_function_with_a_source_is_refused(function, got):
    with pytest.raises(WorkloadError, match=f"written with def, got {got}; write one that calls"):
        tuner.Study("mine", train=function, budget=tuner.Budget(trials=1, steps=2))


def test_a_function_of_a_module_is_named_by_it():
    study = written(train=None, factory=training_here.fitting, arguments=None)
    assert study.spec.workload.factory == "training_here:fitting"
    assert study._prefixes(None)[-1] == "training_here."


def test_a_function_in_a_function_is_captured_with_its_constants():
    size = 3

    def train(trial):
        return size * math.pi

    captured = capture.capture(train, "mine")
    namespace: dict[str, object] = {}
    exec(captured.text, namespace)
    assert namespace["train"](None) == 3 * math.pi


@pytest.mark.slow
def test_the_documented_script_trains_its_own_function(tmp_path):
    script = tmp_path / "script.py"
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)[0]
    script.write_text(
        f"{code}\n"
        "study.to_toml('mine.toml')\n"
        "study.run(progress=False)  # nothing is left\n"
        "print(study.status()['trials']['running'], len(study.trials()), study.rerun(0).equal)\n"
    )
    done = subprocess.run(
        [warm.python(), "-m", "script", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 12 True"
    spec = reading.load(tmp_path / "mine.toml")
    assert spec.workload.train is not None
    assert (
        (tmp_path / spec.workload.train.partition(":")[0].replace(".", "/"))
        .with_suffix(".py")
        .exists()
    )
