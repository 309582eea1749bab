"""The settings of one trial: its steps, batch and evaluations, from the study and its parameters.

The budget of a trial, its evaluations and its rungs are in the unit of the study: steps, epochs or
examples. A trial's batch size decides at which of its steps they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tuner.config.study import StudySpec
from tuner.config.values import ParameterValue
from tuner.core.errors import WorkloadError


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """How one trial is trained."""

    steps: int  # the horizon
    batch_size: int | Literal["full"]
    clip_norm: float | None
    accumulate: int
    precision: str | None
    rungs: Mapping[int, int]  # by step: the position in the study's unit
    evaluation_steps: tuple[int, ...]  # ascending, with 0, the rungs and the horizon


def settings_of(
    spec: StudySpec,
    params: Mapping[str, ParameterValue],
    rows: int | None,
    keeps_last: bool = False,
) -> TrialSettings:
    """Return the settings of a trial; `rows` is the number of training examples, None: unknown.

    An incomplete last batch of an epoch is a step if `keeps_last`, else it is left out. Without
    `params`, the settings are those of the study. Raise `WorkloadError` if the unit needs rows that
    are not known.
    """
    training = spec.training
    values: dict[str, Any] = {
        name: params.get(name, getattr(training, name))
        for name in ("clip_norm", "accumulate", "precision")
    }
    size = batch_size(spec, params)
    to_step = _Steps(spec, size, rows, keeps_last)
    steps = to_step(spec.length)
    rungs = {to_step(position): position for position in spec.rungs()}
    rungs = {step: position for step, position in rungs.items() if 0 < step < steps}
    return TrialSettings(
        steps=steps,
        batch_size=size,
        rungs=rungs,
        evaluation_steps=tuple(sorted({to_step(position) for position in spec.evaluation_steps()})),
        **values,
    )


def horizon_of(
    spec: StudySpec,
    params: Mapping[str, ParameterValue],
    rows: int | None,
    keeps_last: bool = False,
) -> int:
    """Return the steps of a trial; see `settings_of`, which takes longer."""
    return _Steps(spec, batch_size(spec, params), rows, keeps_last)(spec.length)


def batch_size(spec: StudySpec, params: Mapping[str, ParameterValue]) -> int | Literal["full"]:
    """Return the rows of a trial's batch: a parameter, an argument of the function, or the study's.

    Where it is searched and `params` are not known, it is the first or lowest value.
    """
    size: Any = params.get("batch_size")
    if size is None:
        size = next(
            (one.lowest for one in spec.space.parameters() if one.name == "batch_size"), None
        )
    if size is None and spec.workload.train is not None:
        size = spec.workload.arguments.get("batch_size")
    if size is None:
        size = spec.training.batch_size
    if size == "full":
        return "full"
    assert isinstance(size, int), size
    return size


class _Steps:
    """The step of a trial at each position in the study's unit."""

    def __init__(
        self, spec: StudySpec, size: int | Literal["full"], rows: int | None, keeps_last: bool
    ) -> None:
        self._unit = spec.unit
        if self._unit == "steps":
            return
        if rows is None and (self._unit == "epochs" or size == "full"):
            raise WorkloadError(
                f"[training] {self._unit}: expected to know the number of training examples, and "
                f"{spec.workload.function} does not declare it; set its attribute training_rows, "
                "or for a loader without batch size or length set steps instead"
            )
        if rows is not None:
            size = rows if size == "full" else min(size, rows)
        assert isinstance(size, int)
        self._size = size
        self._batches = 1  # of an epoch
        if rows is not None:
            self._batches = -(-rows // size) if keeps_last else rows // size

    def __call__(self, position: int) -> int:
        if self._unit == "steps":
            return position
        if self._unit == "epochs":
            return position * self._batches
        return -(-position // self._size)
