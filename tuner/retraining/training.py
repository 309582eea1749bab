"""The first stage: challengers from the best known parameters, or from a search around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.config import ParameterValue, Range
from tuner.core.failures import workload_code
from tuner.core.outcome import COMPLETED
from tuner.core.text import derived
from tuner.ledger import Retrainings, limits, ranges
from tuner.ledger.retrainings import TRAIN
from tuner.retraining import retuning
from tuner.retraining.checking import Job
from tuner.training import models
from tuner.training.models import TrainedModel
from tuner.training.trainer import Status, Task


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin of parameters."""

    params: Mapping[str, ParameterValue]
    study: str
    version: int
    trial: int
    lr_range: tuple[float, float]  # in which the rate was searched
    best: int  # the study's best trial then

    def as_json(self) -> dict[str, Any]:
        """Return what the ledger stores."""
        return vars(self) | {"params": dict(self.params), "lr_range": list(self.lr_range)}


class LimitExceededError(Exception):
    """A retraining takes more than `[retrain.limits]` allows; the message is a part of a reason."""


@dataclass(kw_only=True)
class _Time:
    """The time that the challengers may be trained for."""

    minutes: float | None  # None: any
    spent: float = 0.0  # seconds, by models that are trained

    def check(self, seconds: float) -> None:
        """Raise if it is over; `seconds` are of the model that is being trained."""
        if self.minutes is not None and self.spent + seconds > 60 * self.minutes:
            raise LimitExceededError(
                f"training has taken {(self.spent + seconds) / 60:.3g} minutes, more than "
                f"[retrain.limits] training_minutes = {self.minutes:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Challengers:
    """Models of one origin, each with its own seed; the first one is offered to the gate."""

    origin: Origin
    models: tuple[TrainedModel, ...]
    retuned: str | None  # the study that searched, if one did

    @property
    def value(self) -> float | None:
        """The objective of the first model; None if any model has none."""
        whole = all(one.status is Status.FINISHED for one in self.models)
        return self.models[0].value if whole else None

    def found(self) -> dict[str, Any]:
        """Return what the ledger stores of the stage."""
        bad = [one for one in self.models if one.status is not Status.FINISHED]
        return {
            "origin": self.origin.as_json(),
            "value": self.value,
            "failed": None if not bad else bad[0].reason,
            "retuned": self.retuned,
            "seconds": self.models[0].curve.last_time - float(self.models[0].curve.eval_times[0]),
        }


def challengers(job: Job, folder: str, still: Callable[[], None]) -> Challengers:
    """Train the challengers, or resume from the files in the folder.

    Raise `LimitExceededError`.
    """
    base, time = known(job), _Time(minutes=job.spec.retrain.limits.training_minutes)
    do = job.spec.retrain.do
    refit = None if do == "retune" else _train(job, base, f"{folder}/refit", still, time, None)
    if refit is not None and (do == "refit" or not _falls_short(job, refit.value)):
        return refit
    around = [base.params, *retuning.best_known(job.ledger, job.study)]
    name = derived(job.study.name, f"retune {job.run_key}")
    spec = retuning.spec_of(job.spec, name, around, _probed(job, base))
    study, best = job.tune(spec)
    if limits.TIME_IS_UP in (study.reason or ""):
        ended = sum(one.state == COMPLETED for one in job.ledger.trials(study.id))
        raise LimitExceededError(
            f"the search of {study.name!r} has completed {ended} of {spec.budget.trials} trials in "
            f"[retrain.limits] retune_minutes = {job.spec.retrain.limits.retune_minutes:g}"
        )
    if best is None:  # the known parameters remain, and their failure is reported
        return refit or _train(job, base, f"{folder}/refit", still, time, study.name)
    assert best.params is not None
    origin = Origin(
        params=best.params,
        study=study.name,
        version=study.version,
        trial=best.number,
        lr_range=_range(spec.space.lr, best.params),
        best=job.best.number,
    )
    found = _train(job, origin, f"{folder}/retune", still, time, study.name)
    if refit is None or refit.value is None or found.value is None:
        return found if found.value is not None or refit is None else refit
    return found if _sign(job) * (found.value - refit.value) < 0 else refit


def _probed(job: Job, base: Origin) -> tuple[float, float] | None:
    """Return the rates that the study's probe suggests for the optimizer; None if it has none."""
    found = (ranges.result(job.ledger, job.study) or {}).get("optimizers", {})
    low, high = found.get(base.params["optimizer"], {}).get("suggested") or (None, None)
    return None if low is None or high is None else (low, high)


def known(job: Job) -> Origin:
    """Return the champion's parameters, or the study's best if it has found better since."""
    earlier = job.champions_origin()
    if earlier is not None and earlier.study == job.study.name:
        kept = earlier.result[TRAIN]["origin"]
        if kept["best"] == job.best.number:
            return Origin(**{**kept, "lr_range": tuple(kept["lr_range"])})
    assert job.best.params is not None
    return Origin(
        params=job.best.params,
        study=job.study.name,
        version=job.study.version,
        trial=job.best.number,
        lr_range=_range(job.study.spec.space.lr, job.best.params),
        best=job.best.number,
    )


def _range(entry: Any, params: Mapping[str, ParameterValue]) -> tuple[float, float]:
    """Return the lowest and the highest rate of a space."""
    if isinstance(entry, Range):
        return entry.low, entry.high
    rates = entry if isinstance(entry, tuple) else (float(params["lr"]),)
    return min(rates), max(rates)


def _train(
    job: Job,
    origin: Origin,
    key: str,
    still: Callable[[], None],
    time: _Time,
    retuned: str | None,
) -> Challengers:
    _refuse_large(job, origin)

    def check(seconds: float) -> None:
        still()
        time.check(seconds)

    made = []
    for index in range(job.spec.retrain.gate.seeds):
        task = Task(number=index, seed=job.seed(index), params=origin.params)
        one = models.train(
            job.workload,
            job.spec,
            task,
            job.places.checkpoints,
            f"{key}-{index}.pt",
            still=check,
            clock=Retrainings(job.ledger).now,
        )
        time.check(one.seconds)
        time.spent += one.seconds
        made.append(one)
    return Challengers(origin=origin, models=_middle_first(made), retuned=retuned)


def _refuse_large(job: Job, origin: Origin) -> None:
    """Raise `LimitExceededError` if the model is too large, before it is trained."""
    limit = job.spec.retrain.limits.model_megabytes
    if limit is None:
        return
    with workload_code():
        workload = job.workload.of(origin.params)
    size = models.size_of(models.fresh_model(workload, job.spec)) / 1e6
    if size > limit:
        raise LimitExceededError(
            f"the model has {size:.3g} MB, more than [retrain.limits] model_megabytes = {limit:g}"
        )


def _middle_first(made: list[TrainedModel]) -> tuple[TrainedModel, ...]:
    """Return the models with the median one first: choosing the best would reward luck."""
    values = [np.inf if one.value is None else one.value for one in made]
    middle = int(np.argsort(values, kind="stable")[(len(made) - 1) // 2])
    return (made[middle], *(one for index, one in enumerate(made) if index != middle))


def _falls_short(job: Job, value: float | None) -> bool:
    """Return whether a refit is worse than expected from the champion's value, or the best one."""
    earlier = job.champions_origin()
    expected = job.best.value if earlier is None else earlier.result[TRAIN]["value"]
    if value is None or expected is None:
        return True
    limit = job.spec.retrain.shortfall * abs(expected)
    return bool(_sign(job) * (value - expected) > limit)


def _sign(job: Job) -> int:
    return 1 if job.spec.study.direction == "minimize" else -1
