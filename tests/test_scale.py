"""`tuner scale`: its plan, how it follows the best rate, and a whole run of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from processes import prepare, tuner

from tuner.config import reading
from tuner.core.errors import UsageError
from tuner.operations import scale

FILE = """
[study]
name = "to-scale"

[workload]
factory = "studies.digits:mlp"
arguments = { hidden = 16, layers = 1 }

[training]
steps = 40
batch_size = 64
evaluate_every = 5

[space]
lr = { low = 1e-2, high = 1.0 }
schedule = "cosine"
optimizer = "sgd"

[budget]
trials = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(FILE)
    return path


def test_a_ladder_for_each_scale_ends_at_the_study_files_own_sizes(file):
    spec = reading.load(file)
    assert scale.plan(spec, {"steps": 640, "hidden": 64}, rungs=3) == [
        {"steps": 10, "hidden": 16},
        {"steps": 20, "hidden": 16},
        {"steps": 40, "hidden": 4},
        {"steps": 40, "hidden": 8},
        {"steps": 40, "hidden": 16},
    ]


def test_a_rung_is_a_grid_of_rates_under_common_seeds(file):
    sizes = {"steps": 20, "hidden": 8, "batch_size": 32}
    own = ["space.lr=[0.1,0.3]", "budget.wall_seconds=1", 'search.learn_from=["before"]']
    spec = scale.rung_spec(file, own, sizes, [0.1, 0.2], 1)
    assert (spec.training.steps, spec.training.batch_size) == (20, 32)
    assert spec.workload.arguments == {"hidden": 8, "layers": 1}
    assert spec.study.name == "to-scale-scale-steps20-hidden8-batch_size32-1"
    assert [one["lr"] for one in spec.search.sampler.params] == [0.1, 0.2]
    assert spec.budget.trials == 2 * scale.SEEDS
    assert spec.deciding_trials == 0
    assert spec.budget.wall_seconds is None, "a limit of the search is none of a rung"
    assert not spec.search.learn_from


@pytest.mark.parametrize(
    ("overrides", "to", "says"),
    [
        ([], ["epochs=3"], "expected steps, the unit of the study file"),
        ([], ["depth=3"], r"one of \[workload\] arguments \(hidden, layers\), got 'depth'"),
        ([], ["steps=many"], "expected SCALE=NUMBER"),
        ([], ["steps=10", "steps=20"], "each scale once"),
        ([], ["layers=4"], "expected a size from which two can be smaller"),
        (["space.schedule=['cosine','constant']"], ["steps=99"], "only lr to vary"),
        (["space.lr=0.1"], ["steps=99"], "expected a range, got one rate"),
    ],
)
def test_what_cannot_be_scaled_is_refused_before_anything_is_trained(file, overrides, to, says):
    with pytest.raises(UsageError, match=says):
        scale.scale(file, overrides, scale.targets(to), ())
    assert [one.name for one in file.parent.iterdir()] == ["study.toml"]


@pytest.mark.parametrize("best", [0.001, 0.1, 3.0])
def test_a_rung_is_extended_until_its_best_rate_is_inside(best):
    seen = []

    def train(rates, part):
        seen.append((part, len(rates)))
        return [(rate, 1 + 0.1 * math.log(rate / best) ** 2) for rate in rates for _ in "ab"]

    found, trials, parts = scale.measure({"steps": 10}, scale.around(0.1), train)
    assert found.rate == pytest.approx(best, rel=0.5)
    assert parts == len(seen)
    assert len(trials) == 2 * sum(count for _, count in seen)
    assert found.edge == ""


def test_rates_above_the_stable_limit_are_no_reason_to_go_higher():
    def train(rates, _part):
        return [(rate, 1 / rate if rate < 0.15 else math.nan) for rate in rates]

    found, _, parts = scale.measure({"steps": 10}, scale.around(0.1), train)
    assert found.edge == "stability"
    assert parts == 2, "two lower ones, so that four have a loss"


@pytest.mark.nightly
@pytest.mark.slow
def test_a_rate_for_a_longer_run(tmp_path):
    prepare(tmp_path)
    (tmp_path / "study.toml").write_text(FILE)
    done = tuner(tmp_path, "scale", "study.toml", "--to", "steps=160", "--rungs", "3", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["interval"][0] < found["rate"] < found["interval"][1]
    assert [one["sizes"]["steps"] for one in found["rungs"]] == [10, 20, 40]
    assert found["rule_of_thumb"] == found["unscaled"] == found["rungs"][-1]["rate"]
    assert (tmp_path / found["report"]).is_file()
    assert "steps 40: best rate" in done.err
