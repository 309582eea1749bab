"""Measure how the best learning rate moves with horizon, batch size or width; predict a larger run.

`plan` lists the rungs: the sizes of the study file, and for each scale some smaller ones. Each rung
is searched by small studies of a grid of rates, every rate under the same seeds, without a pruner.
A rung begins around the best rate of the one before and is extended where the best rate is at an
end. All studies have names that follow from the plan, so an interrupted one is resumed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tuner.analysis import scaling
from tuner.analysis.scaling import Prediction, Rung
from tuner.config import StudySpec, reading
from tuner.config.grid import Grid
from tuner.config.search import Listed
from tuner.config.study import UNITS
from tuner.config.values import Range, options
from tuner.core.errors import UsageError
from tuner.core.outcome import COMPLETED, DIVERGED
from tuner.operations import run
from tuner.report import markup, page
from tuner.report.charts import plot_builders
from tuner.report.charts.plot import MARKERS, SERIES, Axis, Key, Look, Plot, Points, Series
from tuner.report.charts.report_charts import Chart

RUNGS, FACTOR, SEEDS = 4, 2.0, 2
"""Sizes of a ladder, the factor between them, and trials of each rate."""
COARSE = math.sqrt(10)
"""Factor between the first rates of all, which cover the range of the study file."""
FINE = 2.0
"""Factor between the rates of a rung."""
REACH = 2
"""Rates on each side of the expected best."""
EXTENSIONS = 3
"""How often a rung is extended beyond an end, at most."""
EVALUATIONS = 10


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """What was measured and predicted."""

    prediction: Prediction
    metric: str
    rule: float  # the rate by the rule of thumb, from the best at the study file's sizes
    rules: Sequence[str]  # in words
    trials: int
    page: Path | None
    interrupted: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return what `tuner scale --json` prints."""
        found = self.prediction
        return {
            "target": dict(found.target),
            "rate": found.rate,
            "interval": [found.low, found.high],
            "level": scaling.LEVEL,
            "at_stake": found.at_stake,
            "unscaled": found.unscaled,
            "rule_of_thumb": self.rule,
            "slopes": {
                name: {"mean": one.mean, "interval": [one.low, one.high]}
                for name, one in found.slopes.items()
            },
            "rungs": [
                {
                    "sizes": dict(one.sizes),
                    "rate": one.rate,
                    "error": one.error,
                    "loss": one.loss,
                    "edge": one.edge or None,
                }
                for one in found.rungs
            ],
            "warnings": list(found.warnings),
            "trials": self.trials,
            "report": None if self.page is None else str(self.page),
        }


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal arrived before everything was trained."""


def targets(assignments: Sequence[str]) -> dict[str, float]:
    """Return the sizes of texts such as `steps=50000`. Raise `UsageError`."""
    found: dict[str, float] = {}
    for text in assignments:
        name, equals, number = text.partition("=")
        name = name.strip()
        try:
            size = float(number)
        except ValueError:
            size = math.nan
        if not (equals and name and size > 0 and math.isfinite(size)):
            raise UsageError(f"--to: expected SCALE=NUMBER such as steps=50000, got {text!r}")
        if name in found:
            raise UsageError(f"--to: expected each scale once, got {name!r} twice")
        found[name] = size
    if not found:
        raise UsageError("--to: expected at least one scale such as steps=50000")
    return found


def plan(
    spec: StudySpec, target: Mapping[str, float], *, rungs: int = RUNGS, factor: float = FACTOR
) -> list[dict[str, int]]:
    """Return the sizes of every rung, the cheapest first and the study file's own last.

    Raise `UsageError` if the file has no such scale, or other parameters than the rate vary.
    """
    varied = [
        one.name
        for one in spec.space.parameters()
        if one.name != "lr" and (isinstance(one.entry, Range) or len(options(one.entry)) > 1)
    ]
    if varied:
        raise UsageError(
            f"[space]: expected only lr to vary, got several values of {', '.join(varied)}; fix "
            "them in the file or with --set"
        )
    if spec.study.direction != "minimize":
        raise UsageError("[study] direction: expected minimize, since losses are fitted")
    base = {name: _size(spec, name) for name in target}
    found: list[dict[str, int]] = []
    for name in target:
        sizes = {max(round(base[name] / factor**step), 1) for step in range(1, rungs)}
        sizes -= {base[name]}
        if len(sizes) < 2:
            raise UsageError(f"{name} {base[name]}: expected a size from which two can be smaller")
        found += [{**base, name: size} for size in sorted(sizes)]
    return [*found, base]


def _size(spec: StudySpec, name: str) -> int:
    """Return a study file's own size of a scale."""
    value: object
    if name in UNITS:
        value = getattr(spec.training, name)
        if value is None:
            raise UsageError(f"--to: expected {spec.unit}, the unit of the study file, got {name}")
    elif name == "batch_size":
        value = spec.training.batch_size
    else:
        value = spec.workload.arguments.get(name)
        if value is None:
            raise UsageError(
                f"--to: expected {', '.join(UNITS)}, batch_size or one of [workload] arguments "
                f"({', '.join(spec.workload.arguments) or 'none'}), got {name!r}"
            )
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}: expected a whole number in the study file, got {value!r}")
    return value


def rung_spec(
    file: Path,
    overrides: Sequence[str],
    sizes: Mapping[str, int],
    rates: Sequence[float],
    part: int,
) -> StudySpec:
    """Return the study of some rates at the sizes of a rung. Raise `StudyFileError`."""
    spec = reading.load(file, overrides)
    own = "-".join(f"{name}{size}" for name, size in sizes.items())
    length = sizes.get(spec.unit, spec.length)
    changes = [
        f"study.name={json.dumps(f'{spec.study.name}-scale-{own}-{part}', ensure_ascii=False)}",
        f"space.lr={[float(f'{rate:.6g}') for rate in rates]}",
        f"training.evaluate_every={max(length // EVALUATIONS, 1)}",
        # whole tables: nothing of the file's search or budget applies
        'search={sampler="grid", pruner="none"}',
        f"budget={{trials={SEEDS * len(rates)}, decide=0}}",
    ]
    for name, size in sizes.items():
        table = "training" if name in (*UNITS, "batch_size") else "workload.arguments"
        changes.append(f"{table}.{name}={size}")
    changed = reading.load(file, [*overrides, *changes])
    grid = Grid(changed.space)
    cells = tuple(grid.cell(index) for index in range(len(grid)))
    sampler = Listed(name="listed", params=cells)
    search = changed.search.model_copy(update={"sampler": sampler})
    plain = {name: type(getattr(changed, name))() for name in ("retrain", "notify")}
    return changed.model_copy(update={"search": search, **plain})


Trained = Sequence[tuple[float, float]]
"""The rates of trials and their losses; nan: diverged or failed."""


def measure(
    sizes: Mapping[str, int],
    rates: Sequence[float],
    train: Callable[[Sequence[float], int], Trained],
) -> tuple[Rung, Trained, int]:
    """Return the best rate of a rung, its trials, and the number of its parts.

    `train` trains rates as a part of the rung. The grid is extended where the best is at an end.
    """
    trials: list[tuple[float, float]] = []
    part = 0
    for part in range(1, EXTENSIONS + 2):
        trials += train(rates, part)
        known = sorted({rate for rate, _ in trials})
        finite = [(rate, loss) for rate, loss in trials if math.isfinite(loss)]
        if part > EXTENSIONS:
            break
        best = min(finite, key=lambda one: one[1])[0] if finite else known[0]
        if not finite or best <= known[0]:
            rates = [known[0] / FINE**step for step in (2, 1)]
        elif best >= known[-1]:
            rates = [known[-1] * FINE**step for step in (1, 2)]
        elif len({rate for rate, _ in finite}) < scaling.FEWEST:
            rates = [known[0] / FINE**step for step in (2, 1)]
        else:
            break
    found = scaling.rung(sizes, [rate for rate, _ in trials], [loss for _, loss in trials])
    return found, trials, part


def around(rate: float) -> list[float]:
    """Return the rates with which a rung begins."""
    return [rate * FINE**step for step in range(-REACH, REACH + 1)]


def first_rates(spec: StudySpec) -> list[float]:
    """Return rates that cover those of the study file. Raise `UsageError` for a single one."""
    entry = spec.space.lr
    if isinstance(entry, Range):
        low, high = float(entry.low), float(entry.high)
    else:
        rates = [float(one) for one in entry] if isinstance(entry, tuple) else [float(entry)]
        low, high = min(rates), max(rates)
    if not high > low:
        raise UsageError("[space] lr: expected a range, got one rate")
    count = max(round(math.log(high / low, COARSE)) + 1, 3)
    return [float(rate) for rate in np.geomspace(low, high, count)]


def scale(
    file: Path,
    overrides: Sequence[str],
    target: Mapping[str, float],
    prefixes: Sequence[str],
    *,
    rungs: int = RUNGS,
    factor: float = FACTOR,
    workers: int = 1,
    to: Path | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> Scaled | None:
    """Train the rungs, predict the best rate at the target, and write a report.

    Return None if a signal arrived before; the same command resumes. Raise `UsageError` before
    anything is trained if the file has no such scale.
    """
    spec = reading.load(file, overrides)
    steps = plan(spec, target, rungs=rungs, factor=factor)
    coarse = first_rates(spec)

    def train(sizes: Mapping[str, int]) -> Callable[[Sequence[float], int], Trained]:
        return lambda rates, part: _trained(
            rung_spec(file, overrides, sizes, rates, part), prefixes, workers
        )

    found: list[Rung] = []
    trained: list[Trained] = []
    try:
        first = train(steps[0])(coarse, 0)
        guess = min(
            ((rate, loss) for rate, loss in first if math.isfinite(loss)),
            key=lambda one: one[1],
            default=(coarse[0], 0.0),
        )[0]
        for sizes in steps:
            try:
                one, trials, _ = measure(sizes, around(guess), train(sizes))
            except ValueError as error:
                raise UsageError(f"{scaling.in_words(sizes)}: {error}") from error
            announce(
                f"{scaling.in_words(sizes)}: best rate {one.rate:.3g}, "
                f"{spec.study.metric} {one.loss:.4g}"
            )
            found.append(one)
            trained.append(trials)
            guess = one.rate
    except Interrupted:
        return None
    prediction = scaling.predict(found, target)
    rules = list(_rules(spec, target))
    rule = prediction.unscaled * math.prod(change for change, _ in rules)
    result = Scaled(
        prediction=prediction,
        metric=spec.study.metric,
        rule=rule,
        rules=[words for _, words in rules],
        trials=len(first) + sum(map(len, trained)),
        page=None,
    )
    folder = to or Path(page.FOLDER) / page.folder_name([f"{spec.study.name}-scale"])
    written = _write(result, spec, trained, folder)
    return Scaled(**{**vars(result), "page": written})


def _trained(spec: StudySpec, prefixes: Sequence[str], workers: int) -> Trained:
    """Train a study and return the rates and losses of its trials."""
    ran = run.run(spec, prefixes, workers=workers)
    if ran.ended.interrupted:
        raise Interrupted
    return [
        (
            float((one.params or {})["lr"]),
            one.value if one.state == COMPLETED and one.value is not None else math.nan,
        )
        for one in ran.ledger.trials(ran.study.id)
        if one.params is not None and one.state in (COMPLETED, DIVERGED)
    ]


def _rules(spec: StudySpec, target: Mapping[str, float]) -> Iterator[tuple[float, str]]:
    """Yield for each scale by what factor the rule of thumb moves the rate, and the rule."""
    (optimizer,) = {one.name for one in spec.space.optimizer}
    for name, size in target.items():
        times = size / _size(spec, name)
        if name == "batch_size":
            power, words = (1.0, "in proportion") if optimizer == "sgd" else (0.5, "by the root")
            yield times**power, f"{words} to the batch size with {optimizer}"
        elif name in UNITS:
            yield 1.0, "unchanged for a longer run"
        elif optimizer == "sgd":
            yield 1.0, f"unchanged with {name} for sgd"
        else:
            yield 1 / times, f"inversely with {name} for {optimizer}, if it is a width"


def in_words(found: Scaled) -> list[str]:
    """Return the answer as sentences, the rate first."""
    one = found.prediction
    where = "in" if one.low <= found.rule <= one.high else "outside of"
    level = f"{100 * scaling.LEVEL:.0f} %"
    size = scaling.in_words(one.target)
    lines = [f"At {size} the best rate is expected at {one.rate:.3g}"]
    lines[0] += f" ({one.low:.3g} to {one.high:.3g} with a probability of {level})."
    lines += [
        f"It moves as {name} to the power {slope.mean:.2f} ({slope.low:.2f} to {slope.high:.2f})."
        for name, slope in one.slopes.items()
    ]
    lines.append(
        f"At an end of the interval {found.metric} would be about {one.at_stake:.2g} above the "
        "best, if losses depend on the rate as at the sizes that were tried."
    )
    lines.append(
        f"The best rate at the largest of those was {one.unscaled:.3g}. By the rules of thumb "
        f"({'; '.join(found.rules)}) it would be {found.rule:.3g}, which is {where} the interval."
    )
    lines += [f"Do not trust this without a check: {why}." for why in one.warnings]
    return lines


def _write(found: Scaled, spec: StudySpec, trained: Sequence[Trained], folder: Path) -> Path:
    """Write the report: the answer, values by rate at each size, and the fit of each scale."""
    one = found.prediction
    points = [
        Points(
            label=scaling.in_words(rung.sizes),
            rates=np.array([rate for rate, _ in trials]),
            values=np.array([loss for _, loss in trials]),
        )
        for rung, trials in zip(one.rungs, trained, strict=True)
    ]
    charts = [
        Chart(
            name="values",
            title="Value by learning rate",
            text=f"{found.metric} at the end of every trial, one series for each size.",
            plot=plot_builders.value_by_rate(points, ylabel=found.metric),
        ),
        *(
            Chart(
                name=f"scale{index}",
                title=f"Best rate by {name}",
                text="The best rate of each size, and the line with its 90 % interval.",
                plot=_fit_plot(one, name),
            )
            for index, name in enumerate(one.target)
        ),
    ]
    title = f"{spec.study.name}, scaled"
    body = [
        f"<h1>{escape(title)}</h1>",
        markup.paragraphs(in_words(found)),
        *(markup.figure(each.name, each.title, each.text) for each in charts),
    ]
    text = markup.page(title, body, {each.name: each.in_page() for each in charts})
    plots = {each.name: each.plot for each in charts if each.plot is not None}
    return page.write(folder / "report.html", text, plots).page


def _fit_plot(found: Prediction, name: str) -> Plot:
    """Return a plot of the best rates of a ladder and of the prediction up to the target."""
    ladder = scaling.ladder_of(found.rungs, name)
    largest = ladder[-1].sizes
    sizes = np.geomspace(ladder[0].sizes[name], max(found.target[name], largest[name]), 25)
    each = [scaling.predict(found.rungs, {**largest, name: size}) for size in sizes]
    line = Look(colour=SERIES[0], dash="-", width=1.8)
    edge = Look(colour=SERIES[0], dash=":", width=1.0)
    dots = Look(colour=SERIES[1], marker=MARKERS[0])
    lines = [("predicted", line, [one.rate for one in each])]
    lines += [
        ("90 % interval", edge, [getattr(one, end) for one in each]) for end in ("low", "high")
    ]
    series = [
        Series(label=label, x=sizes, y=np.array(rates), look=look, group=label)
        for label, look, rates in lines
    ]
    measured = Series(
        label="measured",
        x=np.array([one.sizes[name] for one in ladder]),
        y=np.array([one.rate for one in ladder]),
        look=dots,
        group="measured",
    )
    legend = [("measured", dots), ("predicted", line), ("90 % interval", edge)]
    return Plot(
        title="",
        x=Axis(title=name, log=True),
        y=Axis(title="best learning rate", log=True),
        series=[*series, measured],
        legend=[Key(label=label, look=look) for label, look in legend],
    )
