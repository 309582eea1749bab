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
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

from tuner.analysis import ranking
from tuner.config import ParameterValue, StudySpec, building, cluster, reading
from tuner.config.building import Budget
from tuner.config.cluster import ClusterSpec
from tuner.core import executors, startup
from tuner.core.errors import UnavailableError, UsageError
from tuner.ledger import Ledger, StudyRecord
from tuner.ledger.database import Addresses
from tuner.operations import context
from tuner.report import terminal

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from tuner.operations.ask import AskedTrial, Asker
    from tuner.operations.branch import Branches
    from tuner.operations.confirm import Confirmation
    from tuner.operations.extend import Extension
    from tuner.operations.rerun import Rerun
    from tuner.operations.run import Ended
    from tuner.training.capture import Captured

Settings: TypeAlias = Mapping[str, Mapping[str, Any]] | str | os.PathLike[str] | None
"""Settings of executors: tables, or the path of a file; None: `cluster.toml`, if it is there."""


def run(
    file: str | Path,
    *,
    overrides: Mapping[str, object] | Sequence[str] = (),
    allow: Sequence[str] = context.PREFIXES,
    progress: bool = True,
    yes: bool = False,
    workers: int = 1,
    executor: str = executors.LOCAL,
    settings: Settings = None,
) -> Study:
    """Submit a study file, train its trials in this process, and return the study.

    With several `workers`, or another `executor`, such as "slurm", processes of their own train
    it. `settings` are the tables of a cluster file, or its path; by default `cluster.toml`.

    `overrides` changes values of the file: `{"budget.trials": 20}`, or `["budget.trials=20"]` as
    for `--set`. Call it again to resume. Ctrl-C raises `KeyboardInterrupt` after the running trial
    is saved. `yes` changes a study of somebody else too. Raise `StudyFileError` with every mistake
    of the file, `UsageError` if `file` is not a path, and `UnavailableError` if everything is
    trained but not everything could be published.
    """
    from tuner.operations import ownership, run  # noqa: PLC0415 - it imports torch

    if not isinstance(file, str | os.PathLike):
        raise UsageError(
            f"tuner.run: expected the path of a study file, got a {type(file).__name__}; write the "
            "study into a TOML file, and change its values for a run with overrides"
        )
    startup.configure_libraries()
    spec = reading.load(Path(file), _texts(overrides), context.project())
    ran = run.run(
        spec,
        allow,
        workers=workers,
        executor=executor,
        settings=_settings(settings),
        console=_console(progress),
        ask=ownership.asking(yes=yes),
    )
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

    A study may be written in Python instead of a file:

        def train(trial, hidden):
            ...

        study = tuner.Study(
            "mine",
            train=train,
            space={"lr": tuner.log(1e-5, 1), "schedule": ["cosine", "wsd"]},
            budget=tuner.Budget(trials=40, steps=500),
        )
        study.run(workers=2)
    """

    def __init__(
        self,
        name: str,
        *,
        train: Callable[..., object] | str | None = None,
        factory: Callable[..., object] | str | None = None,
        arguments: Mapping[str, Any] | None = None,
        space: Mapping[str, Any] | None = None,
        budget: Budget | None = None,
        metric: str | None = None,
        direction: str | None = None,
        objectives: Sequence[Mapping[str, str]] | None = None,
        constraints: Sequence[str] | None = None,
        seed: int | None = None,
        description: str | None = None,
        training: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
        guard: Mapping[str, Any] | None = None,
        probe: Mapping[str, Any] | None = None,
        retrain: Mapping[str, Any] | None = None,
        notify: Mapping[str, Any] | None = None,
    ) -> None:
        """Name a study of the database, or write one; nothing is created before `run` or `ask`.

        The arguments are the tables and keys of a study file. `train` or `factory` is a function,
        or its name as in a file. One that lives in a script or a notebook is written with what it
        uses into a module in the folder `studies` when the study is submitted, so that workers
        have it too. In `space`, a value is a fixed value, a list of choices, or a range
        (`tuner.log`, `tuner.floats`, `tuner.ints`). `search["sampler"]` may be a class of Optuna's
        kind. Without a function, `ask` returns the trials, and you train them.

        Raise `StudyFileError` with every mistake, and `WorkloadError` if a function uses what no
        worker could get.
        """
        self.name = name
        self._opening = Lock()
        self._opened: tuple[Ledger, Addresses] | None = None
        self._spec: StudySpec | None = None  # as written in Python
        self._document: dict[str, Any] = {}
        self._captured: Captured | None = None
        self._allowed: tuple[str, ...] = ()  # the module of its function
        self._asker: Asker | None = None
        written = (
            train, factory, arguments, space, budget, metric, direction, objectives,
            constraints, seed, description, training, search, guard, probe, retrain, notify,
        )  # fmt: skip
        if all(one is None for one in written):
            return
        of_budget = {} if budget is None else budget.tables()
        named: dict[str, Any] = {
            "train": self._named(train),
            "factory": self._named(factory),
            "arguments": dict(arguments or {}),
        }
        of_trial = {**of_budget.get("training", {}), **(training or {})}
        if train is None and factory is None:
            named["ask_and_tell"] = True
            if not of_trial:  # nothing is reported on the way, so nothing is pruned
                of_trial, search = {"steps": 1}, {"pruner": "none", **(search or {})}
        about = {
            "name": name,
            "description": description,
            "seed": seed,
            "metric": metric,
            "direction": direction,
            "objectives": objectives,
            "constraints": constraints,
        }
        tables: dict[str, Mapping[str, Any] | None] = {
            "study": about,
            "workload": named,
            "training": of_trial,
            "space": building.space_table(space or {}, own_loop=factory is None),
            "search": self._searched(search),
            "guard": guard,
            "probe": probe,
            "budget": of_budget.get("budget"),
            "retrain": retrain,
            "notify": notify,
        }
        for key, table in tables.items():
            kept = {k: v for k, v in (table or {}).items() if v is not None and v != {}}
            if kept or key == "training":
                self._document[key] = kept
        self._spec = reading.parse(building.toml(self._document), f"tuner.Study({name!r})")

    @classmethod
    def _of(cls, name: str, ledger: Ledger, places: Addresses) -> Study:
        study = cls(name)
        study._keep(ledger, places)
        return study

    def close(self) -> None:
        """Close the connections to the database.

        Trials that were asked for and not told are left to the next ask, and the rest is published.
        """
        asker, self._asker = self._asker, None
        if asker is not None:
            self._close_asker()
        with self._opening:
            if self._opened is not None:
                self._opened = None
                self._dispose()

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _named(self, function: Callable[..., object] | str | None) -> str | None:
        """Return the name of a function as a study file has it."""
        if function is None or isinstance(function, str):
            return function
        from tuner.training import capture  # noqa: PLC0415

        if capture.must_be_captured(function):
            self._captured = capture.capture(function, self.name)
            return self._captured.name
        self._allowed += (f"{function.__module__}.",)
        return f"{function.__module__}:{function.__name__}"

    def _searched(self, search: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return the table `search`, with the name of a sampler that is a class or a function."""
        sampler = (search or {}).get("sampler")
        if search is None or not callable(sampler):
            return search
        self._allowed += (f"{sampler.__module__}.",)
        return {**search, "sampler": f"{sampler.__module__}:{sampler.__name__}"}

    @property
    def spec(self) -> StudySpec:
        """The study's specification, including defaults."""
        return self._read()[1].spec if self._spec is None else self._spec

    def to_toml(self, file: str | Path | None = None) -> str:
        """Return the text of the study file, and write it, with a captured function, if asked.

        That of a study of the database has all values that differ from the defaults.
        """
        document = self._document or self.spec.model_dump(
            mode="json", exclude_none=True, exclude_defaults=True
        )
        text = building.toml(document)
        if file is not None:
            Path(file).write_text(text, encoding="utf-8")
            self._write_captured()
        return text

    def _write_captured(self) -> None:
        if self._captured is not None:
            self._captured.write(Path.cwd())

    def _prefixes(self, allow: Sequence[str] | None) -> tuple[str, ...]:
        """Return the prefixes of modules that may be imported."""
        return (*(context.PREFIXES if allow is None else allow), *self._allowed)

    def status(self) -> dict[str, Any]:
        """Return what `tuner status --json` prints: state, counts, budget, best, workers."""
        from tuner.operations import status  # noqa: PLC0415

        return status.status(*self._read())

    def best(self) -> dict[str, Any] | None:
        """Return number, value, params and run_id of the best completed trial, or None."""
        from tuner.operations import best  # noqa: PLC0415

        return best.best(*self._read())

    def front(self) -> list[dict[str, Any]]:
        """Return the trials on the front: number, values, params and run_id; none of one objective.

        No other trial is better in one objective and as good in all others.
        """
        from tuner.operations import best  # noqa: PLC0415

        return list(best.front(*self._read()).get("front", []))

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

    def run(
        self,
        *,
        workers: int = 1,
        executor: str = executors.LOCAL,
        settings: Settings = None,
        allow: Sequence[str] | None = None,
        progress: bool = True,
        yes: bool = False,
    ) -> Study:
        """Train what is left of the study, in this process or in `workers` of an executor.

        A study that is written in Python is submitted first. Call it again to resume. Ctrl-C raises
        `KeyboardInterrupt` after the running trials are saved. `yes` changes the budget of a study
        of somebody else too. Raise `UnavailableError` if everything is trained but not everything
        could be published.
        """
        from tuner.operations import ownership, run  # noqa: PLC0415 - it imports torch

        console, prefixes = _console(progress), self._prefixes(allow)
        if self._spec is None:
            ledger, study = self._read()
            ended = run.train_study(
                ledger,
                self._places(),
                study,
                prefixes,
                workers=workers,
                executor=executor,
                settings=_settings(settings),
                console=console,
            )
        else:
            startup.configure_libraries()
            self._write_captured()
            ran = run.run(
                self._spec,
                prefixes,
                workers=workers,
                executor=executor,
                settings=_settings(settings),
                console=console,
                ask=ownership.asking(yes=yes),
            )
            with self._opening:
                if self._opened is None:
                    self._keep(ran.ledger, ran.places)
                else:
                    ran.ledger.engine.dispose()
            ended = ran.ended
        _raise_unless_done(ended, self.name)
        return self

    def start_workers(
        self,
        workers: int = 1,
        *,
        executor: str = executors.LOCAL,
        settings: Settings = None,
        allow: Sequence[str] | None = None,
        recorder: bool = True,
    ) -> dict[str, Any]:
        """Start workers that train a submitted study until nothing is left, and return at once.

        They go on when this process has ended. Return their executor, launch and handles.
        """
        from tuner.operations import workers as operations  # noqa: PLC0415

        return operations.start(
            self._ledger(),
            self._places(),
            _settings(settings),
            self.name,
            workers=workers,
            executor=executor,
            prefixes=self._prefixes(allow),
            recorder=recorder,
        )

    def workers(self, *, ended: bool = False, settings: Settings = None) -> list[dict[str, Any]]:
        """Return the workers that were started for the study, from any machine, with their states.

        Those of launches that have ended are left out, unless asked for.
        """
        from tuner.operations import workers as operations  # noqa: PLC0415

        found = operations.listed(
            self._ledger(), self._places(), _settings(settings), self.name, ended=ended
        )
        return list(found["workers"])

    def stop_workers(self, *, settings: Settings = None) -> dict[str, Any]:
        """Let all workers that were started for the study save their trials and end."""
        from tuner.operations import workers as operations  # noqa: PLC0415

        return operations.stop(self._ledger(), self._places(), _settings(settings), self.name)

    def worker_logs(self, handle: str, *, settings: Settings = None) -> str:
        """Return the end of the log of one worker, as `workers` names it."""
        from tuner.operations import workers as operations  # noqa: PLC0415

        return operations.logs(
            self._ledger(), self._places(), _settings(settings), self.name, handle
        )

    def ask(self) -> AskedTrial | None:
        """Return the next trial of a study without a function, or None if its budget is spent.

        The trial is yours under a lease, which is renewed while you keep the object. If you drop it
        or the process dies, the lease expires and the next `ask`, in any process, returns the
        trial again. Report to it as you train, and `tell` its value:

            study = tuner.Study("mine", space=space, budget=tuner.Budget(trials=40))
            while trial := study.ask():
                study.tell(trial, evaluate(**trial.params))
        """
        return self._asking().ask()

    def tell(
        self,
        trial: AskedTrial,
        value: float | None = None,
        *,
        failed: str | BaseException | None = None,
    ) -> str:
        """End a trial with its value, or as failed; return how it ended, see `AskedTrial.tell`."""
        return trial.tell(value, failed=failed)

    def _asking(self) -> Asker:
        """Return what asks for trials; submit a study that is written in Python at first."""
        if self._asker is None:
            from tuner.operations import ask  # noqa: PLC0415 - it imports torch

            startup.configure_libraries()
            if self._spec is not None:
                with self._opening:
                    if self._opened is None:
                        self._keep(context.open_ledger(create=True), context.addresses())
                study = ask.submitted(self._ledger(), self._spec)
            else:
                study = self._read()[1]
            self._asker = ask.Asker(
                self._ledger(), self._places(), study, prefixes=self._prefixes(None)
            )
            self._close_asker = weakref.finalize(self, self._asker.close)
        return self._asker

    def confirm(
        self,
        top: int = 3,
        seeds: int = 5,
        *,
        each: str | None = None,
        allow: Sequence[str] | None = None,
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
            prefixes=self._prefixes(allow),
            console=_console(progress),
            each=each,
        )
        _raise_unless_done(done.ended, done.confirmation.trials.name)
        return done.confirmation

    def extend(
        self,
        numbers: int | Sequence[int],
        steps: int | None = None,
        *,
        epochs: int | None = None,
        examples: int | None = None,
        allow: Sequence[str] | None = None,
        progress: bool = True,
        reason: str = "",
    ) -> Extension:
        """Train trials by so many more steps, as trials of a study with a longer horizon.

        Count in `epochs` or `examples` if the study does.
        """
        from tuner.operations import extend  # noqa: PLC0415 - it imports torch

        ledger, study = self._read()
        done = extend.extend(
            ledger,
            self._places(),
            study,
            [numbers] if isinstance(numbers, int) else numbers,
            more={"steps": steps, "epochs": epochs, "examples": examples},
            prefixes=self._prefixes(allow),
            console=_console(progress),
            reason=reason,
        )
        _raise_unless_done(done.ended, done.study.name)
        return done

    def branch(
        self,
        number: int,
        at: int | Sequence[int],
        *,
        decay: float | None = None,
        shape: str | None = None,
        allow: Sequence[str] | None = None,
        progress: bool = True,
        reason: str = "",
    ) -> Branches:
        """Train a trial with a decay at each horizon in `at`, all from one stem.

        The trial's schedule is constant or wsd, whose `decay` and `shape` are its own, or 0.2 and
        "1-sqrt". Count horizons in the unit of the study's budget of a trial.
        """
        from tuner.operations import branch  # noqa: PLC0415 - it imports torch

        ledger, study = self._read()
        done = branch.branch(
            ledger,
            self._places(),
            study,
            number,
            at=[at] if isinstance(at, int) else at,
            decay=decay,
            shape=shape,
            prefixes=self._prefixes(allow),
            console=_console(progress),
            reason=reason,
        )
        _raise_unless_done(done.ended, done.branches[-1].study.name)
        return done

    def rerun(self, number: int, *, allow: Sequence[str] | None = None) -> Rerun:
        """Train one trial again and compare its curve, bit by bit. Write nothing."""
        from tuner.operations import rerun  # noqa: PLC0415 - it imports torch

        return rerun.rerun(*self._read(), number, self._prefixes(allow))

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

    def history(self) -> list[dict[str, Any]]:
        """Return who did what to the study, when and why, oldest first."""
        from tuner.operations import history  # noqa: PLC0415

        return history.history(self._ledger(), self.name)

    def enqueue(
        self,
        params: Mapping[str, ParameterValue],
        *,
        raise_budget: bool = False,
        reason: str = "",
        yes: bool = False,
    ) -> dict[str, Any]:
        """Add a trial with these parameters; those left out are drawn. Return its number and more.

        `study.enqueue({"lr": 0.01, "schedule": "cosine"})`. The next claim takes it, before the
        sampler draws any. Raise `UsageError` if the budget is spent and is not to be raised.
        """
        from tuner.operations import enqueue  # noqa: PLC0415

        return enqueue.enqueue(
            self._own(yes=yes), self.name, params, raise_budget=raise_budget, reason=reason
        )

    def retry(
        self,
        numbers: int | Sequence[int] = (),
        *,
        failed: bool = False,
        raise_budget: bool = False,
        reason: str = "",
        yes: bool = False,
    ) -> dict[str, Any]:
        """Add a trial with the parameters of each of these failed trials, or of all of them.

        None is retried twice. Return their numbers.
        """
        from tuner.operations import retry  # noqa: PLC0415

        chosen = [numbers] if isinstance(numbers, int) else numbers
        return retry.retry(
            self._own(yes=yes),
            self.name,
            chosen,
            failed=failed,
            raise_budget=raise_budget,
            reason=reason,
        )

    def pause(self, reason: str = "", *, yes: bool = False) -> dict[str, Any]:
        """Start no more trials; running ones continue to their end. Return the status."""
        from tuner.operations import manage  # noqa: PLC0415

        return manage.pause(self._own(yes=yes), self.name, reason)

    def resume(self, reason: str = "", *, yes: bool = False) -> dict[str, Any]:
        """Reopen the study after a pause or a stop. Return the status."""
        from tuner.operations import manage  # noqa: PLC0415

        return manage.resume(self._own(yes=yes), self.name, reason)

    def stop(self, reason: str = "", *, yes: bool = False) -> dict[str, Any]:
        """Cancel the running and waiting trials, and start no more. Return the status."""
        from tuner.operations import manage  # noqa: PLC0415

        return manage.stop(self._own(yes=yes), self._places(), self.name, reason)

    def delete(self, *, force: bool = False, reason: str = "", yes: bool = False) -> None:
        """Delete the study from ledger, Optuna, MLflow, and its checkpoints, without asking.

        Raise `UsageError` while workers train it, unless forced.
        """
        from tuner.operations import manage  # noqa: PLC0415

        ledger = self._own(yes=yes)
        manage.delete(ledger, self._places(), self.name, force=force, reason=reason)

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

    def _own(self, *, yes: bool) -> Ledger:
        """Return the ledger to change the study. Raise `UsageError` if it is somebody else's."""
        from tuner.operations import ownership  # noqa: PLC0415

        ledger = self._ledger()
        ownership.check(ledger, self.name, ownership.asking(yes=yes))
        return ledger

    def _places(self) -> Addresses:
        return self._open()[1]

    def _read(self) -> tuple[Ledger, StudyRecord]:
        ledger = self._ledger()
        return ledger, ledger.study(self.name)


def _settings(given: Settings) -> ClusterSpec:
    """Return the settings of executors. Raise `StudyFileError` with every mistake."""
    if given is None or isinstance(given, str | os.PathLike):
        return cluster.load(None if given is None else Path(given))
    return cluster.parse(building.toml(given), "settings")


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
        return [f"{key}={building.toml_value(value)}" for key, value in overrides.items()]
    return [overrides] if isinstance(overrides, str) else list(overrides)


def _text(value: object) -> str:
    return html.escape(str(value))
