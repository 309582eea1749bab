"""What earlier studies predict for the points of a study's space.

The losses of a source are replaced by the normal scores of their ranks, so its unit and its scale
do not matter, and fitted by a Gaussian process over the parameters that both studies have. How much
a study trusts each of its sources is in `gp.trend`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import TrialState

from tuner.config import ParameterValue, Range, Space, options
from tuner.ledger import Reader, Searched, StudyRecord
from tuner.search.encoding import Dimension, Encoding, Rows, encoding_of
from tuner.search.mirror import Mirror

if TYPE_CHECKING:
    from tuner.search import gp

LEAST = 5
"""Trials that a source needs within the space of the study that learns from it."""
NOISE = 0.1
"""Variance of the noise of scores, where a source predicts its own trials."""
MOST = 16
"""Sources of a study; of more the newest."""


class Source:
    """The losses that an earlier study predicts."""

    def __init__(
        self,
        space: Encoding,
        name: str,
        params: Sequence[Mapping[str, Any]],
        losses: Sequence[float],
    ) -> None:
        """Learn from the trials that lie in `space`; `params` are as samplers see them."""
        from tuner.search import gp

        named = {key for one in params for key in one}
        self.name = name
        self._places, self._space = _shared(space, named)
        inside: list[tuple[gp.Vector, float]] = []
        for one, loss in zip(params, losses, strict=True):
            with suppress(ValueError):  # beyond the ends of a range, or another choice
                inside.append((self._space.encode(dict(one)), loss))
        self.trials = len(inside)
        self.parameters = tuple(self._space.names)
        self.skill = 0.0
        if self.trials < LEAST or not len(self._space):
            return
        rows = np.array([row for row, _ in inside])
        scores = normal_scores(np.array([loss for _, loss in inside]))
        kept = gp.informative(scores, gp.FITTED)
        features, groups = self._space.features(rows[kept]), self._space.groups
        theta = gp.fitted(features, groups, len(self._space), scores[kept])
        self._posterior = gp.Posterior(theta, groups, features, scores[kept])
        # with hyperparameters that know nothing of the losses, or chance would look like skill
        theta = gp.usual(len(self._space), NOISE)
        predicted = gp.Posterior(theta, groups, features, scores[kept]).left_out()
        if np.ptp(predicted) > 0 and np.ptp(scores[kept]) > 0:
            self.skill = float(np.corrcoef(predicted, scores[kept])[0, 1])

    @property
    def usable(self) -> bool:
        """Whether it predicts its own trials, each from all others, better than chance would.

        By chance, correlations have a standard deviation of about one over the root of the trials.
        """
        from tuner.search import gp

        return self.trials >= LEAST and self.skill > 2 / math.sqrt(min(self.trials, gp.FITTED))

    def predict(self, rows: Rows) -> gp.Vector:
        """Return the predicted scores of rows of the study's space, [row]; lower is better."""
        mean, _ = self._posterior.predict(self._space.features(rows[:, self._places]))
        return mean


def sources_of(study: StudyRecord, space: Space, ledger: Reader) -> list[Source]:
    """Return the usable sources of a study's `learn_from`, in order of their names.

    A source is made of all versions of an earlier study, and of the trials that had ended when this
    study was submitted, so that what is learned from them never changes.
    """
    return earlier(study, space, ledger, study.spec.search.learn_from)


def earlier(
    study: StudyRecord, space: Space, ledger: Reader, patterns: Sequence[str]
) -> list[Source]:
    """Return the newest `MOST` usable sources whose names match a pattern, in order of names."""
    named: dict[str, list[StudyRecord]] = {}
    for one in ledger.studies():
        matches = one.name in patterns or any(fnmatchcase(one.name, it) for it in patterns)
        matches = matches and not one.spec.study.objectives  # which is better is not known
        if matches and one.name != study.name and one.created_at <= study.created_at:
            named.setdefault(one.name, []).append(one)
    newest = sorted(named, key=lambda name: named[name][-1].created_at)[-MOST:]
    encoding, sources = encoding_of(space), list[Source]()
    for name in sorted(newest):
        params, losses = valued(ledger, named[name], study.created_at)
        seen = [as_seen(space, one) for one in params]
        inside = [(one, loss) for one, loss in zip(seen, losses, strict=True) if one is not None]
        sources.append(Source(encoding, name, [one for one, _ in inside], [x for _, x in inside]))
    return [one for one in sources if one.usable]


def valued(
    ledger: Reader, versions: Sequence[StudyRecord], until: float
) -> tuple[list[Mapping[str, ParameterValue]], list[float]]:
    """Return parameters and losses of the trials that versions of a study had ended by a time.

    Pruned and diverged trials have losses as in `Mirror.for_values`.
    """
    params: list[Mapping[str, ParameterValue]] = []
    losses: list[float] = []
    for version in versions:
        sign = 1.0 if version.spec.study.direction == "minimize" else -1.0
        ended = [
            one
            for one in ledger.searched(version.id, 0).trials
            if not one.imported and one.ended_at is not None and one.ended_at <= until
        ]
        mirror = Mirror(version.spec)
        mirror.refresh(Searched(revision=version.revision, attrs={}, trials=ended))
        complete = {one.number: one.params or {} for one in ended}
        for trial in mirror.for_values():
            if trial.state == TrialState.COMPLETE and trial.value is not None:
                params.append(complete[trial.number])
                losses.append(sign * trial.value)
    return params, losses


def columns(sources: Sequence[Source], rows: Rows) -> Rows:
    """Return what each source predicts for rows of the study's space, [row, source]."""
    return np.stack([source.predict(rows) for source in sources], axis=1)


def normal_scores(losses: gp.Vector) -> gp.Vector:
    """Return the standard normal quantiles of the ranks of losses; equal ones share theirs."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    scores: gp.Vector = ndtri((rankdata(losses) - 0.5) / len(losses))
    return scores


def _shared(space: Encoding, named: set[str]) -> tuple[list[int], Encoding]:
    """Return the places of the dimensions that are `named`, and the encoding of these alone."""
    places: list[int] = []
    dimensions: list[Dimension] = []
    for place, dimension in enumerate(space.dimensions):
        if dimension.name in named and all(parent in places for parent, _ in dimension.when):
            when = tuple((places.index(parent), allowed) for parent, allowed in dimension.when)
            dimensions.append(replace(dimension, when=when))
            places.append(place)
    return places, Encoding(dimensions)


def as_seen(space: Space, params: Mapping[str, ParameterValue]) -> dict[str, Any] | None:
    """Return a trial's parameters that vary in a space, as samplers see them.

    A number is moved to the nearest of a list. Return None for a trial outside of the space: beyond
    the ends of a list, or with another choice where the space has a single one, such as another
    optimizer.
    """
    found: dict[str, Any] = {}
    for one in space.parameters():
        if one.name not in params:
            continue
        value = params[one.name]
        if not one.varies:
            constant = None if isinstance(one.entry, Range) else options(one.entry)[0]
            if isinstance(constant, str) and value != constant:
                return None
        elif one.ordered is None:
            found[one.name] = value
        elif isinstance(value, str | bool) or not one.ordered[0] <= value <= one.ordered[-1]:
            return None
        else:
            distances = [abs(option - value) for option in one.ordered]
            found[one.name] = distances.index(min(distances))
    return found
