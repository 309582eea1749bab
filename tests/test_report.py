"""The report: what it says, what people's text can do to its page, and its pictures drawn twice."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import completed, diverged, draw, pruned, rows, spec
from hypothesis import given
from hypothesis import strategies as st
from processes import prepare
from rich.console import Console
from team import mlflow_server
from test_bulk import ENVIRONMENT, WORKLOAD

from tuner.analysis.verdicts import GOOD_RATE
from tuner.core.errors import NotFoundError, UsageError
from tuner.core.outcome import DIVERGED, Outcome
from tuner.ledger import Ledger, StudyRecord, database
from tuner.operations import report
from tuner.report import comparison, markup, page, sentences
from tuner.report.charts import matplotlib_backend, optuna_plots, plot_builders, plotly_backend
from tuner.report.charts.plot import Line, Mark, Points, thinned
from tuner.report.findings import gather
from tuner.report.tables import ranking_table
from tuner.tracking.recorder import Recorder

BOTH = ["constant", "cosine"]
NASTY = "</script><script>alert(1)</script> <img src=x onerror=alert(2)> \"'&$x$ é 🦊"


def trial(
    ledger: Ledger,
    study: StudyRecord,
    lr: float,
    losses: np.ndarray,
    outcome: Any = None,
    **more: Any,
) -> None:
    """A trial whose val_loss is its loss at each tenth step."""
    claimed = ledger.claim(study.id, "worker", ENVIRONMENT)
    assert claimed is not None
    draw(ledger, claimed, lr=lr, **more)
    chunk = rows(0, len(losses), losses=losses.tolist())
    chunk.metrics["val_loss"][:] = losses[np.minimum(chunk.eval_steps, len(losses) - 1)]
    ledger.finish(claimed.lease, outcome or completed(float(losses[-1])), chunk=chunk)


def falling(share: float, steps: int = 100) -> np.ndarray:
    """A loss from 2 that comes so far towards 0.1."""
    return 2.0 - share * 1.9 * (1 - 0.95 ** np.arange(steps)) / (1 - 0.95**99)


def fill(ledger: Ledger, name: str = "small") -> StudyRecord:
    """A study with every verdict and two schedules."""
    study, _ = ledger.submit(
        spec(study={"name": name, "description": NASTY}, space={"schedule": BOTH}),
        limit=30,
        workload=WORKLOAD,
    )
    for n, share in enumerate([1.0, 0.99, 0.98, 0.97, 0.96]):
        trial(ledger, study, 0.1 * 1.5**n, falling(share))
        trial(ledger, study, 0.1 * 1.5**n, falling(share - 0.05), schedule="cosine")
    trial(ledger, study, 0.001, falling(0.1))
    trial(ledger, study, 0.9, falling(0.2)[:40], pruned(1.7))
    spoken = Outcome(kind=DIVERGED, reason=NASTY, stopped_step=3)
    trial(ledger, study, 1.0, np.array([2.0, 9.0, 80.0, np.nan]), spoken)
    return study


def stored_figures(html: str) -> dict[str, Any]:
    """Read the figures as a browser would: from the element to its first end."""
    begin = '<script id="figures" type="application/json">'
    found = json.loads(html.partition(begin)[2].partition("</script>")[0])["figures"]
    assert isinstance(found, dict)
    return found


# --- words


@pytest.mark.longer
def test_the_answer_is_in_words(ledger: Ledger) -> None:
    found = gather(ledger, fill(ledger))
    lines = sentences.answer(found)
    assert lines[0] == "Learning rate 0.1, constant, sgd: val_loss 0.1, trial 0."
    assert "Good rates reach from 0.1 to 0.506, a factor of 5.06" in lines[2]
    assert "The nearest tried rates outside, 0.001 and 0.9, are not good." in lines[2]
    (schedule,) = (line for line in lines if "schedule" in line)
    assert re.search(r"The schedules? constant (beats|and) ", schedule)
    assert "by the expected best of 5 trials that ran to the horizon" in schedule
    assert sentences.savings(found) == (
        "Pruning stopped 1 trial and saved 60 steps, 5 %. "
        "The divergence guard stopped 1 trial and saved 96 steps, 7 %."
    )
    assert "The next search with sgd can be limited to 0.1 to 0.506." in sentences.advice(found)


@pytest.mark.slow
def test_a_study_without_a_completed_trial_says_what_to_try(ledger: Ledger, tmp_path: Path) -> None:
    study, _ = ledger.submit(spec(), limit=5, workload=WORKLOAD)
    empty = gather(ledger, study)
    assert sentences.answer(empty)[0] == "No trial has completed, so there is no best rate yet."
    assert page.write_study(empty, tmp_path).page.is_file()
    trial(ledger, study, 1.0, np.array([2.0, np.inf]), diverged(1))
    found = gather(ledger, study)
    assert sentences.advice(found)[0].endswith("too high: try rates ten times lower.")
    assert page.write_study(found, tmp_path).page.is_file()


@pytest.mark.slow
def test_a_robust_schedule_and_a_fragile_one_are_compared(ledger: Ledger, tmp_path: Path) -> None:
    study, _ = ledger.submit(spec(space={"schedule": BOTH}), limit=30, workload=WORKLOAD)
    for lr in np.geomspace(0.01, 1.0, 9):
        away = abs(float(np.log10(lr / 0.1)))
        trial(ledger, study, lr, falling(1 - 0.1 * away), schedule="cosine")
        trial(ledger, study, lr, falling(1 - 0.9 * away))
    found = gather(ledger, study)
    assert [one.schedule for one in found.sensitivities] == ["cosine", "constant"]
    (line,) = sentences.sensitivity(found)
    assert "with sgd and cosine" in line.partition(", and ")[0]
    assert "Sensitivity to the rate" in page.write_study(found, tmp_path).page.read_text()


@pytest.mark.longer
def test_what_tuning_gained_over_optimizers_that_need_no_schedule(ledger: Ledger) -> None:
    names = ["sgd", "prodigy", "schedule_free_sgd"]
    study, _ = ledger.submit(spec(space={"optimizer": names}), limit=5, workload=WORKLOAD)
    trial(ledger, study, 1.0, falling(0.5), optimizer="prodigy")
    assert sentences.baseline(gather(ledger, study)) == []
    trial(ledger, study, 0.1, falling(0.4))
    (worse,) = sentences.baseline(gather(ledger, study))
    assert worse == (
        "Tuning gained nothing over the best baseline, prodigy (trial 0, 1.05), the best of those "
        "that need no schedule or no rate (prodigy): the best other trial, 1, has 1.24."
    )
    trial(ledger, study, 0.2, falling(0.9))
    trial(ledger, study, 0.2, falling(0.8), optimizer="schedule_free_sgd")
    found = gather(ledger, study)
    (better,) = sentences.baseline(found)
    assert better == (
        "Tuning gained 0.19 of val_loss over the best baseline, schedule_free_sgd (trial 3, 0.48), "
        "the best of those that need no schedule or no rate (prodigy, schedule_free_sgd): the best "
        "other trial, 2, has 0.29."
    )
    assert better in sentences.answer(found)


@pytest.mark.slow
def test_the_ranking_says_why_a_pruned_trial_with_a_better_value_stands_below(
    ledger: Ledger, tmp_path: Path
) -> None:
    study, _ = ledger.submit(spec(), limit=5, workload=WORKLOAD)
    trial(ledger, study, 0.1, falling(0.5))
    trial(ledger, study, 0.2, falling(0.4)[:40], pruned(1.7))

    def shown() -> tuple[str, str]:
        trials = ledger.trials(study.id)
        curves = {one.number: ledger.curve(one.id) for one in trials}
        table = Console(width=120, record=True, file=io.StringIO())
        table.print(ranking_table(study, trials, curves))
        whole = page.write_study(gather(ledger, study), tmp_path).page.read_text()
        return " ".join(table.export_text().split()), whole

    assert all("A pruned trial ranks below" not in text for text in shown())
    trial(ledger, study, 0.3, falling(0.9)[:40], pruned(0.5))
    assert all("A pruned trial ranks below every completed one" in text for text in shown())


# --- the page


class Seen(HTMLParser):
    """Elements and attributes as a parser of HTML finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.slow
def test_peoples_text_stays_text(ledger: Ledger, tmp_path: Path) -> None:
    study = fill(ledger, NASTY[:150])
    written = page.write_study(gather(ledger, study), tmp_path / "a")
    both = page.write_studies([gather(ledger, study)] * 2, tmp_path / "b")
    compared = comparison.write(
        comparison.choose(ledger, [f"{study.name}:all"]), "train_loss", "step", tmp_path / "c"
    )
    for file in (written.page, both.page, compared.page):
        html = file.read_text()
        seen = Seen()
        seen.feed(html.replace(plotly_backend.library(), ""))
        assert [tag for tag, _ in seen.elements].count("script") == 3
        assert "img" not in {tag for tag, _ in seen.elements}
        assert not any(name.startswith("on") for _, attrs in seen.elements for name in attrs)
        assert study.title in seen.text
        assert NASTY in seen.text, "the reason of the one that diverged"
        assert stored_figures(html)


@pytest.mark.longer
@given(st.dictionaries(st.text(), st.lists(st.text(), max_size=3), max_size=3))
def test_json_in_a_script_ends_no_script(value: Any) -> None:
    written = markup.in_script(value)
    assert not set("<>&") & set(written)
    assert json.loads(written) == value


@pytest.mark.longer
@given(st.lists(st.text(min_size=1, max_size=250), min_size=1, max_size=3))
def test_folders_may_be_named_after_any_study(titles: list[str]) -> None:
    name = page.folder_name(titles)
    assert re.fullmatch(r"[A-Za-z0-9_+.-]{1,90}", name)
    assert not name.startswith(".")


def test_folders_of_different_studies_differ() -> None:
    names = ["a b", "a/b", "a_b", "é", "🦊", "a" * 200, "a" * 199]
    assert len({page.folder_name([one]) for one in names}) == len(names)
    assert page.folder_name(["house-prices"]) == "house-prices"


# --- one picture, two backends


def unpack(value: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["bdata"]), dtype=f"<{value['dtype']}")


@pytest.mark.longer
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30))
def test_numbers_reach_the_page(values: list[float]) -> None:
    array = np.array(values, dtype=float)
    expected = np.where(np.isfinite(array), array, np.nan)
    assert unpack(plotly_backend.packed(array)) == pytest.approx(expected, rel=1e-6, nan_ok=True)


@pytest.mark.longer
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 50))
def test_thinning_keeps_ends_and_extremes(values: list[float], points: int) -> None:
    y = np.array(values)
    kept = thinned(y, points)
    assert len(kept) <= max(points, 2) + 2
    assert (np.diff(kept) > 0).all()
    assert {0, len(y) - 1} <= set(kept.tolist())
    assert (y[kept].min(), y[kept].max()) == (y.min(), y.max())


def curves(many: int) -> list[Line]:
    return [
        Line(
            label=f"trial {n}",
            x=np.arange(50),
            y=np.geomspace(2.0, 0.01, 50) * (1 + 0.1 * n),
            outcome=DIVERGED if n == 2 else "completed",
            verdict=GOOD_RATE,
            trial=n,
        )
        for n in range(many)
    ]


PICTURES = {
    "loss_curves": lambda: plot_builders.loss_curves(curves(5), best=0, by="verdict"),
    "comparison": lambda: plot_builders.comparison(curves(4)),
    "rates_as_applied": lambda: plot_builders.rates_as_applied(curves(3)),
    "value_by_rate": lambda: plot_builders.value_by_rate(
        [Points(label="a", rates=np.array([0.1, 1.0]), values=np.array([1.0, 20.0]))],
        marks=[Mark(label="stable", low=0.2, high=0.3)],
    ),
    "bars": lambda: plot_builders.bars({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0, "y": 0.0}}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_both_backends_draw_the_same_picture(name: str) -> None:
    picture = PICTURES[name]()
    drawn, shown = matplotlib_backend.draw(picture), plotly_backend.figure(picture, points=10_000)
    (axes,) = drawn.axes
    legend = [text.get_text() for text in drawn.legends[0].get_texts()]
    names = [one["name"] for one in shown["data"] if one["showlegend"]]
    assert set(names) == set(legend) - {mark.label for mark in picture.marks}
    for axis, own in (("x", axes.get_xscale()), ("y", axes.get_yscale())):
        assert shown["layout"][f"{axis}axis"]["type"] == own
    in_page = [unpack(one["y"]) for one in shown["data"]]
    lines = axes.lines[: len(picture.series)]  # and after them the marks
    assert sorted(np.concatenate(in_page)[~np.isnan(np.concatenate(in_page))]) == pytest.approx(
        sorted(y for line in lines for y in line.get_ydata() if np.isfinite(y))
    )
    assert len(shown["layout"]["shapes"]) == len(picture.marks)


@pytest.mark.slow
def test_an_overview_is_small_however_many_trials() -> None:
    figure = plotly_backend.figure(
        plot_builders.loss_curves(curves(3) * 1000, by="verdict"), points=60_000
    )
    assert len(figure["data"]) == 2, "one trace for the curves, one for the crosses"
    assert len(json.dumps(figure)) < 2_000_000
    (trace, _) = figure["data"]
    assert set(unpack(trace["customdata"])) == {-1, 0, 1, 2}


# --- what matters


@pytest.mark.longer
def test_what_decides_matters_and_what_is_fixed_is_left_out(ledger: Ledger) -> None:
    study, _ = ledger.submit(
        spec(space={"lr": {"low": 1e-4, "high": 1.0}, "schedule": ["constant", "cosine"]}),
        limit=40,
        workload=WORKLOAD,
    )
    rng = np.random.default_rng(0)
    for n in range(30):
        lr = float(10 ** rng.uniform(-4, 0))
        loss = np.full(2, (np.log10(lr) + 2) ** 2)
        trial(ledger, study, lr, loss, schedule="cosine" if n % 2 else "constant")
    found = optuna_plots.importances(optuna_plots.in_memory(study, ledger.trials(study.id)))
    assert set(found) == {"lr", "schedule"}
    assert found["lr"] > 0.9
    assert optuna_plots.importances(optuna_plots.in_memory(study, [])) == {}


# --- comparing


@pytest.mark.longer
@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (["small:3"], [3]),
        (["small:0-2", "small:2", "small:5"], [0, 1, 2, 5]),
        (["small:best"], [0]),
        (["small:all"], list(range(13))),
    ],
)
def test_trials_are_chosen(ledger: Ledger, wanted: list[str], numbers: list[int]) -> None:
    fill(ledger)
    assert [one.trial.number for one in comparison.choose(ledger, wanted)] == numbers


@pytest.mark.longer
@pytest.mark.parametrize(
    ("wanted", "error", "says"),
    [
        ("small", UsageError, "expected STUDY:TRIAL"),
        ("small:last", UsageError, "got 'small:last'"),
        ("small:13", NotFoundError, "has no trial 13; its trials: 0 to 12"),
        ("other:1", NotFoundError, "there is no study 'other'"),
    ],
)
def test_what_cannot_be_chosen(ledger: Ledger, wanted: str, error: Any, says: str) -> None:
    fill(ledger)
    with pytest.raises(error, match=re.escape(says)):
        comparison.choose(ledger, [wanted])


@pytest.mark.longer
@pytest.mark.parametrize(
    ("by", "ends"), [("step", [99, 39]), ("time", [99.0, 39.0]), ("fraction", [0.99, 0.39])]
)
def test_curves_are_aligned(ledger: Ledger, by: Any, ends: list[float]) -> None:
    fill(ledger)
    chosen = comparison.choose(ledger, ["small:0", "small:11"])
    lines = comparison.lines(chosen, "train_loss", by)
    assert [one.x[0] for one in lines] == [0, 0]
    assert [one.x[-1] for one in lines] == pytest.approx(ends)
    with pytest.raises(UsageError, match="they have: grad_norm, lr, train_loss, val_loss"):
        comparison.lines(chosen, "accuracy", by)


@pytest.mark.longer
@given(st.lists(st.floats(-100, 100), min_size=1), st.sampled_from([1.0, -1.0]))
def test_the_best_so_far_never_gets_worse(values: list[float], sign: float) -> None:
    line = Line(label="a", x=np.arange(len(values)), y=np.array(values))
    best = comparison.best_so_far(line, sign).y
    assert (np.diff(sign * best) <= 0).all()
    assert best[-1] == (min(values) if sign > 0 else max(values))


@pytest.mark.slow
def test_a_comparison_has_every_point(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    chosen = comparison.choose(ledger, ["small:all"])
    written = comparison.write(chosen, "train_loss", "step", tmp_path)
    (figure,) = stored_figures(written.page.read_text()).values()
    measured = [one for one in figure["data"] if one["of"] == "measured" and one["mode"] == "lines"]
    assert sum(len(unpack(one["y"])) for one in measured) == 11 * 100 + 40 + 3
    assert figure["full"]


@pytest.mark.longer
def test_many_trials_are_read_by_a_few_statements(ledger: Ledger) -> None:
    from sqlalchemy import event

    fill(ledger)
    counted = []
    event.listen(
        ledger.engine,
        "before_cursor_execute",
        lambda *args: counted.append(args[2]) if args[2].startswith("SELECT") else None,
    )
    per_choice = []
    for wanted in (["small:0"], ["small:all"]):
        counted.clear()
        comparison.choose(ledger, wanted)
        per_choice.append(len(counted))
    assert per_choice[0] == per_choice[1]


# --- beside the runs


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("served", [False, True])
def test_the_report_is_beside_the_parent_run_once(tmp_path: Path, served: bool) -> None:
    prepare(tmp_path)
    if not served:
        put_twice(tmp_path, {})
        return
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path}/mlflow.db") as url:
        put_twice(tmp_path, {"MLFLOW_TRACKING_URI": url})


def put_twice(folder: Path, env: dict[str, str]) -> None:
    places = database.addresses(env, folder)
    ledger = Ledger(database.ledger_engine(places.ledger))
    study = fill(ledger)
    early = report.report(ledger, [study], places, to=folder / "out")
    assert (early.in_mlflow, early.problem) == (False, None), "there is no run yet"
    recorder = Recorder(ledger.engine, places)
    recorder.publish()
    recorder.close()
    for _ in range(2):
        done = report.report(ledger, [study], places, to=folder / "out")
        assert done.in_mlflow
    client = database.tracking_client(places)
    (parent,) = client.search_runs(
        [client.get_experiment_by_name(study.title).experiment_id],
        filter_string="tags.`tuner.trial` = 'study'",
    )
    kept = client.list_artifacts(parent.info.run_id, "report")
    assert {Path(one.path).name: one.file_size for one in kept} == {
        file.name: file.stat().st_size for file in done.written.files
    }
    html = done.written.page.read_text()
    own = env.get("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert html.count(f'href="{own}/#/experiments/{parent.info.experiment_id}/runs/') == 13
    ledger.engine.dispose()
