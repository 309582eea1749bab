"""The retraining of a study: its model, its data, the gate, and notifications."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    """When a challenger replaces the champion: both are measured on the same held-out rows.

    - `metric`: the metric to compare, a mean over rows; by default the study's.
    - `direction`: whether to minimize or maximize it; required if it is not the study's metric.
    - `minimum_improvement`: the challenger must be better by more than this, in the metric's unit.
    - `level`: confidence level; the whole interval of the paired differences must lie above
      `minimum_improvement`.
    - `seeds`: number of challengers, each with its own seed. With more than one, the pairs are
      seeds instead of rows, and the challenger with the median value is the candidate.
    - `slices`: named parts of the held-out rows on which the challenger may not be significantly
      worse than the champion, at `level` for all of them together; by default all slices of the
      workload.
    - `tolerance`: by how much it may be worse on a slice, in the metric's unit.
    - `margins`: by slice, a margin of non-inferiority, in the metric's unit: the challenger must be
      shown to be worse by less than that. Such a slice has no `tolerance`.
    - `slice_rows`: a slice with fewer rows is recorded and does not decide.
    - `minimum_rows`: with fewer held-out rows, nothing is trained.
    """

    metric: MetricName | None = None
    direction: Literal["minimize", "maximize"] | None = None
    minimum_improvement: Annotated[float, Field(ge=0)] = 0.0
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    slices: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    margins: Mapping[str, Annotated[float, Field(gt=0)]] = {}
    slice_rows: Annotated[int, Field(ge=2)] = 20
    minimum_rows: Annotated[int, Field(ge=1)] = 1


class DataTable(Table):
    """What to do with bad data, here and wherever the study's data are loaded.

    - `on_bad`: "refuse" data with values that are nan or infinite, or "drop_batch", leave out the
      batches of rows that have some; the workload names them with `row_batches`.
    - `minimum_rows`: with fewer training rows, nothing is trained.
    """

    on_bad: Literal["refuse", "drop_batch"] = "refuse"
    minimum_rows: Annotated[int, Field(ge=1)] = 1


class LimitsTable(Table):
    """What a retraining may take; by default as much as it wants.

    A retraining that exceeds a limit ends as failed, and the champion stays.

    - `training_minutes`: of training the challengers, all seeds together; time before a crash
      counts up to the last checkpoint.
    - `retune_minutes`: of the search of a retune, from the start of its first trial on.
    - `model_megabytes`: size of a model's weights.
    """

    training_minutes: Annotated[float, Field(gt=0)] | None = None
    retune_minutes: Annotated[float, Field(gt=0)] | None = None
    model_megabytes: Annotated[float, Field(gt=0)] | None = None


VARIABLE = r"^TUNER_NOTIFY_[A-Z0-9_]{1,100}$"
"""The names of environment variables that hold addresses for notifications."""


def is_variable(text: str) -> bool:
    """Return whether a text names a variable; others are addresses, which contain secrets."""
    return re.fullmatch(VARIABLE, text) is not None and text != "TUNER_NOTIFY_ALLOW"


# studies stored by an earlier version may have addresses, so only study files are checked
Variable: TypeAlias = Annotated[str, Field(json_schema_extra={"pattern": VARIABLE})]


class ReceiversTable(Table):
    """Receivers of notifications.

    Addresses contain secrets and are not stored. An environment variable of the process that
    sends holds one, or the same variable with the suffix `_FILE` names a file that does.
    """

    webhook: Variable | None = None
    apprise: Annotated[tuple[Variable, ...], Field(strict=False)] = ()

    @property
    def literals(self) -> list[str]:
        """The keys with a value that is not the name of a variable."""
        names = {"webhook": [self.webhook] if self.webhook is not None else []}
        names["apprise"] = list(self.apprise)
        return [key for key, found in names.items() if not all(map(is_variable, found))]


class NotifyTable(ReceiversTable):
    """Notifications about retrainings; addresses as in `ReceiversTable`.

    - `webhook`: variable with the address to which the output of `tuner retrain --json` is sent by
      POST, such as "TUNER_NOTIFY_WEBHOOK".
    - `apprise`: variables with Apprise URLs; they need the extra `notify`.
    - `on`: what to notify about: how retrainings ended, calls that were refused, that none has
      succeeded for `overdue_hours`, and what a person decided.
    """

    on: Annotated[
        tuple[
            Literal[
                "promoted", "kept", "failed", "refused", "overdue", "proposed", "canary",
                "rejected", "rolled_back",
            ],
            ...,
        ],
        Field(strict=False),
    ] = (
        "promoted", "kept", "failed", "refused", "overdue", "proposed", "canary", "rejected",
        "rolled_back",
    )  # fmt: skip


class StudyNotifyTable(ReceiversTable):
    """Notifications about the study; this table may change at any time. Addresses as above.

    - `webhook`: variable with the address to which a message is sent by POST.
    - `apprise`: variables with Apprise URLs; they need the extra `notify`.
    - `on`: what to notify about: the study has "ended"; it has "failed" (it stopped because its
      trials fail, or none completed); a "new_best" trial; a trial has "stalled"; "nobody_trains"
      although trials are left.
    - `silent_minutes`: minutes without a measurement, or without a worker, for these two.
    """

    on: Annotated[
        tuple[Literal["ended", "failed", "new_best", "stalled", "nobody_trains"], ...],
        Field(strict=False),
    ] = ("ended", "failed", "stalled", "nobody_trains")
    silent_minutes: Annotated[float, Field(ge=1, le=1e6)] = 15.0


NOT_STORED = (
    "the name of an environment variable that holds the address, such as "
    '"TUNER_NOTIFY_WEBHOOK", because addresses contain secrets'
)


class RetrainTable(Table):
    """How the successor of the champion is trained; this table may change at any time.

    - `model`: the name in MLflow's registry; by default the study's name, with dots for slashes.
    - `factory`: the factory with the fresh data, as in `[workload]`; by default the study's.
    - `key_argument`: the factory's argument that gets the run key, such as a date.
    - `key_format`: the format of run keys as times, such as "%Y-%m-%d"; a timetable's keys are in
      its own time zone. By default a timetable's key is the tick's time in UTC.
    - `do`: "refit" trains the best parameters again; "retune" searches around them first; "auto"
      refits, and retunes if the refit's value is worse than the champion's by more than
      `shortfall`, a fraction of it.
    - `promote`: "manual" leaves a challenger that wins to a person, who promotes it with `tuner
      approve` or not with `tuner reject`.
    - `canary_hours`: hours for which a challenger that wins has the alias `canary` before it is
      promoted; `tuner reject`, or newer data on which it is worse, end that. By default none.
    - `overdue_hours`: hours without a successful retraining after which one is
      overdue, which is notified and counted for alerts; by default never.
    - `trials`: the budget of a retune.
    - `around`: the range of a retune's rates, as a factor below and above the champion's rate.
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
    key_format: Annotated[
        str | None,
        Field(
            pattern=r"^[^%\s]*%Y[^%\s]*(%[mdHMSj][^%\s]*)*$",
            description="a format of times without spaces, of %Y and then any of %m, %d, %j, "
            '%H, %M and %S, such as "%Y-%m-%d"',
        ),
    ] = None
    key_argument: Annotated[
        str | None, Field(pattern=r"^[A-Za-z_]\w*$", description="the name of an argument")
    ] = None
    do: Literal["refit", "retune", "auto"] = "refit"
    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    around: Annotated[float, Field(gt=1)] = 10.0
    shortfall: Annotated[float, Field(ge=0)] = 0.1
    data: DataTable = DataTable()
    promote: Literal["auto", "manual"] = "auto"
    canary_hours: Annotated[float, Field(gt=0, le=1e6)] | None = None
    overdue_hours: Annotated[float, Field(gt=0, le=1e6)] | None = None
    gate: GateTable = GateTable()
    limits: LimitsTable = LimitsTable()
    notify: NotifyTable = NotifyTable()
