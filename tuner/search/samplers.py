"""Optuna's samplers, one for each draw, so that a draw depends on its history alone."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.samplers import GPSampler as OptunaGPSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from tuner.config import (
    CMAES,
    GP,
    NSGA2,
    QMC,
    TPE,
    Auto,
    Custom,
    Grid,
    Listed,
    OptunaGP,
    ParameterValue,
    Random,
    Space,
    StudySpec,
)
from tuner.config.grid import Grid as CellsOf
from tuner.config.search import AnySampler
from tuner.search.custom import Maker
from tuner.search.encoding import Encoding, Rows, encoding_of
from tuner.search.own import GPSampler, SobolSampler
from tuner.search.space import FixedSampler, all_distributions, completed, shared_distributions
from tuner.search.textbook import textbook
from tuner.search.tpe import ColumnTPESampler, Observations
from tuner.search.transfer import Source

LEARN_FROM_VALUES = (GP, OptunaGP, CMAES)
"""Samplers that learn from the values of completed trials only; tpe also ranks pruned trials."""
ADDED_FROM = 2**20
"""Point of a sequence from which trials that a person added draw what is not fixed."""

REDRAWN = 2**16
"""Distance in the sequence from a point that violates the constraints to the next one."""


def sampler_of(spec: StudySpec, number: int) -> AnySampler:
    """Return the settings of the sampler that draws trial `number`.

    auto chooses by the number; for several objectives it is tpe.
    """
    sampler = spec.search.sampler
    if isinstance(sampler, Auto) and spec.study.objectives:
        return TPE(name="tpe")
    return (
        sampler.at(number, len(all_distributions(spec.space)))
        if isinstance(sampler, Auto)
        else sampler
    )


def sampler_for(  # noqa: PLR0911, PLR0912 - one for each sampler
    spec: StudySpec,
    number: int,
    imported: Sequence[Mapping[str, ParameterValue]] = (),
    sources: Sequence[FrozenTrial] = (),
    observations: Observations | None = None,
    attempt: int = 0,
    *,
    added_before: int = 0,
    is_added: bool = False,
    learned: Sequence[Source] = (),
    custom: Maker | None = None,
) -> BaseSampler:
    """Return the sampler that draws trial `number`, seeded by the study's seed and the number.

    The first numbers belong to the `imported` trials. A person added this trial if it `is_added`,
    and as many as `added_before` with lower numbers: they are no trials of `first`, of a list or of
    a sequence. A grid skips the combinations of imported trials. cmaes starts at the best of the
    `sources`, the imported trials with values. gp also uses what earlier studies predict,
    `learned`. A sampler of the user's own is made by `custom`. Without `observations`, tpe is
    Optuna's own sampler; with them it draws the same, faster. Each `attempt` at parameters that
    satisfy the constraints has its own seed.
    """
    again = [attempt] if attempt else []
    sequence = np.random.SeedSequence([spec.study.seed, number, *again])
    seed = int(sequence.generate_state(2, np.uint32)[1])
    index = number - len(imported) - added_before
    sampler = sampler_of(spec, number)
    first = first_params(spec, sampler, number, index, learned=bool(learned))
    if is_added:
        if isinstance(sampler, Grid | Listed | QMC):
            return RandomSampler(seed=seed)  # of what is not fixed
        index = ADDED_FROM + number
    elif attempt == 0 and first is not None:
        return FixedSampler(spec.space, first)
    whole = encoding_of(spec.space)
    sobol = SobolSampler(whole, index + attempt * REDRAWN, seed=spec.study.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match sampler:
            case TPE():
                startup = sampler.startup_trials
                tpe = (
                    TPESampler(seed=seed, n_startup_trials=startup)
                    if observations is None
                    else ColumnTPESampler(
                        observations, spec.space, seed=seed, n_startup_trials=startup
                    )
                )
                if sampler.start != "random":
                    tpe._random_sampler = cast("RandomSampler", sobol)  # draws until the start-up
                return tpe
            case Random():
                return RandomSampler(seed=seed)
            case Grid():
                cells = _cells(spec.space.model_dump_json())
                tried = [cell for one in imported if (cell := cells.index(one)) is not None]
                return FixedSampler(spec.space, cells.cell(cells.untried(index, tried)))
            case Listed():
                return FixedSampler(spec.space, sampler.combination(index))
            case GP():
                return GPSampler(
                    whole,
                    sobol,
                    maximize=spec.study.direction == "maximize",
                    seed=[spec.study.seed, number, *again],
                    startup_trials=sampler.startup_trials,
                    sources=learned,
                    allowed=_allowed(spec.space, whole) if spec.space.constraints else None,
                )
            case OptunaGP():
                return OptunaGPSampler(
                    seed=seed,
                    n_startup_trials=sampler.startup_trials,
                    warn_independent_sampling=False,
                )
            case QMC():
                return IndexedQMCSampler(
                    spec.space, index + attempt * REDRAWN, sampler, seed=spec.study.seed
                )
            case NSGA2():
                return NSGAIISampler(seed=seed, population_size=sampler.population)
            case CMAES():
                return RangeCmaEsSampler(spec.space, sampler, sources, seed=seed)
            case Custom():
                assert custom is not None
                return custom(seed)
            case Auto():
                raise AssertionError("sampler_of returns the chosen sampler")


def first_params(
    spec: StudySpec, sampler: AnySampler, number: int, index: int, *, learned: bool
) -> Mapping[str, ParameterValue] | None:
    """Return the parameters of a first trial that the sampler does not draw, else None."""
    if index < len(spec.search.first):
        return spec.search.first[index]
    if number == 0 and isinstance(sampler, TPE | GP) and sampler.start == "textbook":
        better = spec.probe.enabled or learned  # a probe suggests rates
        return None if better else textbook(spec.space)
    return None


def _allowed(space: Space, whole: Encoding) -> Callable[[Rows], NDArray[np.bool_]]:
    """Return which rows of an encoding satisfy the constraints, [row]."""

    def allowed(rows: Rows) -> NDArray[np.bool_]:
        return np.array([space.satisfies(completed(space, whole.decode(row))) for row in rows])

    return allowed


@functools.lru_cache(maxsize=16)
def _cells(space: str) -> CellsOf:
    """Return the grid of a space, from its JSON."""
    return CellsOf(Space.model_validate_json(space))


class IndexedQMCSampler(QMCSampler):
    """Draws for trial n the n-th point of one sequence over the whole space.

    Optuna's sampler counts asks on the study and takes the space from the first trial that ended,
    so its points depend on the order of asks. In this sampler every parameter of every schedule and
    optimizer has a coordinate, and a trial uses those of its own parameters.
    """

    def __init__(self, space: Space, index: int, options: QMC, *, seed: int) -> None:
        super().__init__(
            qmc_type=options.sequence,
            scramble=options.scramble,
            seed=seed,
            warn_independent_sampling=False,
        )
        self._space = all_distributions(space)
        self._index = index

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the whole space."""
        return self._space

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._index


class RangeCmaEsSampler(CmaEsSampler):
    """CMA-ES over the numbers that every trial has; other parameters are drawn at random.

    Optuna's sampler uses the ranges that all trials so far share. When a second schedule is tried,
    these become fewer, its state no longer fits and it draws at random from then on.
    """

    def __init__(
        self, space: Space, options: CMAES, sources: Sequence[FrozenTrial], *, seed: int
    ) -> None:
        self._space = shared_distributions(space)
        super().__init__(
            seed=seed,
            source_trials=_best_tenth(sources, self._space) or None,
            n_startup_trials=options.startup_trials,
            popsize=options.population,
            warn_independent_sampling=False,
        )

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the numbers that every trial has."""
        return self._space

    def _init_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first state, with its buffer of recent values set to zero.

        The package allocates the buffer with `numpy.empty` and pickles all of it, which would store
        parts of the process's memory in the database.
        """
        optimizer: Any = super()._init_optimizer(*args, **kwargs)
        optimizer._funhist_values.fill(0.0)
        return optimizer

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        """Return the state stored with the latest trial that has one; see `cma_state`."""
        prefix = f"{self._attr_key_optimizer}:"
        for trial in reversed(completed_trials):
            parts = {
                int(key.removeprefix(prefix)): str(value)
                for key, value in trial.system_attrs.items()
                if key.startswith(prefix)
            }
            if parts:
                from tuner.search.cma_state import restored

                text = "".join(parts[index] for index in sorted(parts))
                return restored(bytes.fromhex(text))
        return None


def _best_tenth(
    sources: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution]
) -> list[FrozenTrial]:
    """Return trials for a warm start, which takes their best tenth; parameters only from `space`.

    Fewer than ten are repeated, so that the best tenth is the best trial.
    """
    copies = []
    for source in sources:
        trial = copy.copy(source)
        trial.params = {key: source.params[key] for key in space}
        trial.distributions = dict(space)
        copies.append(trial)
    return copies * -(-10 // len(copies)) if copies else []
