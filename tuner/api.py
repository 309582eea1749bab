"""The commands of the command line as Python functions: `tuner.run`, `tuner.load`, and a `Study`.

Database and tracking server are found as by the command line, from the environment and the working
directory, when a function is called. A `Study` keeps the database that it was loaded from. It works
in any thread and in a notebook. In the main thread, Ctrl-C (a notebook's interrupt) saves the
running trial first.
"""

from __future__ import annotations

import html
import os
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from tuner.analysis import ranking
from tuner.config import StudySpec, reading
from tuner.core import startup
from tuner.core.errors import UnavailableError, UsageError
from tuner.ledger import Ledger, StudyRecord
from tuner.ledger.database import Addresses
from tuner.operations import context
from tuner.report import terminal

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from tuner.operations.confirm import Confirmation
    from tuner.operations.rerun import Rerun
    from tuner.operations.run import Ended


def run(
    file: str | Path,
    *,
    overrides: Mapping[str, object] | Sequence[str] = (),
    allow: Sequence[str] = context.PREFIXES,
    progress: bool = True,
) -> Study:
    """Submit a study file, train its trials in this process, and return the study.

    `overrides` changes values of the file: `{"budget.trials": 20}`, or `["budget.trials=20"]` as
    for `--set`. Call it again to resume. Ctrl-C raises `KeyboardInterrupt` after the running trial
    is saved. Raise `StudyFileError` with every mistake of the file, `UsageError` if `file` is not a
    path, and `UnavailableError` if everything is trained but not everything could be published.
    """
    from tuner.operations import run  # noqa: PLC0415 - it imports torch

    if not isinstance(file, str | os.PathLike):
        raise UsageError(
            f"tuner.run: expected the path of a study file, got a {type(file).__name__}; write the "
            "study into a TOML file, and change its values for a run with overrides"
        )
    startup.configure_libraries()
    spec = reading.load(Path(file), _texts(overrides))
    ran = run.run(spec, allow, console=_console(progress))
    study = Study._of(ran.study.name, ran.ledger, ran.places)
    _raise_unless_done(ran.ended, study.name)
    return study


def load(name: str) -> Study:
    """Return the study of a name. Raise `NotFoundError`."""
    study = Study(name)
    study._read()
    return study


def studies() -> list[Study]:
    """Return all studies of the database, oldest first."""
    startup.configure_libraries()
    ledger = context.open_ledger()
    try:
        return [Study(one.name) for one in ledger.studies()]
    finally:
        ledger.engine.dispose()


class Study:
    """A study in the database; every answer is read from it at the time of the call.

    It opens the database once, at the first call, and closes it at `close`, at the end of a `with`
    block, or when the object is deleted. A call after `close` opens it again.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._opening = Lock()
        self._opened: tuple[Ledger, Addresses] | None = None

    @classmethod
    def _of(cls, name: str, ledger: Ledger, places: Addresses) -> Study:
        study = cls(name)
        study._keep(ledger, places)
        return study

    def close(self) -> None:
        """Close the connections to the database."""
        with self._opening:
            if self._opened is not None:
                self._opened = None
                self._dispose()

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def spec(self) -> StudySpec:
        """The study's specification, including defaults."""
        return self._read()[1].spec

    def status(self) -> dict[str, Any]:
        """Return what `tuner status --json` prints: state, counts, budget, best, workers."""
        from tuner.operations import status  # noqa: PLC0415

        return status.status(*self._read())

    def best(self) -> dict[str, Any] | None:
        """Return number, value, params and run_id of the best completed trial, or None."""
        from tuner.operations import best  # noqa: PLC0415

        return best.best(*self._read())

    def trials(self) -> pd.DataFrame:
        """Return one row per trial: number, state, value, reason, steps, seconds, `params_…`."""
        from tuner.operations import export  # noqa: PLC0415 - it imports pandas

        return export.trials(*self._read())

    def curves(self, numbers: int | Collection[int] | None = None) -> pd.DataFrame:
        """Return one row per measured value: trial, step, metric, value, time; of all or some.

        `curves(3).pivot(index="step", columns="metric", values="value")` is a table by step.
        """
        from tuner.operations import export  # noqa: PLC0415 - it imports pandas

        chosen = [numbers] if isinstance(numbers, int) else numbers
        return export.curves(*self._read(), chosen)

    def run(self, *, allow: Sequence[str] = context.PREFIXES, progress: bool = True) -> Study:
        """Train what is left of the study in this process."""
        from tuner.operations import run  # noqa: PLC0415 - it imports torch

        ledger, study = self._read()
        ended = run.train_study(ledger, self._places(), study, allow, console=_console(progress))
        _raise_unless_done(ended, self.name)
        return self

    def confirm(
        self,
        top: int = 3,
        seeds: int = 5,
        *,
        each: str | None = None,
        allow: Sequence[str] = context.PREFIXES,
        progress: bool = True,
    ) -> Confirmation:
        """Train the best trials again under shared new seeds, and compare them in pairs.

        With `each="schedule"`, train the best trial of each schedule, to decide between them.
        """
        from tuner.operations import confirm  # noqa: PLC0415 - it imports scipy

        ledger, study = self._read()
        done = confirm.confirm(
            ledger,
            self._places(),
            study,
            top=top,
            seeds=seeds,
            prefixes=allow,
            console=_console(progress),
            each=each,
        )
        _raise_unless_done(done.ended, done.confirmation.trials.name)
        return done.confirmation

    def rerun(self, number: int, *, allow: Sequence[str] = context.PREFIXES) -> Rerun:
        """Train one trial again and compare its curve, bit by bit. Write nothing."""
        from tuner.operations import rerun  # noqa: PLC0415 - it imports torch

        return rerun.rerun(*self._read(), number, allow)

    def export(self, to: str | Path, file_format: str = "csv") -> dict[str, Path]:
        """Write the tables of trials and curves into a folder. Return their files."""
        from tuner.operations import export  # noqa: PLC0415 - it imports pandas

        return export.export(*self._read(), Path(to), file_format)

    def report(self, to: str | Path | None = None) -> Path:
        """Write the report into a folder and upload it to the study's run. Return its page."""
        from tuner.operations import report  # noqa: PLC0415 - it imports mlflow

        ledger, study = self._read()
        folder = None if to is None else Path(to)
        return report.report(ledger, [study], self._places(), to=folder).written.page

    def pause(self) -> dict[str, Any]:
        """Start no more trials; running ones continue to their end. Return the status."""
        from tuner.operations import manage  # noqa: PLC0415

        return manage.pause(self._ledger(), self.name)

    def resume(self) -> dict[str, Any]:
        """Reopen the study after a pause or a stop. Return the status."""
        from tuner.operations import manage  # noqa: PLC0415

        return manage.resume(self._ledger(), self.name)

    def stop(self, reason: str = "") -> dict[str, Any]:
        """Cancel the running and waiting trials, and start no more. Return the status."""
        from tuner.operations import manage  # noqa: PLC0415

        return manage.stop(self._ledger(), self._places(), self.name, reason)

    def delete(self, *, force: bool = False) -> None:
        """Delete the study from ledger, Optuna, MLflow, and its checkpoints, without asking.

        Raise `UsageError` while workers train it, unless forced.
        """
        from tuner.operations import manage  # noqa: PLC0415

        manage.delete(self._ledger(), self._places(), self.name, force=force)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Study) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"tuner.load({self.name!r})"

    def _repr_html_(self) -> str:
        """Show the study in a notebook: its state and its best ten trials."""
        ledger, study = self._read()
        state = self.status()
        counts = f"{ranking.counts_in_words(state['trials'])} of {study.limit}"
        ranked = ranking.ranked(study, ledger.trials(study.id))[:10]
        lines = [
            f"<b>{_text(study.name)}</b>: {_text(state['state'])}, {_text(counts)}",
            _text(study.reason or ""),
            _text(ranking.best_in_words(study, ledger.best(study))),
        ]
        titles = ("trial", "parameters", "steps", study.spec.study.metric, "outcome", "why")
        head = "".join(f"<th>{_text(title)}</th>" for title in titles)
        rows = []
        for one in ranked:
            value = "" if one.value is None else f"{one.value:.4g}"
            short = ranking.in_short(one.params)
            cells = (one.number, short, one.steps, value, one.state, one.reason or "")
            rows.append("".join(f"<td>{_text(cell)}</td>" for cell in cells))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        text = "<br>".join(line for line in lines if line)
        return f"<div>{text}<table><tr>{head}</tr>{body}</table></div>"

    def __reduce__(self) -> tuple[type[Study], tuple[str]]:
        return Study, (self.name,)

    def _keep(self, ledger: Ledger, places: Addresses) -> tuple[Ledger, Addresses]:
        self._dispose = weakref.finalize(self, ledger.engine.dispose)
        self._opened = ledger, places
        return self._opened

    def _open(self) -> tuple[Ledger, Addresses]:
        with self._opening:
            if self._opened is not None:
                return self._opened
            startup.configure_libraries()
            return self._keep(context.open_ledger(), context.addresses())

    def _ledger(self) -> Ledger:
        return self._open()[0]

    def _places(self) -> Addresses:
        return self._open()[1]

    def _read(self) -> tuple[Ledger, StudyRecord]:
        ledger = self._ledger()
        return ledger, ledger.study(self.name)


def _console(progress: bool) -> Console | None:
    return terminal.console() if progress else None


def _raise_unless_done(ended: Ended, name: str) -> None:
    """Raise `KeyboardInterrupt` or `UnavailableError` unless all is trained and published."""
    if ended.interrupted:
        raise KeyboardInterrupt
    if not ended.published:
        raise UnavailableError(
            f"study {name!r} is trained and safe in the ledger, but not all of it is published; "
            "`tuner recorder --once` publishes the rest"
        )


def _texts(overrides: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Return overrides in the form of `--set`."""
    if isinstance(overrides, Mapping):
        return [f"{key}={_toml(value)}" for key, value in overrides.items()]
    return [overrides] if isinstance(overrides, str) else list(overrides)


def _toml(value: object) -> str:
    """Return a value in TOML."""
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        escaped = (
            f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 or c in '"\\' else c for c in value
        )
        return '"' + "".join(escaped) + '"'
    return repr(value)


def _text(value: object) -> str:
    return html.escape(str(value))
