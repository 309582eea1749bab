"""The text of a report: the best rate and schedule, the range of good rates, what to try next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

import numpy as np

from tuner.analysis import comparisons, deciding, front, ranking
from tuner.analysis.comparisons import ENOUGH, LEVEL, Comparison, Edge, Family, GoodRates
from tuner.analysis.effects import Effect
from tuner.analysis.verdicts import (
    DIVERGING,
    OSCILLATING,
    PLATEAU,
    TOO_HIGH,
    TOO_LOW,
    Evidence,
    Verdict,
    count_by_verdict,
)
from tuner.config import ParameterValue
from tuner.config.optimizers import NEED_NO_SCHEDULE
from tuner.core.outcome import COMPLETED, DIVERGED, KINDS, PRUNED
from tuner.report import judging
from tuner.report.findings import Findings

WIDE, NARROW = 10.0, 3.0
"""A range of good rates is wide from the first factor on, and narrow below the second."""


def answer(found: Findings) -> list[str]:
    """Return the paragraphs at the top of a report."""
    lines = [best(found), *front.in_words(found.study, found.trials)]
    if found.best is not None and found.best.number in found.verdicts:
        lines.append(found.verdicts[found.best.number].reason)
    lines.extend(rates(one, optimizers=len(found.by_optimizer)) for one in found.by_optimizer)
    if not found.by_optimizer:
        lines.append("No trial was good.")
    lines.extend(sensitivity(found))
    lines.extend(baseline(found))
    lines.extend(decision(found))
    for family in ("schedule", "optimizer"):
        if family not in decided(found):
            lines.extend(comparisons_of(found, family))
    lines.extend(map(effect, found.effects))
    if found.unfinished:
        lines.append(f"{found.unfinished} trials are still running or waiting: results may change.")
    return lines


def baseline(found: Findings) -> list[str]:
    """Return a sentence of what tuning gained over optimizers that need no schedule or no rate."""
    study = found.study.spec.study
    sign = 1.0 if study.direction == "minimize" else -1.0
    ended = [
        (sign * one.value, one, str((one.params or {})["optimizer"]))
        for one in found.trials
        if one.state == COMPLETED and one.value is not None
        if not one.imported and not one.violation
    ]
    free = [one for one in ended if one[2] in NEED_NO_SCHEDULE]
    tuned = [one for one in ended if one[2] not in NEED_NO_SCHEDULE]
    if study.objectives or not free or not tuned:
        return []
    (lowest, baseline, name), (reached, best, _) = (
        min(one, key=itemgetter(0)) for one in (free, tuned)
    )
    gained = f"{lowest - reached:.2g} of {study.metric}" if reached < lowest else "nothing"
    names = ", ".join(sorted({one[2] for one in free}))
    line = (
        f"Tuning gained {gained} over the best baseline, {name} (trial {baseline.number}, "
        f"{baseline.value:.4g}), the best of those that need no schedule or no rate ({names}): "
        f"the best other trial, {best.number}, has {best.value:.4g}."
    )
    return [line]


def decision(found: Findings) -> list[str]:
    """Return the sentences of what the study has decided with new seeds, if anything."""
    return [] if found.decision is None else deciding.in_words(found.decision)


def decided(found: Findings) -> set[str]:
    """Return the questions that new seeds have answered, such as "schedule"."""
    answers = () if found.decision is None else found.decision.race.answers
    return {one.question.name for one in answers if one.rounds}


def best(found: Findings) -> str:
    """Return a sentence about the best trial, with those of its parameters that were varied."""
    one, metric = found.best, found.study.spec.study.metric
    if one is None or one.params is None or one.value is None:
        return "No trial has completed, so there is no best rate yet."
    if one.infeasible:
        return ranking.best_in_words(found.study, one)
    # settings and arguments are in short already
    varied = [name for name in found.varied() if name in one.params and "." in name]
    own = [f"{name} {ranking.format_value(one.params[name])}" for name in varied]
    choice = ranking.in_short(one.params).removeprefix("lr ")
    more = f" ({', '.join(own)})" if own else ""
    origin = ", imported" if one.imported else ""
    if found.study.spec.study.objectives:
        return ranking.best_in_words(found.study, one)
    return f"Learning rate {choice}{more}: {metric} {one.value:.4g}, trial {one.number}{origin}."


def sensitivity(found: Findings) -> list[str]:
    """Return a sentence about the most robust and the most fragile configuration, if they differ.

    Nothing is said unless their intervals are apart.
    """
    if len(found.sensitivities) < 2:
        return []
    robust, fragile = found.sensitivities[0], found.sensitivities[-1]
    if robust.most >= fragile.least:
        return []
    metric = found.study.spec.study.metric
    costs = [
        f"{one.cost:.2g} with {one.optimizer} and {one.schedule} ({one.least:.2g} to "
        f"{one.most:.2g})"
        for one in (robust, fragile)
    ]
    line = f"A rate near the best one costs {costs[0]} of {metric} on average, and {costs[1]}"
    return [f"{line}: the first forgives a wrong rate."]


def effect(found: Effect) -> str:
    """Return a sentence about whether and how a parameter mattered."""
    spread = f"{found.size:.2g}, from {found.low:.2g} to {found.high:.2g}"
    if found.label is not None:
        measure = f"its lead in mean rank at equal rates, of 1, is {spread}"
        what = f"{found.name} mattered: {ranking.format_value(found.label)} was better"
    else:
        measure = f"rank correlation at equal rates {spread}"
        what = f"{found.name} mattered: {'larger' if found.size > 0 else 'smaller'} was better"
    if not found.significant:
        what = f"{found.name} made no significant difference"
    return f"{what} ({measure}, with 95 % confidence, in {found.trials} completed trials)."


def rates(found: GoodRates, *, optimizers: int = 1) -> str:
    """Return sentences about an optimizer's good rates, the width of their range and its edges."""
    low, high = found.low, found.high
    many = f"{found.trials} of {found.of} trials"
    who = f"With {found.name}, " if optimizers > 1 else ""
    if found.factor == 1:
        only = "only one rate was good" if who else "Only one rate was good"
        return f"{who}{only}: {low.rate:.3g} ({many}). {_beyond(found)}"
    width = "wide" if found.factor >= WIDE else "narrow" if found.factor < NARROW else "moderate"
    inner = ""
    if low.inner < high.inner:
        inner = (
            f" In {LEVEL:.0%} of bootstrap resamples it covers at least {low.inner:.3g} to "
            f"{high.inner:.3g}."
        )
    good = "good" if who else "Good"
    return (
        f"{who}{good} rates reach from {low.rate:.3g} to {high.rate:.3g}, a factor of "
        f"{found.factor:.3g}, which is {width} ({many}). {_beyond(found)}{inner}"
    )


def _beyond(found: GoodRates) -> str:
    below, above = found.low, found.high
    if below.beyond is not None and above.beyond is not None:
        both = f"{below.beyond:.3g} and {above.beyond:.3g}"
        return f"The nearest tried rates outside, {both}, are not good."
    if below.beyond is None and above.beyond is None and not below.unclear + above.unclear:
        return "No rate outside was tried, so the range may be wider."
    return f"Below, {_next(below)}; above, {_next(above)}."


def _next(edge: Edge) -> str:
    if edge.beyond is not None:
        return f"{edge.beyond:.3g} is not good"
    return "it is unclear" if edge.unclear else "none was tried"


def comparisons_of(found: Findings, by: Family) -> Iterator[str]:
    """Yield a sentence for each comparison of the best schedule or optimizer with another one."""
    compared = found.schedules if by == "schedule" else found.optimizers
    for one in compared:
        yield _comparison(one, found, by)
    if not compared and len({getattr(one, by) for one in found.evidence}) > 1:
        yield (
            f"Which {by} is best is not decided: fewer than two have {ENOUGH} trials that ran to "
            f"the horizon. tuner confirm --each {by} decides it with new seeds."
        )


def _comparison(one: Comparison, found: Findings, by: str) -> str:
    metric = found.study.spec.study.metric
    interval = f"{one.margin.low:.3g} to {one.margin.high:.3g} at a level of {one.margin.level:.0%}"
    basis = f"the expected best of {one.n} trials that ran to the horizon"
    if one.significant:
        return (
            f"The {by} {one.winner} beats {one.other} by {one.margin.mean:.3g} of {metric} "
            f"({interval}), by {basis}."
        )
    return (
        f"The {by}s {one.winner} and {one.other} are not significantly different: {one.winner} is "
        f"ahead by "
        f"{one.margin.mean:.3g} of {metric} ({interval}), by {basis}."
    )


def savings(found: Findings) -> str:
    """Return a sentence about the steps saved by stopping trials."""
    ended = [one for one in found.trials if one.state in KINDS and not one.imported]
    horizons = {one.number: found.study.horizon(one.params) for one in ended}
    whole = sum(horizons.values())
    if not whole:
        return "No trial has ended."
    lines = []
    for kind, verb in ((PRUNED, "Pruning"), (DIVERGED, "The divergence guard")):
        saved = sum(horizons[one.number] - one.steps for one in ended if one.state == kind)
        count = sum(one.state == kind for one in ended)
        if count:
            share = 100 * saved / whole
            trials = "1 trial" if count == 1 else f"{count} trials"
            lines.append(f"{verb} stopped {trials} and saved {saved} steps, {share:.0f} %.")
    branches = judging.branch_steps(found)
    if branches:
        share = 100 * branches / whole
        lines.append(
            f"Branches, by which trials were judged, took {branches} steps, {share:.0f} %."
        )
    lines.append(judging.sentence(found))
    return " ".join(filter(None, lines)) or "No trial was stopped: all ran to the end."


def origin(found: Findings) -> str:
    """Return who submitted the study, its project, and what it has spent."""
    by = "" if found.submitted is None else f"Submitted by {found.submitted.who}, "
    where = f"{by}{'in' if by else 'In'} the project {found.study.project}."
    return f"{where} Spent: {ranking.spend_in_words(found.spend.as_json())}."


def verdicts(found: Findings) -> str:
    """Return the number of trials by verdict, for each optimizer."""
    return ranking.verdicts_in_words(found.verdicts)


def advice(found: Findings) -> list[str]:
    """Return what to try next, most useful first; it never contradicts the ranking."""
    params = found.best.params if found.best is not None else None
    if found.best is None or params is None:
        return on_rates(None, found.evidence, found.verdicts)
    if found.best.imported and found.rates is None:
        near = f"near {float(params['lr']):.3g} with {params['optimizer']}"
        return [f"No trial of this version is as good as the imported best: try more rates {near}."]
    lines = on_rates(params, found.evidence, found.verdicts)
    if found.rates is None:
        return lines
    verdict = found.verdicts.get(found.best.number)
    labels = verdict.labels if verdict else ()
    if verdict and PLATEAU not in labels and OSCILLATING not in labels:
        lines.append("The best trial was still improving at its end: more steps may help.")
    if OSCILLATING in labels and len({one.schedule for one in found.evidence}) == 1:
        lines.append("The best trial oscillates: a schedule that decays may help.")
    compared = {"schedule": found.schedules, "optimizer": found.optimizers}
    left = [one for by, own in compared.items() if by not in decided(found) for one in own]
    if any(not one.significant for one in left):
        lines.append("What is not significantly different needs more trials, or fewer choices.")
    completed = sum(one.state == COMPLETED for one in found.trials)
    several = bool(found.study.spec.study.objectives)
    lines.extend(search(found))
    if completed > 1 and not several and (found.decision is None or not found.decision.decided):
        lines.append(
            "Each value is of one run. To decide whether the winner is better than the next ones, "
            "retrain them with new seeds: tuner confirm."
        )
    return lines


def search(found: Findings) -> list[str]:
    """Return a sentence about random search, and what a further trial promises; none if unknown."""
    one, best, study = found.outlook, found.best, found.study.spec.study
    if one is None or best is None or best.value is None:
        return []
    sign = 1.0 if study.direction == "minimize" else -1.0
    reached = np.flatnonzero(sign * one.expected <= sign * best.value)
    many = f"about {reached[0] + 1}" if len(reached) else f"more than {len(one.expected)}"
    gain = f"A further trial is expected to improve {study.metric} by {one.gain:.2g}."
    random = f"Random search would have needed {many} trials for {best.value:.4g}"
    return [f"{gain} {random}, by a model of this study's trials."]


def on_rates(
    best: Mapping[str, ParameterValue] | None,
    evidence: Sequence[Evidence],
    verdicts: Mapping[int, Verdict],
) -> list[str]:
    """Return which rates to try next with the best trial's optimizer."""
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
    """Return what to try if no trial is good: rates beyond the best one, if it is at an end."""
    kinds = count_by_verdict({one.number: verdicts[one.number] for one in evidence})
    rates = [one.rate for one in evidence]
    high, low = kinds[TOO_HIGH] + kinds[DIVERGING], kinds[TOO_LOW]
    if high > low and best in (None, min(rates, default=None)):
        return "No good rate was found and most were too high: try rates ten times lower."
    if low > high and best in (None, max(rates, default=None)):
        return "No good rate was found and most were too low: try rates ten times higher."
    return "No good rate was found, for unclear reasons: let more trials run to the horizon."


def _of_range(found: GoodRates, best: float) -> Iterator[str]:
    low, high = found.low, found.high
    if high.beyond is None and best * NARROW > high.rate:
        yield _beyond_an_end(found.name, "high", "above", high)
    if low.beyond is None and best < low.rate * NARROW:
        yield _beyond_an_end(found.name, "low", "below", low)
    if high.beyond is not None and low.beyond is not None and found.factor > 1:
        span = f"{low.rate:.3g} to {high.rate:.3g}"
        yield f"The next search with {found.name} can be limited to {span}."


def _beyond_an_end(name: str, end: str, where: str, edge: Edge) -> str:
    if edge.unclear:
        return (
            f"With {name}, rates {where} {edge.rate:.3g} are unclear: let trials there run to the "
            "horizon."
        )
    return f"With {name}, no rate was too {end}: try some {where} {edge.rate:.3g}."
