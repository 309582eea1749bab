"""Train functions: user-written training loops, found by name, `module:function`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.config import Space
from tuner.core.errors import WorkloadCodeError, WorkloadError
from tuner.training import workloads
from tuner.training.registration import ALLOWED_PREFIXES
from tuner.training.trial import Trial


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainFunction:
    """A train function with its arguments and data."""

    name: str  # module:function
    call: Callable[..., object]
    arguments: Mapping[str, Any]
    data_name: str  # for display
    data_digest: str  # empty if the function does not declare one
    baseline_loss: float | None = None  # the training loss of the best constant predictor
    training_rows: int | None = None  # number of training examples, if it is declared
    searched: tuple[str, ...] = ()  # names of the arguments that differ between trials

    def __call__(self, trial: Trial) -> None:
        """Call the function for a trial."""
        own = {name: trial.params[name] for name in self.searched if name in trial.params}
        self.call(trial, **self.arguments, **own)


def load(
    name: str,
    arguments: Mapping[str, Any],
    allowed_prefixes: Sequence[str] = ALLOWED_PREFIXES,
    space: Space | None = None,
) -> TrainFunction:
    """Import a train function and check that it accepts the arguments, also those of a space.

    Its optional attributes `data_digest` (a string, or a function that returns one) and
    `data_name` identify its data; a worker with other data refuses the study. The attribute
    `baseline_loss`, the training loss of the best constant predictor, is for the guard, and
    `training_rows`, the number of training examples, for a budget in epochs. Raise
    `WorkloadError`.
    """
    function = workloads.find(name, allowed_prefixes, "train_function")
    searched = () if space is None else space.function_arguments
    workloads.check_searched(name, function, (None,), arguments, space)
    digest = getattr(function, "data_digest", "")
    try:
        digest = digest() if callable(digest) else digest
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise WorkloadCodeError(
            f"train function {name}: its data_digest raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(digest, str):
        raise WorkloadError(
            f"train function {name}: expected a string, or a function that returns one, as "
            f"its data_digest, got {type(digest).__name__}"
        )
    return TrainFunction(
        name=name,
        call=function,
        arguments=dict(arguments),
        data_name=str(getattr(function, "data_name", f"data of {name}")),
        data_digest=digest,
        baseline_loss=getattr(function, "baseline_loss", None),
        training_rows=getattr(function, "training_rows", None),
        searched=searched,
    )
