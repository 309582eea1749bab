"""What a retraining does: the model it is for, the data it gets, the gate, and who is told."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from tuner.config.values import Table

MetricName: TypeAlias = Annotated[
    str,
    Field(
        pattern=r"^\w[\w./-]{0,199}$",
        description="the name of a metric, of letters, digits, '_', '.', '/' and '-'",
    ),
]


class GateTable(Table):
    """When a challenger takes the champion's place: both are measured on the same held-out rows.

    - `metric`: by what; the study's metric unless it is given. It must be a mean over rows.
    - `direction`: which way is better, for another metric than the study's.
    - `minimum_improvement`: the challenger must be better by more than this, in the metric's unit.
    - `level`: how sure that must be: the whole interval of the paired differences lies above it.
    - `seeds`: how many challengers are trained, each from a seed of its own. With more than one the
      pairs are seeds instead of rows, and the challenger in the middle is the one that is offered.
    - `slices`: named parts of the held-out rows on which it may not be worse than the champion;
      all that the workload has unless they are given.
    - `tolerance`: how much worse on a slice is still as good, in the metric's unit.
    """

    metric: MetricName | None = None
    direction: Literal["minimize", "maximize"] | None = None
    minimum_improvement: Annotated[float, Field(ge=0)] = 0.0
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    slices: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    tolerance: Annotated[float, Field(ge=0)] = 0.0


VARIABLE = r"^TUNER_NOTIFY_[A-Z0-9_]{1,100}$"
"""The names of environment variables that hold addresses for notifications."""


def is_variable(text: str) -> bool:
    """Return whether a text names a variable; others are addresses, which hold secrets."""
    return re.fullmatch(VARIABLE, text) is not None and text != "TUNER_NOTIFY_ALLOW"


# a row that an earlier version stored may have an address, so only study files are refused one
Variable: TypeAlias = Annotated[str, Field(json_schema_extra={"pattern": VARIABLE})]


class NotifyTable(Table):
    """Notifications of how a retraining ended.

    Addresses hold secrets and are not stored. An environment variable of the process that retrains
    holds one, or the variable with `_FILE` at its end names a file that does.

    - `webhook`: the variable with the address that gets, by POST, what `tuner retrain --json`
      prints, such as "TUNER_NOTIFY_WEBHOOK".
    - `apprise`: variables with addresses of Apprise's kind; needs the extra `notify`.
    - `on`: of which outcomes.
    """

    webhook: Variable | None = None
    apprise: Annotated[tuple[Variable, ...], Field(strict=False)] = ()
    on: Annotated[tuple[Literal["promoted", "kept", "failed"], ...], Field(strict=False)] = (
        "promoted",
        "kept",
        "failed",
    )

    @property
    def literals(self) -> list[str]:
        """The keys that hold something else than the name of a variable."""
        names = {"webhook": [self.webhook] if self.webhook is not None else []}
        names["apprise"] = list(self.apprise)
        return [key for key, found in names.items() if not all(map(is_variable, found))]


NOT_STORED = (
    "the name of an environment variable that holds the address, such as "
    '"TUNER_NOTIFY_WEBHOOK", as addresses hold secrets'
)


class RetrainTable(Table):
    """How the successor of the study's winner is trained; it may change at any time.

    - `model`: the name in MLflow's registry; the study's unless it is given.
    - `factory`: of the fresh data, as in `[workload]`; the study's own unless it is given.
    - `key_argument`: the factory's argument that gets the run key, such as a date.
    - `do`: "refit" trains the best parameters again; "retune" searches around them first; "auto"
      refits, and retunes when the refit's value is worse than the champion's was by more than
      `shortfall`, a fraction of it.
    - `trials`: the budget of a retune.
    - `around`: a retune's rates are the champion's, up to so many times lower or higher.
    """

    model: Annotated[
        str | None,
        Field(
            pattern=r"^[^/:%\"'\s][^/:%\"']{0,199}$",
            description="a name without / : % or quotes",
        ),
    ] = None
    factory: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
            description='a factory named as "module:function"',
        ),
    ] = None
    key_argument: Annotated[
        str | None, Field(pattern=r"^[A-Za-z_]\w*$", description="the name of an argument")
    ] = None
    do: Literal["refit", "retune", "auto"] = "refit"
    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    around: Annotated[float, Field(gt=1)] = 10.0
    shortfall: Annotated[float, Field(ge=0)] = 0.1
    gate: GateTable = GateTable()
    notify: NotifyTable = NotifyTable()
