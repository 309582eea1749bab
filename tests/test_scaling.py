"""How the best rate moves with a scale: right where the best rate of every size is known."""

import math

import numpy as np
import pytest

from tuner.analysis import scaling
from tuner.analysis.scaling import Grid, predict, rung


def grid(sizes, best, *, noise=0.0, seed=0, diverges=math.inf, apart=2.0):
    """Five rates around a place near the best, each twice, on a parabola of curvature 0.1."""
    rng = np.random.default_rng(seed)
    rates = np.repeat(best * 1.2 * apart ** np.arange(-2.0, 3.0), 2)
    losses = 1.0 + 0.05 * np.log(rates / best) ** 2 + noise * rng.normal(size=10)
    return rung(sizes, rates, np.where(rates > diverges, math.nan, losses))


def ladder(exponent, *, noise=0.0, seed=0, scale="steps", sizes=(100, 200, 400, 800)):
    return [
        grid({scale: size}, 0.1 * (size / 100) ** exponent, noise=noise, seed=10 * seed + n)
        for n, size in enumerate(sizes)
    ]


def skewed_grids(seed, exponent, noise=0.01):
    """Skewed curves whose curvatures differ, with offsets of seeds larger than the noise."""
    rng = np.random.default_rng(seed)
    grids = []
    for size in (100, 200, 400, 800):
        best = 0.1 * (size / 100) ** exponent
        off_centre = best * math.exp(rng.uniform(-0.35, 0.35))
        rates = np.repeat(off_centre * 2.0 ** np.arange(-2.0, 3.0), 2)
        seeds = np.tile([0, 1], 5)
        u = np.log(rates / best)
        bowl = 0.05 * math.exp(rng.normal(0, 0.4)) * u**2 * (1 + 0.15 * u)
        losses = 1 + bowl + np.array([0.05, -0.05])[seeds] + noise * rng.normal(size=10)
        grids.append(Grid(sizes={"steps": size}, rates=rates, losses=losses, seeds=seeds))
    return grids


@pytest.mark.longer
def test_rungs_fitted_together_predict_better_and_say_so():
    """Against rungs alone: nearer, with narrower intervals that hold the truth as often as said."""
    apart, held, widths = [], [], []
    for seed in range(40):
        exponent = float(np.random.default_rng(seed).normal(0, 0.4))
        truth = 0.1 * 32**exponent
        grids = skewed_grids(seed, exponent)
        alone = predict([rung(one.sizes, one.rates, one.losses) for one in grids], {"steps": 3200})
        found = predict(scaling.together(grids), {"steps": 3200})
        apart.append([abs(math.log(one.rate / truth)) for one in (alone, found)])
        held.append(found.low < truth < found.high)
        widths.append([math.log(one.high / one.low) for one in (alone, found)])
    means, of_widths = np.mean(apart, axis=0), np.mean(widths, axis=0)
    assert means[1] < 0.9 * means[0]
    assert of_widths[1] < 0.75 * of_widths[0]
    assert np.mean(held) >= 0.9


def test_a_rung_without_a_bottom_is_left_out_of_the_common_fit():
    grids = skewed_grids(0, 0.3, noise=0.0)
    rates = 0.1 * 2.0 ** np.arange(5)
    edge = Grid(sizes={"steps": 50}, rates=rates, losses=[5, 4, 3, 2.5, 2.4], seeds=[0] * 5)
    found = scaling.together([edge, *grids])
    assert found[0].edge == "high"
    assert found[0] == rung(edge.sizes, edge.rates, edge.losses)
    for one, size in zip(found[1:], (100, 200, 400, 800), strict=True):
        assert one.rate == pytest.approx(0.1 * (size / 100) ** 0.3, rel=0.03)


def test_which_of_two_slopes_moves_the_rate_less():
    flat, steep = (
        scaling.Slope(mean=0.0, low=-0.2, high=0.2),
        scaling.Slope(mean=-0.8, low=-1, high=-0.6),
    )
    assert scaling.less_moved(flat, steep) > 0.99
    assert scaling.less_moved(steep, flat) < 0.01
    assert scaling.less_moved(flat, flat) == pytest.approx(0.5, abs=0.02)


def test_a_parabola_gives_its_bottom():
    found = grid({"steps": 100}, 0.1)
    assert found.rate == pytest.approx(0.1, rel=1e-6)
    assert found.curvature == pytest.approx(0.1, rel=1e-6)
    assert found.edge == ""


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.6])
def test_the_power_is_measured(exponent):
    found = predict(ladder(exponent), {"steps": 3200})
    truth = 0.1 * 32**exponent
    assert found.rate == pytest.approx(truth, rel=0.1)
    assert found.low < truth < found.high
    assert found.slopes["steps"].low < exponent < found.slopes["steps"].high
    assert not found.warnings


def test_two_scales_share_their_base_and_their_powers_multiply():
    steps = [100, 200, 400, 800]
    rungs = [grid({"steps": n, "hidden": 64}, 0.1 * (n / 800) ** -0.3) for n in steps]
    rungs += [grid({"steps": 800, "hidden": n}, 0.1 * (64 / n)) for n in (8, 16, 32)]
    found = predict(rungs, {"steps": 3200, "hidden": 256})
    assert found.rate == pytest.approx(0.1 * 4**-0.3 / 4, rel=0.15)
    assert found.unscaled == pytest.approx(0.1, rel=0.01)
    assert [one.sizes["hidden"] for one in scaling.ladder_of(rungs, "hidden")] == [8, 16, 32, 64]


@pytest.mark.longer
def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Noise of a fifth of what a factor of four costs moves the bottoms of parabolas."""
    held = []
    for seed in range(40):
        exponent = float(np.random.default_rng(seed).normal(0, 0.4))
        found = predict(ladder(exponent, noise=0.02, seed=seed), {"steps": 3200})
        held.append(found.low < 0.1 * 32**exponent < found.high)
    assert 0.8 <= np.mean(held) <= 1.0


def quadratic_losses(rates, steps):
    """Expected loss of SGD at constant rates on curvatures 1, 1/4, 1/9, … with noise."""
    h = np.arange(1, 101)[:, None] ** -2.0
    v = np.ones((100, len(rates)))
    for _ in range(steps):
        v = (1 - rates * h) ** 2 * v + rates**2 * 0.02 * h
    losses = (h * v).sum(axis=0) / 2
    return np.where(rates < 2, losses, math.nan)


@pytest.mark.longer
def test_horizons_of_sgd_on_a_noisy_quadratic():
    """Longer runs need lower rates; how much lower follows from the four shorter horizons."""

    def best_of(steps):
        fine = np.geomspace(0.005, 1.9, 100)
        return fine[np.nanargmin(quadratic_losses(fine, steps))]

    rungs = []
    for steps in (50, 100, 200, 400):
        rates = best_of(steps) * 2.0 ** np.arange(-2.3, 2.0)
        rungs.append(rung({"steps": steps}, rates, quadratic_losses(rates, steps)))
    found = predict(rungs, {"steps": 1600})
    assert found.rate == pytest.approx(best_of(1600), rel=0.4)
    assert found.low < best_of(1600) < found.high


def test_what_is_at_stake_is_by_the_curvature():
    found = predict(ladder(0.0), {"steps": 1600})
    half = max(math.log(found.high / found.rate), math.log(found.rate / found.low))
    assert found.at_stake == pytest.approx(0.05 * half**2, rel=0.01)


def test_when_not_to_trust_it():
    far = predict(ladder(0.0), {"steps": 100_000})
    assert any("125 times beyond" in one for one in far.warnings)
    rates = 0.1 * 2.0 ** np.arange(5)
    rising = rung({"steps": 100}, rates, [5, 4, 3, 2.5, 2.4])
    assert rising.edge == "high"
    broken = rung({"steps": 100}, rates, [3, 2.5, 2.4, 2.3, math.nan])
    assert broken.edge == "stability"
    (edge,) = [
        one for one in predict([*ladder(0.0), broken], {"steps": 800}).warnings if "di" in one
    ]
    assert "the next higher rate diverged" in edge
    up_and_down = [grid({"steps": n}, best) for n, best in ((1, 0.1), (2, 0.4), (4, 0.1))]
    assert any("up and down" in one for one in predict(up_and_down, {"steps": 8}).warnings)
    wide = predict(ladder(0.0, sizes=(100, 110)), {"steps": 1000})
    assert any("spans a factor" in one for one in wide.warnings)


def test_a_grid_that_mostly_diverged_is_refused():
    with pytest.raises(ValueError, match="at 4 rates or more, got 2 of 5"):
        rung({"steps": 1}, [0.1, 0.2, 0.4, 0.8, 1.6], [1, 2, math.nan, math.nan, math.nan])
