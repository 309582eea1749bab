"""Find a learning rate and its schedule: the Python API.

    import tuner

    study = tuner.run("studies/digits.toml", overrides={"budget.trials": 20})
    study.best()
    study.trials().sort_values("value")

Names are imported when they are first used, so `import tuner` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.api import Study, load, run, studies
    from tuner.config.building import Budget, floats, ints, log
    from tuner.core.errors import (
        NotFoundError,
        StudyFileError,
        TunerError,
        UnavailableError,
        UsageError,
    )
    from tuner.training.programs.current import current_trial
    from tuner.training.registration import train_function, workload

_HOMES = {
    "Budget": "tuner.config.building",
    "NotFoundError": "tuner.core.errors",
    "Study": "tuner.api",
    "StudyFileError": "tuner.core.errors",
    "TunerError": "tuner.core.errors",
    "UnavailableError": "tuner.core.errors",
    "UsageError": "tuner.core.errors",
    "current_trial": "tuner.training.programs.current",
    "floats": "tuner.config.building",
    "ints": "tuner.config.building",
    "load": "tuner.api",
    "log": "tuner.config.building",
    "run": "tuner.api",
    "studies": "tuner.api",
    "train_function": "tuner.training.registration",
    "workload": "tuner.training.registration",
}

__all__ = [
    "Budget",
    "NotFoundError",
    "Study",
    "StudyFileError",
    "TunerError",
    "UnavailableError",
    "UsageError",
    "current_trial",
    "floats",
    "ints",
    "load",
    "log",
    "run",
    "studies",
    "train_function",
    "workload",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
