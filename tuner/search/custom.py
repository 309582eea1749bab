"""Samplers of the user's own: named by a study like its workload, and made anew for each draw."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from tuner.config import Custom, StudySpec
from tuner.core.errors import TunerError, WorkloadCodeError, WorkloadError
from tuner.core.failures import sentence
from tuner.training import workloads

Maker: TypeAlias = Callable[[int], BaseSampler]
"""Makes a sampler of a seed."""


def code_digest(spec: StudySpec, prefixes: Sequence[str]) -> dict[str, str]:
    """Return the digest of the code of a study's own sampler, as `sampler`; nothing without one.

    Nothing is imported. Raise `WorkloadError` if it is not allowed or not found.
    """
    if not isinstance(spec.search.sampler, Custom):
        return {}
    name = spec.search.sampler.sampler
    with _named():
        return {"sampler": workloads.code_digest(name, prefixes)}


def load(spec: StudySpec, prefixes: Sequence[str]) -> Maker | None:
    """Return what makes a study's own sampler, having made one; None without one.

    Raise `WorkloadError` if it is not allowed, cannot be imported or called, or is no sampler.
    """
    settings = spec.search.sampler
    if not isinstance(settings, Custom):
        return None
    with _named():
        maker = workloads.find(settings.sampler, prefixes, "sampler")
        takes_seed = "seed" in inspect.signature(maker).parameters

        def arguments(seed: int) -> dict[str, Any]:
            return ({"seed": seed} if takes_seed else {}) | settings.arguments

        def make(seed: int) -> BaseSampler:
            with raised_by(settings.sampler), warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                made = maker(**arguments(seed))
            if not isinstance(made, BaseSampler):
                raise WorkloadError(
                    f"sampler {settings.sampler}: expected a sampler of Optuna, got {made!r:.200}"
                )
            return made

        workloads.check_arguments(settings.sampler, maker, (), arguments(0))
        make(0)
        return make


@contextmanager
def raised_by(name: str) -> Iterator[None]:
    """Raise what the code of a sampler raises in the body as `WorkloadCodeError`."""
    try:
        yield
    except (KeyboardInterrupt, TunerError):
        raise
    except BaseException as error:
        what = sentence(error, name).removeprefix("The training code ")
        raise WorkloadCodeError(f"sampler {name} {what}") from error


@contextmanager
def _named() -> Iterator[None]:
    """Let messages of the body be about a sampler."""
    try:
        yield
    except WorkloadError as error:
        text = str(error)
        if not text.startswith("workload "):
            raise
        raise type(error)(f"sampler {text.removeprefix('workload ')}") from error.__cause__
