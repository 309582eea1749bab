"""Measure how the best learning rate moves with horizon, batch size or width; predict a larger run.

`plan` lists the rungs: the sizes of the study file, and for each scale some smaller ones. Each rung
is searched by small studies of a grid of rates, every rate under the same seeds, without a pruner.
A rung begins around the best rate of the one before and is extended where the best rate is at an
end. All studies have names that follow from the plan, so an interrupted one is resumed.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tuner.analysis import batches, scaling
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
FAMILIES = {
    "sgd": "sgd",
    **dict.fromkeys(("adam", "adamw", "nadam", "rmsprop", "adagrad", "lion"), "adam"),
}
"""The family of `tuner.training.mup` of each optimizer that has one."""
CARRIES = 2.0
"""Factor by which a best rate may move and still carry over."""


@dataclass(frozen=True, kw_only=True)
class Critical:
    """The batch size up to which a larger batch saves about as many steps as it costs rows."""

    size: batches.Size
    loss: float  # to which the steps were counted
    steps: Mapping[int, float]  # by batch size

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data; None for an end that is not determined."""
        ends = (self.size.low, self.size.high)
        return {
            "rows": self.size.rows,
            "interval": [one if math.isfinite(one) else None for one in ends],
            "loss": self.loss,
            "steps": {str(size): steps for size, steps in self.steps.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """What was measured and predicted."""

    prediction: Prediction
    metric: str
    rule: float  # the rate by the rule of thumb, from the best at the study file's sizes
    rules: Sequence[str]  # in words
    trials: int
    page: Path | None
    adjusted: Mapping[str, float]  # the optimizer's settings at the target, where they change
    critical: Critical | None  # where the batch size is a scale

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
            "adjusted": dict(self.adjusted),
            "critical_batch_size": None if self.critical is None else self.critical.as_json(),
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
    *,
    adjust: bool = False,
) -> StudySpec:
    """Return the study of some rates at the sizes of a rung. Raise `StudyFileError`.

    With `adjust`, the optimizer's settings follow the batch size from the file's own.
    """
    spec = reading.load(file, overrides)
    own = "-".join(f"{name}{size}" for name, size in sizes.items())
    settings = adjusted_settings(spec, sizes) if adjust else {}
    own += "-adjusted" if settings else ""
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
    if settings:
        (optimizer,) = spec.space.optimizer
        own_settings = {**_settings(spec), **settings}
        pairs = {"name": optimizer.name, **own_settings}.items()
        table = ", ".join(f"{name}={json.dumps(value)}" for name, value in pairs)
        changes.append(f"space.optimizer={{{table}}}")
    changed = reading.load(file, [*overrides, *changes])
    grid = Grid(changed.space)
    cells = tuple(grid.cell(index) for index in range(len(grid)))
    sampler = Listed(name="listed", params=cells)
    search = changed.search.model_copy(update={"sampler": sampler})
    plain = {name: type(getattr(changed, name))() for name in ("retrain", "notify")}
    return changed.model_copy(update={"search": search, **plain})


def _settings(spec: StudySpec) -> dict[str, Any]:
    """Return the settings of a file's only optimizer."""
    (optimizer,) = spec.space.optimizer
    return {name: options(value)[0] for name, value in dict(optimizer).items() if name != "name"}


def _check_adjust(spec: StudySpec, target: Mapping[str, float]) -> None:
    """Raise `UsageError` if nothing could follow the batch size."""
    (optimizer,) = spec.space.optimizer
    if "batch_size" not in target:
        raise UsageError("--adjust: expected --to batch_size=…, which settings follow")
    if optimizer.name not in batches.ADJUSTED:
        raise UsageError(
            f"--adjust: expected one of {', '.join(batches.ADJUSTED)}, got {optimizer.name}"
        )


def adjusted_settings(spec: StudySpec, sizes: Mapping[str, float]) -> dict[str, float]:
    """Return the settings of the optimizer that change with a batch of another size."""
    if "batch_size" not in sizes or sizes["batch_size"] == _size(spec, "batch_size"):
        return {}
    (optimizer,) = spec.space.optimizer
    times = sizes["batch_size"] / _size(spec, "batch_size")
    return batches.adjusted(optimizer.name, _settings(spec), times)


class Tried(NamedTuple):
    """A trial of a rung."""

    rate: float
    loss: float  # nan: diverged or failed
    seed: int  # its number among those of the same rate
    curve: tuple[Sequence[float], Sequence[float]] = ((), ())  # steps and values


Trained = Sequence[Tried]


def measure(
    sizes: Mapping[str, int],
    rates: Sequence[float],
    train: Callable[[Sequence[float], int], Trained],
) -> tuple[Rung, Trained, int]:
    """Return the best rate of a rung, its trials, and the number of its parts.

    `train` trains rates as a part of the rung. The grid is extended where the best is at an end.
    """
    trials: list[Tried] = []
    part = 0
    for part in range(1, EXTENSIONS + 2):
        trials += train(rates, part)
        known = sorted({one.rate for one in trials})
        finite = [one for one in trials if math.isfinite(one.loss)]
        if part > EXTENSIONS:
            break
        best = min(finite, key=lambda one: one.loss).rate if finite else known[0]
        if not finite or best <= known[0]:
            rates = [known[0] / FINE**step for step in (2, 1)]
        elif best >= known[-1]:
            rates = [known[-1] * FINE**step for step in (1, 2)]
        elif len({one.rate for one in finite}) < scaling.FEWEST:
            rates = [known[0] / FINE**step for step in (2, 1)]
        else:
            break
    found = scaling.rung(sizes, [one.rate for one in trials], [one.loss for one in trials])
    return found, trials, part


def grid_of(sizes: Mapping[str, float], trials: Trained) -> scaling.Grid:
    """Return the trials of a rung, to be fitted with other rungs'."""
    return scaling.Grid(
        sizes=sizes,
        rates=[one.rate for one in trials],
        losses=[one.loss for one in trials],
        seeds=[one.seed for one in trials],
    )


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


def variants(text: str, overrides: Sequence[str], file: Path) -> dict[str, list[str]]:
    """Return the overrides of each value to compare, by a text such as `parametrization=a,b`.

    Raise `UsageError` if it is no argument with at least two values, or if a parametrization is
    one for another optimizer.
    """
    name, equals, values = text.partition("=")
    each = [one.strip() for one in values.split(",")]
    if not (
        equals and name.strip().isidentifier() and all(each) and len(set(each)) == len(each) > 1
    ):
        raise UsageError(
            "--compare: expected ARGUMENT=VALUE,VALUE such as parametrization=standard,mup-adam, "
            f"got {text!r}"
        )
    spec = reading.load(file, overrides)
    (optimizer, *_) = (one.name for one in spec.space.optimizer)
    family = FAMILIES.get(optimizer)
    fits = "no muP" if family is None else f"mup-{family}"
    if name.strip() == "parametrization" and any(
        one.startswith("mup-") and one != fits for one in each
    ):
        raise UsageError(f"--compare: expected {fits} for {optimizer}, got {values}")
    return {
        f"{name.strip()} {value}": [
            *overrides,
            f"study.name={json.dumps(f'{spec.study.name}-{value}', ensure_ascii=False)}",
            f"workload.arguments.{name.strip()}={_toml(value)}",
        ]
        for value in each
    }


def _toml(value: str) -> str:
    """Return a value as TOML: a number or true or false as it is, anything else as a string."""
    try:
        tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return json.dumps(value, ensure_ascii=False)
    return value


def scale(
    file: Path,
    overrides: Sequence[str],
    target: Mapping[str, float],
    prefixes: Sequence[str],
    *,
    rungs: int = RUNGS,
    factor: float = FACTOR,
    adjust: bool = False,
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
    if adjust:
        _check_adjust(spec, target)
    coarse = first_rates(spec)

    def train(sizes: Mapping[str, int]) -> Callable[[Sequence[float], int], Trained]:
        return lambda rates, part: _trained(
            rung_spec(file, overrides, sizes, rates, part, adjust=adjust), prefixes, workers
        )

    trained: list[Trained] = []
    try:
        first = train(steps[0])(coarse, 0)
        guess = min(
            (one for one in first if math.isfinite(one.loss)),
            key=lambda one: one.loss,
            default=Tried(coarse[0], 0.0, 0),
        ).rate
        for sizes in steps:
            try:
                one, trials, _ = measure(sizes, around(guess), train(sizes))
            except ValueError as error:
                raise UsageError(f"{scaling.in_words(sizes)}: {error}") from error
            announce(
                f"{scaling.in_words(sizes)}: best rate {one.rate:.3g}, "
                f"{spec.study.metric} {one.loss:.4g}"
            )
            trained.append(trials)
            guess = one.rate
    except Interrupted:
        return None
    grids = [grid_of(sizes, trials) for sizes, trials in zip(steps, trained, strict=True)]
    prediction = scaling.predict(scaling.together(grids), target)
    rules = list(_rules(spec, target, adjust=adjust))
    rule = prediction.unscaled * math.prod(change for change, _ in rules)
    result = Scaled(
        prediction=prediction,
        metric=spec.study.metric,
        rule=rule,
        rules=[words for _, words in rules],
        trials=len(first) + sum(map(len, trained)),
        page=None,
        adjusted=adjusted_settings(spec, target) if adjust else {},
        critical=_critical_batch_size(steps, trained) if "batch_size" in target else None,
    )
    folder = to or Path(page.FOLDER) / page.folder_name([f"{spec.study.name}-scale"])
    written = _write(result, spec, trained, folder)
    return Scaled(**{**vars(result), "page": written})


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The ladders under each value of an argument, such as the parametrization."""

    found: Mapping[str, Scaled]  # by the argument and its value, in words

    def as_json(self) -> dict[str, Any]:
        """Return what `tuner scale --compare --json` prints."""
        return {
            "compared": {label: one.as_json() for label, one in self.found.items()},
            "carries_over": {
                name: [label for label, one in self.found.items() if carries_over(one, name)]
                for name in next(iter(self.found.values())).prediction.target
            },
        }


def compare(
    file: Path,
    each: Mapping[str, Sequence[str]],
    target: Mapping[str, float],
    prefixes: Sequence[str],
    **more: Any,
) -> Compared | None:
    """Scale a study under each set of overrides, as `scale` does, which takes the rest."""
    found = {}
    for label, overrides in each.items():
        one = scale(file, overrides, target, prefixes, **more)
        if one is None:
            return None
        found[label] = one
    return Compared(found=found)


def moved(found: Scaled, name: str) -> tuple[float, float, float]:
    """Return by what factor the best rate moves from the smallest size of a scale to the target.

    And the ends of its interval.
    """
    one = found.prediction
    sizes = [rung.sizes[name] for rung in one.rungs]
    far = one.target[name] / min(sizes)
    slope = one.slopes[name]
    low, high = sorted((far**slope.low, far**slope.high))
    return far**slope.mean, low, high


def carries_over(found: Scaled, name: str) -> bool:
    """Return whether the best rate moves by less than a factor of two, by its whole interval."""
    _, low, high = moved(found, name)
    return low > 1 / CARRIES and high < CARRIES


def compared_in_words(compared: Compared) -> list[str]:
    """Return what moves the best rate less, and the lowest losses, as sentences."""
    lines = []
    (first, *_) = compared.found.values()
    for name, size in first.prediction.target.items():
        for label, one in compared.found.items():
            middle, low, high = moved(one, name)
            smallest = min(rung.sizes[name] for rung in one.prediction.rungs)
            lines.append(
                f"{label}: from {name} {smallest:g} to {size:g} the best rate moves by a factor of "
                f"{middle:.2g} ({low:.2g} to {high:.2g}), so it "
                f"{'carries over' if carries_over(one, name) else 'is not shown to carry over'}."
            )
        labels = sorted(
            compared.found,
            key=lambda label: abs(compared.found[label].prediction.slopes[name].mean),
        )
        slopes = [compared.found[label].prediction.slopes[name] for label in labels[:2]]
        chance = scaling.less_moved(*slopes)
        lines.append(
            f"With {name}, it moves less under {labels[0]} than under {labels[1]} with a "
            f"probability of {100 * chance:.0f} %."
        )
    largest = {label: one.prediction.rungs[-1] for label, one in compared.found.items()}
    losses = ", ".join(f"{one.loss:.4g} with {label}" for label, one in largest.items())
    sizes = scaling.in_words(next(iter(largest.values())).sizes)
    return [*lines, f"The lowest mean {first.metric} at {sizes}: {losses}."]


def _trained(spec: StudySpec, prefixes: Sequence[str], workers: int) -> Trained:
    """Train a study and return the rates and losses of its trials."""
    ran = run.run(spec, prefixes, workers=workers)
    if ran.ended.interrupted:
        raise Interrupted
    sampler = spec.search.sampler
    assert isinstance(sampler, Listed)
    trials = [one for one in ran.ledger.trials(ran.study.id) if one.params is not None]
    ended = [one for one in trials if one.state in (COMPLETED, DIVERGED)]
    curves = ran.ledger.curves([one.id for one in ended])
    found = []
    for one in ended:
        curve = curves.get(one.id)
        values = () if curve is None else curve.metrics[spec.study.metric].tolist()
        found.append(
            Tried(
                rate=float((one.params or {})["lr"]),
                loss=one.value if one.state == COMPLETED and one.value is not None else math.nan,
                seed=sampler.round(one.number),
                curve=(() if curve is None else curve.eval_steps.tolist(), values),
            )
        )
    return found


def _critical_batch_size(
    steps: Sequence[Mapping[str, int]], trained: Sequence[Trained]
) -> Critical | None:
    """Return the critical batch size by the steps of each batch size to a loss that all reach.

    A batch size counts with the rate that reaches it first, on average over seeds. None if fewer
    than three reach it.
    """
    largest = steps[-1]
    ladder = {
        sizes["batch_size"]: trials
        for sizes, trials in zip(steps, trained, strict=True)
        if all(sizes[name] == largest[name] for name in sizes if name != "batch_size")
    }
    curves: dict[int, dict[float, list[tuple[Sequence[float], Sequence[float]]]]] = {}
    for size, trials in ladder.items():
        for one in trials:
            curves.setdefault(size, {}).setdefault(one.rate, []).append(one.curve)
    # the lowest loss that all seeds of some rate reach, with every batch size
    loss = max(
        min(max(min(values, default=math.inf) for _, values in each) for each in rates.values())
        for rates in curves.values()
    )
    found: dict[int, float] = {}
    for size, rates in curves.items():
        fastest = min(
            sum(batches.steps_to(loss, *one) for one in each) / len(each) for each in rates.values()
        )
        if 0 < fastest < math.inf:
            found[size] = fastest
    if len(found) < 3:
        return None
    rows = batches.critical_batch_size(list(found), list(found.values()))
    return Critical(size=rows, loss=loss, steps=found)


def _rules(
    spec: StudySpec, target: Mapping[str, float], *, adjust: bool
) -> Iterator[tuple[float, str]]:
    """Yield for each scale by what factor the rule of thumb moves the rate, and the rule."""
    (optimizer,) = {one.name for one in spec.space.optimizer}
    is_mup = str(spec.workload.arguments.get("parametrization", "")).startswith("mup-")
    for name, size in target.items():
        times = size / _size(spec, name)
        if name == "batch_size":
            words = "in proportion to" if optimizer == "sgd" else "by the root of"
            settings = _settings(spec) if adjust else {"momentum": 0.0}
            yield (
                batches.rate_factor(optimizer, settings, times),
                f"{words} the batch size with {optimizer}",
            )
        elif name in UNITS:
            yield 1.0, "unchanged for a longer run"
        elif is_mup:
            yield 1.0, f"unchanged with {name} under muP"
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
    if found.adjusted:
        settings = ", ".join(f"{name} {value:.4g}" for name, value in found.adjusted.items())
        lines.append(f"It is the rate with {settings}, which follow the batch size.")
    if found.critical is not None:
        lines.append(_critical_in_words(found.critical, found.metric))
    lines += [f"Do not trust this without a check: {why}." for why in one.warnings]
    return lines


def _critical_in_words(found: Critical, metric: str) -> str:
    """Return the critical batch size as a sentence."""
    steps = ", ".join(f"{steps:.3g} with {size}" for size, steps in found.steps.items())
    size = found.size
    high = f"{size.high:.3g}" if math.isfinite(size.high) else "not bounded by these sizes"
    return (
        f"The critical batch size is about {size.rows:.3g} ({size.low:.3g} to {high}), by the "
        f"steps to a {metric} of {found.loss:.3g}: {steps}. A larger batch saves few steps."
    )


def _write(found: Scaled, spec: StudySpec, trained: Sequence[Trained], folder: Path) -> Path:
    """Write the report: the answer, values by rate at each size, and the fit of each scale."""
    one = found.prediction
    points = [
        Points(
            label=scaling.in_words(rung.sizes),
            rates=np.array([each.rate for each in trials]),
            values=np.array([each.loss for each in trials]),
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
