"""The answer in words: which rate, which schedule, how wide the good range is, what to try next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tuner.analysis import comparisons, ranking
from tuner.analysis.comparisons import ENOUGH, LEVEL, Edge, Family, GoodRates, Wins
from tuner.analysis.verdicts import (
    DIVERGING,
    OSCILLATING,
    PLATEAU,
    TOO_HIGH,
    TOO_LOW,
    Evidence,
    Verdict,
    counted,
)
from tuner.config import ParameterValue
from tuner.core.outcome import COMPLETED, DIVERGED, KINDS, PRUNED
from tuner.report.findings import Findings

WIDE, NARROW = 10.0, 3.0
"""Factors of a range of good rates: from the first on it is wide, below the second narrow."""


def answer(found: Findings) -> list[str]:
    """Give the paragraphs at the top of a report."""
    said = [best(found)]
    if found.best is not None and found.best.number in found.verdicts:
        said.append(found.verdicts[found.best.number].reason)
    said.extend(rates(one, optimizers=len(found.by_optimizer)) for one in found.by_optimizer)
    if not found.by_optimizer:
        said.append("No trial of these was good.")
    said.extend(wins(found, "schedule"))
    said.extend(wins(found, "optimizer"))
    if found.unfinished:
        said.append(f"{found.unfinished} trials still run or wait: this is as of now.")
    return said


def best(found: Findings) -> str:
    """Say which rate, schedule and optimiser are best; of their parameters those that varied."""
    one, metric = found.best, found.study.spec.study.metric
    if one is None or one.params is None or one.value is None:
        return "No trial has completed, so there is no best rate yet."
    varied = [name for name in found.varied() if name in one.params]
    own = [f"{name} {ranking.shown(one.params[name])}" for name in varied]
    choice = ranking.in_short(one.params).removeprefix("lr ")
    more = f" ({', '.join(own)})" if own else ""
    origin = ", imported" if one.imported else ""
    return f"Learning rate {choice}{more}: {metric} {one.value:.4g}, trial {one.number}{origin}."


def rates(found: GoodRates, *, optimizers: int = 1) -> str:
    """Say which rates of an optimiser are good, how wide their range is and how sure that is."""
    low, high = found.low, found.high
    many = f"{found.trials} of {found.of} trials"
    whose = f"With {found.name}, good" if optimizers > 1 else "Good"
    if found.factor == 1:
        return f"{whose} was one rate: {low.rate:.3g} ({many}). {_beyond(found)}"
    width = "wide" if found.factor >= WIDE else "narrow" if found.factor < NARROW else "fair"
    sure = f" In {LEVEL:.0%} of bootstrap resamples it holds at least {low.inner:.3g} to "
    inner = f"{sure}{high.inner:.3g}." if low.inner < high.inner else ""
    return (
        f"{whose} rates reach from {low.rate:.3g} to {high.rate:.3g}, a factor of "
        f"{found.factor:.3g}, which is {width} ({many}). {_beyond(found)}{inner}"
    )


def _beyond(found: GoodRates) -> str:
    below, above = found.low, found.high
    if below.beyond is not None and above.beyond is not None:
        both = f"{below.beyond:.3g} and {above.beyond:.3g}"
        return f"The next rates that were tried, {both}, are not good."
    if below.beyond is None and above.beyond is None and not below.unclear + above.unclear:
        return "No rate beyond was tried, so the range may be wider."
    return f"Below, {_next(below)}; above, {_next(above)}."


def _next(edge: Edge) -> str:
    if edge.beyond is not None:
        return f"{edge.beyond:.3g} is not good"
    return "it is unclear" if edge.unclear else "none was tried"


def wins(found: Findings, by: Family) -> Iterator[str]:
    """Say which schedule or optimiser wins at the horizon, by how much, and how sure that is."""
    told = found.schedules if by == "schedule" else found.optimizers
    for one in told:
        yield _win(one, found, by)
    if not told and len({getattr(one, by) for one in found.evidence}) > 1:
        yield (
            f"The {by}s cannot be compared: fewer than two of them have {ENOUGH} trials that ran "
            "to the horizon."
        )


def _win(one: Wins, found: Findings, by: str) -> str:
    metric = found.study.spec.study.metric
    interval = f"{one.by.low:.3g} to {one.by.high:.3g} at a level of {one.by.level:.0%}"
    basis = f"the best to be expected of {one.n} trials that ran to the horizon"
    if one.sure:
        return (
            f"The {by} {one.winner} beats {one.other} by {one.by.mean:.3g} of {metric} "
            f"({interval}), by {basis}."
        )
    return (
        f"The {by}s {one.winner} and {one.other} are not told apart: {one.winner} is ahead by "
        f"{one.by.mean:.3g} of {metric} ({interval}), by {basis}."
    )


def savings(found: Findings) -> str:
    """Say how many steps were not trained because trials were stopped."""
    horizon = found.study.spec.training.steps
    ended = [one for one in found.trials if one.state in KINDS and not one.imported]
    whole = horizon * len(ended)
    if not whole:
        return "No trial has ended."
    lines = []
    for kind, verb in ((PRUNED, "Pruning"), (DIVERGED, "The divergence guard")):
        saved = sum(horizon - one.steps for one in ended if one.state == kind)
        count = sum(one.state == kind for one in ended)
        if count:
            share = 100 * saved / whole
            trials = "1 trial" if count == 1 else f"{count} trials"
            lines.append(f"{verb} stopped {trials} and saved {saved} steps, {share:.0f} %.")
    return " ".join(lines) or "No trial was stopped: all ran to the end."


def verdicts(found: Findings) -> str:
    """Return how many trials had which verdict, for each optimizer."""
    return ranking.verdicts_in_words(found.verdicts)


def advice(found: Findings) -> list[str]:
    """Return what to try next, most useful first; none of it contradicts the ranking."""
    params = found.best.params if found.best is not None else None
    if found.best is None or params is None:
        return on_rates(None, found.evidence, found.verdicts)
    if found.best.imported and found.rates is None:
        near = f"near {float(params['lr']):.3g} with {params['optimizer']}"
        return [f"No trial of this version comes up to the imported best: try more rates {near}."]
    said = on_rates(params, found.evidence, found.verdicts)
    if found.rates is None:
        return said
    verdict = found.verdicts.get(found.best.number)
    labels = verdict.labels if verdict else ()
    if verdict and PLATEAU not in labels and OSCILLATING not in labels:
        said.append("The best trial was still improving at its end: more steps may gain.")
    if OSCILLATING in labels and len({one.schedule for one in found.evidence}) == 1:
        said.append("The best trial oscillates: a schedule that decays may gain.")
    if any(not one.sure for one in (*found.schedules, *found.optimizers)):
        said.append("What is not told apart above needs more trials, or fewer choices.")
    completed = sum(one.state == COMPLETED for one in found.trials)
    if completed > 1:
        said.append(
            "Each value is one run's. Whether the winner is really better than the next ones, new "
            "seeds tell: tuner confirm."
        )
    return said


def on_rates(
    best: Mapping[str, ParameterValue] | None,
    evidence: Sequence[Evidence],
    verdicts: Mapping[int, Verdict],
) -> list[str]:
    """Return which rates to try next with the optimizer of the best trial's parameters."""
    if best is None:
        return [_without_good(None, evidence, verdicts)]
    rate, own = float(best["lr"]), [one for one in evidence if one.optimizer == best["optimizer"]]
    ranges = comparisons.good_rates(own, verdicts, "optimizer")
    if not comparisons.good_rates(evidence, verdicts):
        return [_without_good(rate, own, verdicts)]
    return [line for one in ranges for line in _of_range(one, rate)]


def _without_good(
    best: float | None, evidence: Sequence[Evidence], verdicts: Mapping[int, Verdict]
) -> str:
    """Return what to try where no trial is good: beyond the best rate, if that is at an end."""
    kinds = counted({one.number: verdicts[one.number] for one in evidence})
    rates = [one.rate for one in evidence]
    high, low = kinds[TOO_HIGH] + kinds[DIVERGING], kinds[TOO_LOW]
    if high > low and best in (None, min(rates, default=None)):
        return "Nothing good was found and most rates were too high: try rates ten times lower."
    if low > high and best in (None, max(rates, default=None)):
        return "Nothing good was found and most rates were too low: try rates ten times higher."
    return "Nothing good was found, and why is unclear: let more trials run to the horizon."


def _of_range(found: GoodRates, best: float) -> Iterator[str]:
    low, high = found.low, found.high
    if high.beyond is None and best * NARROW > high.rate:
        yield _beyond_an_end(found.name, "high", "above", high)
    if low.beyond is None and best < low.rate * NARROW:
        yield _beyond_an_end(found.name, "low", "below", low)
    if high.beyond is not None and low.beyond is not None and found.factor > 1:
        span = f"{low.rate:.3g} to {high.rate:.3g}"
        yield f"A next search with {found.name} can keep to {span}."


def _beyond_an_end(name: str, end: str, where: str, edge: Edge) -> str:
    if edge.unclear:
        return (
            f"With {name} rates {where} {edge.rate:.3g} are unclear: let trials there run to the "
            "horizon."
        )
    return f"With {name} no rate was too {end}: try some {where} {edge.rate:.3g}."
