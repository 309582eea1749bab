"""muP: the table of Tensor Programs V, and steps that change layers equally at all widths."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tuner.examples import digits, text
from tuner.report.charts import coordinate_plot
from tuner.training import coordinates, mup
from tuner.training.workloads import seeded


class Small(nn.Module):
    """One parameter of each kind, with a layer twice as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.codes = nn.Embedding(7, width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, 5)
        self.last = nn.Linear(5, 3)


def roles(optimizer, wide=128, base=32):
    return mup.of_width(Small, wide, base, optimizer=optimizer).roles


@pytest.mark.parametrize(
    ("name", "kind", "sgd", "adam", "scale"),
    [
        ("codes.weight", "input", 4, 1, 1),
        ("widen.weight", "hidden", 1, 1 / 4, 1),
        ("widen.bias", "input", 4, 1, 2),  # torch draws it by the fan-in, which is 4 times as large
        ("narrow.weight", "hidden", 1, 1 / 4, 1),
        ("norm.weight", "input", 4, 1, 1),
        ("norm.bias", "input", 4, 1, 1),
        ("scores.weight", "output", 1 / 4, 1 / 4, 1 / 2),
        ("scores.bias", "fixed", 1, 1, 2),
        ("last.weight", "fixed", 1, 1, 1),
        ("last.bias", "fixed", 1, 1, 1),
    ],
)
def test_the_table(name, kind, sgd, adam, scale):
    of_sgd, of_adam = roles("sgd")[name], roles("adam")[name]
    assert (of_sgd.kind, of_adam.kind) == (kind, kind)
    assert (of_sgd.multiplier, of_adam.multiplier) == (sgd, adam)
    assert of_sgd.scale == of_adam.scale == pytest.approx(scale)


def test_the_base_model_is_the_standard_one():
    assert all(one.multiplier == one.scale == 1 for one in roles("adam", 32, 32).values())
    standard, scaled = (
        digits.mlp(hidden=32, parametrization=one) for one in ("standard", "mup-sgd")
    )
    assert not scaled.rate_multipliers
    for one, other in zip(
        standard.model(1, torch.float32).parameters(),
        scaled.model(1, torch.float32).parameters(),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_fan_in_and_fan_out_may_widen_by_different_factors():
    base, model = nn.Linear(8, 8), nn.Linear(16, 32)
    assert mup.between(base, model, optimizer="sgd").roles["weight"].multiplier == 32 / 8 / 2
    assert mup.between(base, model, optimizer="adam").roles["weight"].multiplier == 1 / 2


def test_initial_deviations_that_do_not_follow_the_width_are_made_to():
    """As in GPT-2, whose weights have a deviation of 0.02 at any width."""

    def build(width):
        layer = nn.Linear(width, width)
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
        return layer

    found = mup.of_width(build, 256, 64, optimizer="adam")
    assert found.roles["weight"].scale == pytest.approx(1 / 2)
    assert found.roles["bias"].scale == 1
    with seeded(0):
        made = found.initialize(build(256))
    assert float(made.weight.detach().std()) == pytest.approx(0.01, rel=0.02)


def test_transposed_convolutions_and_attention_have_their_own_order():
    base, model = (nn.ConvTranspose2d(width, 3, 3) for width in (8, 16))
    assert mup.between(base, model, optimizer="adam").roles["weight"].kind == "output"
    base, model = (nn.Conv2d(3, width, 3) for width in (8, 16))
    assert mup.between(base, model, optimizer="adam").roles["weight"].kind == "input"
    base, model = (nn.MultiheadAttention(width, 2) for width in (8, 16))
    found = mup.between(base, model, optimizer="adam").roles
    assert {name: one.kind for name, one in found.items()} == {
        "in_proj_weight": "hidden",
        "in_proj_bias": "input",
        "out_proj.weight": "hidden",
        "out_proj.bias": "input",
    }


class Own(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(4, width))


def test_what_is_not_known_is_asked_for():
    with pytest.raises(ValueError, match=r"positions: .* kinds=\{'positions': 'input'\}"):
        mup.of_width(Own, 16, 8, optimizer="sgd")
    found = mup.of_width(Own, 16, 8, optimizer="sgd", kinds={"positions": "input"})
    assert found.rate_multipliers == {"positions": 2}
    found = mup.of_width(Own, 16, 8, optimizer="sgd", kinds={"positions": "output"})
    assert found.rate_multipliers == {"positions": 1 / 2}


def tied(width):
    model = nn.ModuleDict({"codes": nn.Embedding(7, width), "scores": nn.Linear(width, 7)})
    model["scores"].weight = model["codes"].weight
    return model


@pytest.mark.parametrize(
    ("base", "model", "more", "says"),
    [
        (
            nn.Linear(2, 2),
            nn.Linear(2, 2, bias=False),
            {},
            r"same parameters, got others: \['bias'\]",
        ),
        (nn.Linear(2, 2), nn.Linear(4, 4), {"kinds": {"x": "input"}}, r"got \['x'\]"),
        (nn.Linear(2, 2), nn.Linear(4, 4), {"kinds": {"bias": "wide"}}, "got 'wide'"),
        (nn.Linear(2, 2), nn.Linear(4, 4), {"optimizer": "lion"}, "'sgd' or 'adam', got 'lion'"),
        (tied(2), tied(4), {}, "separate weights of codes and scores, got tied ones"),
        (nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 5), {}, "name its kind"),
    ],
)
def test_models_that_differ_in_more_than_widths_are_refused(base, model, more, says):
    with pytest.raises(ValueError, match=says):
        mup.between(base, model, **{"optimizer": "sgd", **more})


def test_the_parameter_groups_of_a_loop_of_ones_own():
    with seeded(0):
        model = Small(128)
    for family in ("sgd", "adam"):
        found = mup.of_width(Small, 128, 32, optimizer=family)
        groups = found.parameter_groups(model, 0.1, weight_decay=0.01)
        rates = {id(one): group for group in groups for one in group["params"]}
        for name, parameter in model.named_parameters():
            group = rates[id(parameter)]
            assert group["lr"] == pytest.approx(0.1 * found.roles[name].multiplier)
            decay = group["lr"] * group["weight_decay"] if family == "adam" else None
            assert decay in (None, pytest.approx(0.1 * 0.01))


def mlp(parametrization):
    return lambda width: digits.mlp(hidden=width, parametrization=parametrization)


def transformer(parametrization):
    return lambda width: text.transformer(width=width, layers=1, parametrization=parametrization)


@pytest.mark.longer
@pytest.mark.parametrize("family", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("factory", "widths"), [(mlp, [64, 128, 256]), (transformer, [32, 64, 128])]
)
def test_coordinate_check(factory, widths, family):
    """Steps change every layer by a fixed amount with muP, and by a power of the width without."""
    found = coordinates.check(factory(f"mup-{family}"), widths, optimizer=family, seeds=1)
    # the outputs of such narrow networks have not yet reached their limit
    assert abs(found.steepest[1]) < coordinates.FLAT + 0.2, found.slopes
    plain = coordinates.check(factory("standard"), widths, optimizer=family, seeds=1)
    assert abs(plain.steepest[1]) > 0.5, plain.slopes


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("family", ["sgd", "adam"])
@pytest.mark.parametrize("factory", [mlp, transformer])
def test_coordinate_check_over_a_factor_of_sixteen(factory, family):
    widths = [64, 128, 256, 512, 1024]
    found = coordinates.check(factory(f"mup-{family}"), widths, optimizer=family)
    assert abs(found.steepest[1]) < coordinates.FLAT, found.slopes
    plain = coordinates.check(factory("standard"), widths, optimizer=family, seeds=1)
    assert abs(plain.steepest[1]) > 0.5, plain.slopes


@pytest.mark.longer
def test_a_check_is_drawn(tmp_path):
    found = coordinates.check(mlp("mup-sgd"), [16, 32], optimizer="sgd", seeds=1, steps=1)
    coordinate_plot.save(found, tmp_path / "check.png")
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")
    (first, *_) = coordinate_plot.plot(found).legend
    assert first.label == f"0: power {found.slopes['0']:.2f}"


def test_a_check_needs_two_widths():
    with pytest.raises(ValueError, match="at least two"):
        coordinates.check(mlp("standard"), [64, 64], optimizer="sgd")


def test_heads_of_the_base_are_scaled_as_usual():
    assert mup.attention_divisor(16, 16) == pytest.approx(math.sqrt(16))
    assert mup.attention_divisor(64, 16) == pytest.approx(64 / math.sqrt(16))
