"""`tuner scale`: its plan, how it follows the best rate, and a whole run of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from processes import prepare, tuner

from tuner.analysis import scaling
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
        return [
            scale.Tried(rate, 1 + 0.1 * math.log(rate / best) ** 2, seed)
            for seed in range(2)
            for rate in rates
        ]

    found, trials, parts = scale.measure({"steps": 10}, scale.around(0.1), train)
    assert found.rate == pytest.approx(best, rel=0.5)
    assert parts == len(seen)
    assert len(trials) == 2 * sum(count for _, count in seen)
    assert found.edge == ""


def test_rates_above_the_stable_limit_are_no_reason_to_go_higher():
    def train(rates, _part):
        return [scale.Tried(rate, 1 / rate if rate < 0.15 else math.nan, 0) for rate in rates]

    found, _, parts = scale.measure({"steps": 10}, scale.around(0.1), train)
    assert found.edge == "stability"
    assert parts == 2, "two lower ones, so that four have a loss"


def test_settings_follow_the_batch_size_where_asked(file):
    adam = ['space.optimizer={name="adamw", weight_decay=0.1}']
    sizes = {"batch_size": 16}
    plain = scale.rung_spec(file, adam, sizes, [0.1, 0.2], 1)
    spec = scale.rung_spec(file, adam, sizes, [0.1, 0.2], 1, adjust=True)
    (own,) = spec.space.optimizer
    assert (own.beta1, own.beta2, own.eps) == pytest.approx((0.975, 0.99975, 2e-8))
    assert own.weight_decay == 0.1
    assert spec.study.name == f"{plain.study.name.removesuffix('-1')}-adjusted-1"
    same = scale.rung_spec(file, adam, {"batch_size": 64}, [0.1, 0.2], 1, adjust=True)
    assert same.space.optimizer[0].beta1 == 0.9
    assert same.study.name == "to-scale-scale-batch_size64-1"


@pytest.mark.parametrize(
    ("overrides", "to", "says"),
    [
        ([], {"steps": 99}, "expected --to batch_size"),
        (['space.optimizer="lion"'], {"batch_size": 256}, "sgd, adam, .*, got lion"),
    ],
)
def test_an_adjustment_without_a_rule_is_refused(file, overrides, to, says):
    with pytest.raises(UsageError, match=says):
        scale.scale(file, overrides, to, (), adjust=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("parametrization", "expected ARGUMENT=VALUE,VALUE"),
        ("parametrization=standard", "expected ARGUMENT=VALUE,VALUE"),
        ("parametrization=a,a", "expected ARGUMENT=VALUE,VALUE"),
        ("parametrization=standard,mup-adam", "expected mup-sgd for sgd"),
    ],
)
def test_comparisons_that_make_no_sense_are_refused(file, text, says):
    with pytest.raises(UsageError, match=says):
        scale.variants(text, [], file)


def test_each_value_of_a_comparison_is_a_study_of_its_own(file):
    found = scale.variants("parametrization=standard,mup-sgd", ["study.seed=3"], file)
    assert list(found) == ["parametrization standard", "parametrization mup-sgd"]
    spec = reading.load(file, found["parametrization mup-sgd"])
    assert spec.study.name == "to-scale-mup-sgd"
    assert spec.study.seed == 3
    assert spec.workload.arguments["parametrization"] == "mup-sgd"
    (_, layers) = scale.variants("layers=1,2", [], file).values()
    assert reading.load(file, layers).workload.arguments["layers"] == 2


def scaled(exponent, loss):
    """The result of a ladder over the width whose best rate is known."""
    grids = []
    for width in (8, 16, 32, 64):
        best = 0.1 * (width / 8) ** exponent
        trials = [
            scale.Tried(rate, loss + 0.1 * math.log(rate / best) ** 2, 0)
            for rate in scale.around(best * 1.1)
        ]
        grids.append(scale.grid_of({"hidden": width}, trials))
    prediction = scaling.predict(scaling.together(grids), {"hidden": 256})
    return scale.Scaled(
        prediction=prediction,
        metric="val_loss",
        rule=0.1,
        rules=[],
        trials=20,
        page=None,
        adjusted={},
        critical=None,
    )


def test_which_parametrization_carries_over():
    found = {
        "parametrization standard": scaled(-0.7, 0.3),
        "parametrization mup-adam": scaled(0, 0.2),
    }
    compared = scale.Compared(found=found)
    assert compared.as_json()["carries_over"] == {"hidden": ["parametrization mup-adam"]}
    standard, mup, less, losses = scale.compared_in_words(compared)
    assert standard.startswith("parametrization standard: from hidden 8 to 256 the best rate moves")
    assert standard.endswith("so it is not shown to carry over.")
    assert mup.endswith("so it carries over.")
    assert "less under parametrization mup-adam than under parametrization standard" in less
    assert "0.3009 with parametrization standard, 0.2009 with parametrization" in losses


def test_the_critical_batch_size_by_the_steps_to_a_common_loss():
    """Losses fall by exp(-gain) a step, and the gain is 0.02/(1 + 30/B)."""
    steps, trained = [], []
    at = list(range(0, 401, 10))
    for size in (8, 16, 32, 64):
        gain = 0.02 / (1 + 30 / size)
        curves = [
            (at, [math.exp(-gain * share * step) for step in at]) for share in (0.3, 1.0, 0.2)
        ]
        rates = (0.05, 0.1, 0.2)
        trained.append(
            [scale.Tried(rate, one[1][-1], 0, one) for rate, one in zip(rates, curves, strict=True)]
            # a seed that never reaches what the other one does
            + [scale.Tried(0.1, 0.1, 1, (at, [max(loss, 0.1) for loss in curves[1][1]]))]
        )
        steps.append({"batch_size": size})
    found = scale._critical_batch_size(steps, trained)
    assert found.size.rows == pytest.approx(30, rel=0.1)
    assert list(found.steps) == [8, 16, 32, 64]
    assert scale._critical_batch_size(steps[:2], trained[:2]) is None


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
