"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from tuner.core.executors import EXECUTORS
from tuner.operations.context import PREFIXES, whole_name

Command = TypeVar("Command", bound=Callable[..., Any])


class StudyName(click.ParamType[str]):
    """The name of a study, which is of the project of `TUNER_PROJECT` if it has no slash."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the whole name."""
        return whole_name(value)


def with_json(command: Command) -> Command:
    """Add the option --json."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print one JSON object on standard output, everything else on standard error.",
    )(command)


def with_log(command: Command) -> Command:
    """Add the option --log."""
    return click.option(
        "--log",
        type=click.Choice(["json", "text"]),
        help="Log format on standard error; by default text on a terminal, else JSON.",
    )(command)


def with_metrics(command: Command) -> Command:
    """Add the options --metrics-port, --metrics-host and --metrics-studies."""
    port = click.option(
        "--metrics-port",
        type=click.IntRange(0, 65535),
        envvar="TUNER_METRICS_PORT",
        help="Port of /metrics, /healthz and /readyz; 0 picks a free port; disabled if unset.",
    )
    host = click.option(
        "--metrics-host",
        default="127.0.0.1",
        show_default=True,
        envvar="TUNER_METRICS_HOST",
        help="Address of the metrics endpoint.",
    )
    studies = click.option(
        "--metrics-studies",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        envvar="TUNER_METRICS_STUDIES",
        help="How many studies metrics name, with spend and best value; with 0 they have no names.",
    )
    return port(host(studies(command)))


def with_parent(command: Command) -> Command:
    """Add the option --parent, which our programs pass to the programs that they start."""
    return click.option(
        "--parent",
        type=click.IntRange(1),
        metavar="PID",
        hidden=True,
        help="End after the parent process, which has this number.",
    )(command)


def with_set(command: Command) -> Command:
    """Add the option --set."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a value of the study file, such as budget.trials=20; repeatable.",
    )(command)


class _Words(click.ParamType[str]):
    """The first words of a command; several in a variable are separated by semicolons."""

    name = "words"
    envvar_list_splitter = ";"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the entry of allowed prefixes."""
        from tuner.training.programs import permission

        return permission.permission(value)


def with_allow(command: Command) -> Command:
    """Add the options --allow and --allow-command; both are passed as `prefixes`."""

    @functools.wraps(command)
    def merged(*args: Any, prefixes: tuple[str, ...], words: tuple[str, ...], **rest: Any) -> Any:
        return command(*args, prefixes=(*prefixes, *words), **rest)

    commands = click.option(
        "--allow-command",
        "words",
        multiple=True,
        type=_Words(),
        envvar="TUNER_ALLOW_COMMANDS",
        metavar="WORDS",
        help="First words of commands that may be run, such as 'python train.py'; repeatable.",
    )(merged)
    modules = click.option(
        "--allow",
        "prefixes",
        multiple=True,
        default=PREFIXES,
        show_default=True,
        envvar="TUNER_ALLOW",
        metavar="PREFIX",
        help="Prefix of modules that may be imported as workloads; repeatable.",
    )(commands)
    return cast(Command, modules)


class _Shipped(click.ParamType[str]):
    """A digest or a login; several in a variable are separated by spaces."""

    name = "who"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the entry of allowed prefixes."""
        from tuner.training import shipping

        return shipping.permission(value)


def with_allow_shipped(command: Command) -> Command:
    """Add the option --allow-shipped, which is passed with the `prefixes` of `with_allow`."""

    @functools.wraps(command)
    def merged(*args: Any, prefixes: tuple[str, ...], shipped: tuple[str, ...], **rest: Any) -> Any:
        return command(*args, prefixes=(*prefixes, *shipped), **rest)

    option = click.option(
        "--allow-shipped",
        "shipped",
        multiple=True,
        type=_Shipped(),
        envvar="TUNER_ALLOW_SHIPPED",
        metavar="WHO",
        help="Run code that `tuner submit --ship` has stored, of this SHA-256 or by this login of "
        "the database; repeatable.",
    )
    return cast(Command, option(merged))


def with_yes(command: Command) -> Command:
    """Add the option --yes."""
    return click.option(
        "--yes", is_flag=True, help="Do it even if somebody else has submitted the study."
    )(command)


def with_settings(command: Command) -> Command:
    """Add the option --cluster, which is passed as `settings`."""
    return click.option(
        "--cluster",
        "settings",
        type=click.Path(path_type=Path),
        envvar="TUNER_CLUSTER",
        metavar="FILE",
        help="Settings of executors; by default cluster.toml, if it is in the current folder.",
    )(command)


def with_executor(command: Command) -> Command:
    """Add the options --executor and --cluster."""
    return click.option(
        "--executor",
        type=click.Choice(EXECUTORS),
        default=EXECUTORS[0],
        show_default=True,
        help="Where workers are started: as processes of this machine, or by an engine.",
    )(with_settings(command))


def with_reason(command: Command) -> Command:
    """Add the option --reason."""
    return click.option(
        "--reason", default="", help="Why, for the study's history (`tuner history`)."
    )(command)


def with_raise_budget(command: Command) -> Command:
    """Add the option --raise-budget."""
    return click.option(
        "--raise-budget",
        is_flag=True,
        help="Allow so many more trials if the budget is spent.",
    )(command)
