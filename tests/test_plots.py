"""What is drawn: lines, scales and labels; not pixels."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from tuner.core.outcome import COMPLETED, DIVERGED, KINDS, PRUNED, RUNNING
from tuner.report.charts import plot_builders
from tuner.report.charts.matplotlib_backend import draw, save
from tuner.report.charts.plot import OUTCOME_STYLES, POINTS, SERIES, Line, Points

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial"


def line(values: list[float], label: str = "one", outcome: str = COMPLETED) -> Line:
    return Line(label=label, x=np.arange(len(values)), y=np.array(values), outcome=outcome)


def only_axes(figure: Any) -> Any:
    (axes,) = figure.axes
    return axes


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def drawn(axes: Any, label: str) -> Any:
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return found


FALLING = [4.0, 1.0, 0.1, 0.01]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (FALLING, "log"),
        ([2.3, 2.0, 1.5], "linear"),  # not a decade
        ([1.0, 0.01, -0.5], "linear"),  # negative: nothing to take a logarithm of
        ([4.0, 0.001, 0.0], "log"),  # solved exactly at the end
        ([4.0, 0.0, 0.0, 0.0], "linear"),  # hardly anything but zeros
        ([1.0], "linear"),
        ([np.nan], "linear"),
        ([], "linear"),
    ],
)
@pytest.mark.parametrize("build", [plot_builders.loss_curves, plot_builders.comparison])
def test_the_axis_is_logarithmic_where_that_fits(build: Any, values: Any, scale: str) -> None:
    assert only_axes(draw(build([line(values)]))).get_yscale() == scale


def test_few_decades_are_written_out() -> None:
    axes = only_axes(draw(plot_builders.comparison([line([2.0, 1.0, 0.15])])))
    axes.figure.draw_without_rendering()
    shown = {text.get_text() for text in axes.get_yticklabels(which="both")}
    assert {"0.2", "0.5", "1", "2"} <= shown


def test_a_curve_ends_where_it_is_no_longer_finite_with_a_cross() -> None:
    figure = draw(
        plot_builders.comparison(
            [line([1.0, 5.0, np.inf, 2.0], outcome=DIVERGED), line(FALLING, "b")]
        )
    )
    axes = only_axes(figure)
    assert drawn(axes, "one").get_ydata().tolist() == [1.0, 5.0]
    crosses = [one for one in axes.lines if one.get_marker() == "x"]
    assert [one.get_xydata().tolist() for one in crosses] == [[[1.0, 5.0]]]
    assert legend(figure) == ["one (diverged)", "b"]


def test_an_explosion_does_not_flatten_the_others() -> None:
    exploded = line([4.0, 1e6, 1e30], "exploded", DIVERGED)
    axes = only_axes(draw(plot_builders.loss_curves([line(FALLING), exploded])))
    low, high = axes.get_ylim()
    assert low < 0.01
    assert high == pytest.approx(40.0)


def test_where_everything_exploded_the_explosion_is_shown() -> None:
    axes = only_axes(draw(plot_builders.loss_curves([line([4.0, 1e6, 1e30], outcome=DIVERGED)])))
    assert axes.get_ylim()[1] > 1e29


def test_the_best_stands_out_and_outcomes_are_counted() -> None:
    lines = [
        line(FALLING, "good"),
        line(FALLING, "other"),
        line([2.0, 1.9], "slow", PRUNED),
        line([2.0, 9e9], "wild", DIVERGED),
    ]
    figure = draw(plot_builders.loss_curves(lines, best=0, ylabel="val_loss", title="All of them"))
    axes = only_axes(figure)
    best = drawn(axes, "good")
    others = [drawn(axes, name) for name in ("other", "slow", "wild")]
    assert all(best.get_linewidth() > 2 * other.get_linewidth() for other in others)
    assert all(best.get_zorder() > other.get_zorder() for other in others)
    assert len({(one.get_color(), str(one.get_linestyle())) for one in others}) == 3
    assert legend(figure) == ["best: good", "completed (2)", "pruned (1)", "diverged (1)"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "val_loss")
    assert axes.get_title(loc="left") == "All of them"


def test_every_outcome_has_a_look_of_its_own() -> None:
    assert set(OUTCOME_STYLES) == {*KINDS, RUNNING}
    assert len(set(OUTCOME_STYLES.values())) == len(OUTCOME_STYLES)


def test_a_comparison_tells_series_apart_by_more_than_colour() -> None:
    lines = [line(FALLING, str(index)) for index in range(7)]
    axes = only_axes(draw(plot_builders.comparison(lines)))
    assert len({one.get_color() for one in axes.lines}) == 7
    assert len({str(one._dash_pattern) for one in axes.lines}) == 7
    assert "learning rate" in axes.get_title(loc="left")


@pytest.mark.parametrize("colour", SERIES)
def test_colours_stand_out_from_white(colour: str) -> None:
    red, green, blue = (int(to_hex(colour)[i : i + 2], 16) / 255 for i in (1, 3, 5))
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    assert 1.05 / (luminance + 0.05) > 2  # of 1 (none) to 21; lines are thick and labelled


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    values = np.linspace(5.0, 4.0, 100_000)
    axes = only_axes(draw(plot_builders.comparison([line(values.tolist())])))
    shown = drawn(axes, "one").get_ydata()
    assert len(shown) <= 2 * POINTS
    assert (shown[0], shown[-1]) == (5.0, 4.0)


def test_values_stand_over_their_rates_and_what_has_none_at_the_edge() -> None:
    broken = Points(
        label="sgd", rates=np.array([0.1, 0.01, 1.0]), values=np.array([0.5, 20.0, np.nan])
    )
    whole = Points(label="adamw", rates=np.array([0.001]), values=np.array([1.0]))
    figure = draw(plot_builders.value_by_rate([broken, whole], limit=0.3))
    axes = only_axes(figure)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert drawn(axes, "sgd").get_xydata().tolist() == [[0.01, 20.0], [0.1, 0.5]]
    assert drawn(axes, "sgd: no value").get_xdata().tolist() == [1.0]
    assert legend(figure) == ["sgd", "adamw", "no value: diverged or failed", "stable limit 0.3"]


@pytest.mark.parametrize(("joined", "style"), [(True, "-"), (False, "None")])
def test_points_are_joined_only_when_told(joined: bool, style: str) -> None:
    points = Points(label="sgd", rates=np.array([0.1, 0.2]), values=np.array([1.0, 2.0]))
    axes = only_axes(draw(plot_builders.value_by_rate([points], joined=joined)))
    assert drawn(axes, "sgd").get_linestyle() == style


def test_rates_begin_at_zero_on_a_linear_axis() -> None:
    axes = only_axes(draw(plot_builders.rates_as_applied([line([0.1, 0.05], "step")])))
    assert axes.get_ylim()[0] == 0
    assert axes.get_yscale() == "linear"
    assert drawn(axes, "step").get_drawstyle() == "steps-post"


def test_a_path_is_drawn_on_its_function_a_panel_each() -> None:
    path_on_function = runpy.run_path(str(TUTORIAL / "paths.py"))["path_on_function"]
    figure = path_on_function(
        np.square, [line([2.0, -1.0, 0.5], str(n)) for n in range(4)], formula="x²", span=(-3, 3)
    )
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [panel.get_title(loc="left") for panel in panels] == ["0", "1", "2", "3"]
    path = drawn(panels[0], "path")
    assert path.get_xydata().tolist() == [[2.0, 4.0], [-1.0, 1.0], [0.5, 0.25]]
    assert panels[0].get_xlim() == (-3.0, 3.0)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_saved_figure_is_small_and_the_same_each_time(tmp_path: Path, ending: str) -> None:
    lines = [line((np.geomspace(4, 0.01, 300) * k).tolist(), str(k)) for k in range(1, 31)]
    for name in ("a", "b"):
        save(draw(plot_builders.loss_curves(lines, best=3)), tmp_path / "new" / f"{name}.{ending}")
    first, second = (tmp_path / "new" / f"{name}.{ending}" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert 2_000 < first.stat().st_size < 300_000


@pytest.mark.slow
def test_matplotlib_waits_for_the_first_figure() -> None:
    code = "import sys, tuner.report.page; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
