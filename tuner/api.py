"""The command line's commands as Python: `tuner.run`, `tuner.load`, and a `Study`.

It finds database and tracking as the command line does: by environment and working directory, at
each call. It works in any thread and in a notebook; only in the main thread does Ctrl-C (a
notebook's interrupt) save the running trial first.
"""

from __future__ import annotations

import html
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.analysis import ranking
from tuner.config import StudySpec, reading
from tuner.core.errors import UsageError
from tuner.ledger import Ledger, StudyRecord
from tuner.operations import context
from tuner.operations import status as summary
from tuner.report import terminal

if TYPE_CHECKING:
    import pandas as pd

    from tuner.operations.confirm import Confirmation
    from tuner.operations.rerun import Rerun


def run(
    file: str | Path,
    *,
    overrides: Mapping[str, object] | Sequence[str] = (),
    allow: Sequence[str] = context.PREFIXES,
    progress: bool = True,
) -> Study:
    """Submit a study file, train its trials here, and give the study.

    `overrides` changes values of the file: `{"budget.trials": 20}`, or `["budget.trials=20"]` as
    for `--set`. Run again, it goes on where it was; Ctrl-C raises `KeyboardInterrupt` after the
    running trial is saved. Raises `StudyFileError` with every mistake of the file, `UsageError`
    when what is given is no path, and `UnavailableError` when all is trained but not all could be
    published.
    """
    from tuner.operations import submit  # noqa: PLC0415 - it imports torch

    if not isinstance(file, str | os.PathLike):
        raise UsageError(
            f"tuner.run: expected the path of a study file, got a {type(file).__name__}; write the "
            "study into a TOML file, and change its values for a run with overrides"
        )
    spec = reading.load(Path(file), _texts(overrides))
    described = submit.prepare(spec, allow)
    ledger = context.ledger(create=True)
    study, _ = submit.submit(ledger, spec, described)
    _train(ledger, study, allow, progress)
    return Study(study.name)


def load(name: str) -> Study:
    """Give the study of a name. Raises `NotFoundError`."""
    context.ledger().study(name)
    return Study(name)


def studies() -> list[Study]:
    """Give all studies of the database, oldest first."""
    return [Study(one.name) for one in context.ledger().studies()]


class Study:
    """A study in the database. It keeps only its name: every answer is as of now."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def spec(self) -> StudySpec:
        """The study's specification, defaults filled in."""
        return self._read()[1].spec

    def status(self) -> dict[str, Any]:
        """Give what `tuner status --json` prints: state, counts, budget, best, workers."""
        return summary.of_state(*self._read())

    def best(self) -> dict[str, Any] | None:
        """Give the best completed trial: number, value, params, run_id; None if there is none."""
        return summary.of_best(*self._read())

    def trials(self) -> pd.DataFrame:
        """Give one row a trial: number, state, value, reason, steps, seconds, and `params_…`."""
        from tuner.operations import export as exporting  # noqa: PLC0415 - it imports pandas

        return exporting.trials(*self._read())

    def curves(self, numbers: int | Collection[int] | None = None) -> pd.DataFrame:
        """Give one row a measured value: trial, step, metric, value, time; of all trials or some.

        `curves(3).pivot(index="step", columns="metric", values="value")` is a table by step.
        """
        from tuner.operations import export as exporting  # noqa: PLC0415 - it imports pandas

        chosen = [numbers] if isinstance(numbers, int) else numbers
        return exporting.curves(*self._read(), chosen)

    def run(self, *, allow: Sequence[str] = context.PREFIXES, progress: bool = True) -> Study:
        """Train what is left of the study here."""
        ledger, study = self._read()
        _train(ledger, study, allow, progress)
        return self

    def confirm(
        self,
        top: int = 3,
        seeds: int = 5,
        *,
        allow: Sequence[str] = context.PREFIXES,
        progress: bool = True,
    ) -> Confirmation:
        """Train the best trials again under new seeds that they share, and compare in pairs."""
        from tuner.operations import confirm as confirming  # noqa: PLC0415 - it imports scipy

        ledger, study = self._read()
        again = confirming.submit(ledger, study, top=top, seeds=seeds)
        _train(ledger, again, allow, progress)
        return confirming.compare(ledger, study, ledger.study(again.name), seeds)

    def rerun(self, number: int, *, allow: Sequence[str] = context.PREFIXES) -> Rerun:
        """Train one trial again and compare it with its curve, bit by bit. Writes nothing."""
        from tuner.operations import rerun as rerunning  # noqa: PLC0415 - it imports torch

        return rerunning.rerun(*self._read(), number, allow)

    def export(self, to: str | Path, file_format: str = "csv") -> dict[str, Path]:
        """Write the tables of trials and curves into a folder; give their files."""
        from tuner.operations import export as exporting  # noqa: PLC0415 - it imports pandas

        return exporting.export(*self._read(), Path(to), file_format)

    def report(self, to: str | Path | None = None) -> Path:
        """Write the report into a folder, and beside the study's run; give its page."""
        from tuner.operations import report as reporting  # noqa: PLC0415 - it imports mlflow

        ledger, study = self._read()
        folder = None if to is None else Path(to)
        return reporting.report(ledger, [study], context.places(), to=folder).written.page

    def pause(self) -> dict[str, Any]:
        """Let no more trials be taken up; running ones go on to their end. Give the status."""
        from tuner.operations import manage  # noqa: PLC0415

        return manage.pause(context.ledger(), self.name)

    def resume(self) -> dict[str, Any]:
        """Open the study again after a pause or a stop. Give the status."""
        from tuner.operations import manage  # noqa: PLC0415

        return manage.resume(context.ledger(), self.name)

    def stop(self, reason: str = "") -> dict[str, Any]:
        """Cancel the running and waiting trials, and take up no more. Give the status."""
        from tuner.operations import manage  # noqa: PLC0415

        return manage.stop(context.ledger(), context.places(), self.name, reason)

    def delete(self, *, force: bool = False) -> None:
        """Delete the study from ledger, Optuna, MLflow, and its checkpoints; it does not ask.

        Raises `UsageError` while somebody trains it, unless forced.
        """
        from tuner.operations import manage  # noqa: PLC0415

        manage.delete(context.ledger(), context.places(), self.name, force=force)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Study) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"tuner.load({self.name!r})"

    def _repr_html_(self) -> str:
        """Show the study in a notebook: how it stands, and its best ten trials."""
        ledger, study = self._read()
        state = summary.of_state(ledger, study)
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
        said = "<br>".join(line for line in lines if line)
        return f"<div>{said}<table><tr>{head}</tr>{body}</table></div>"

    def _read(self) -> tuple[Ledger, StudyRecord]:
        ledger = context.ledger()
        return ledger, ledger.study(self.name)


def _train(ledger: Ledger, study: StudyRecord, allow: Sequence[str], progress: bool) -> None:
    from tuner.core.errors import UnavailableError  # noqa: PLC0415
    from tuner.operations import run as running  # noqa: PLC0415 - it imports torch

    with _shown(ledger, study, progress):
        todo = running.Work(names=(study.name,), prefixes=tuple(allow), until_idle=True)
        ended = running.train(ledger, context.places(), todo, recorder=True)
    if ended.interrupted:
        raise KeyboardInterrupt
    if not ended.published:
        raise UnavailableError(
            f"study {study.name!r} is trained and safe in the ledger, but not all of it is "
            "published; `tuner recorder --once` publishes the rest"
        )


@contextmanager
def _shown(ledger: Ledger, study: StudyRecord, progress: bool) -> Iterator[None]:
    if not progress:
        yield
        return
    from tuner.report import progress as watching  # noqa: PLC0415

    with watching.show_progress(terminal.console(), ledger, study):
        yield


def _texts(overrides: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Give overrides as `--set` has them."""
    if isinstance(overrides, Mapping):
        return [f"{key}={_toml(value)}" for key, value in overrides.items()]
    return [overrides] if isinstance(overrides, str) else list(overrides)


def _toml(value: object) -> str:
    """Write a value as TOML has it."""
    if hasattr(value, "item"):  # a number of numpy's
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
