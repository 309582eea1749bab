"""Progress of a study, read from the ledger: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tuner.analysis import ranking
from tuner.analysis.deciding import existing
from tuner.core import curves
from tuner.core.curves import Chunk
from tuner.core.errors import NotFoundError, UnavailableError, UnreadableError
from tuner.core.outcome import RUNNING
from tuner.ledger import Reader, StudyRecord, TrialRecord
from tuner.report import terminal
from tuner.report.redirection import redirect_output
from tuner.report.tables import STYLES, curve_width, fit_to_console, trial_row, trial_table

LIVE_PER_SECOND = 4
PLAIN_SECONDS = 0.5
HEADER_LINES = 6
SPEED_SECONDS = 600.0
"""Period over which speed is averaged to estimate the remaining time."""

log = logging.getLogger(__name__)


class StudyReader:
    """Reads a study's trials without their reports, and only those that changed."""

    def __init__(self, ledger: Reader, study: StudyRecord) -> None:
        self._ledger = ledger
        self.study = study
        self._revision = 0
        self._trials: dict[int, TrialRecord] = {}
        self._curves: dict[int, Chunk] = {}  # by number, only requested ones
        self._complete: set[int] = set()  # numbers of trials whose curve is complete
        self._deciding: StudyReader | None = None

    def refresh(self) -> list[TrialRecord]:
        """Read what changed; return the trials that ended since the last call.

        A study that was deleted does not change.
        """
        try:
            changes = self._ledger.changes(self.study.id, self._revision, with_reports=False)
        except NotFoundError:
            return []
        self._revision = changes.revision
        ended = [
            trial
            for trial in changes.trials
            if trial.state != RUNNING and self._was_running(trial.number)
        ]
        self._trials.update((trial.number, trial) for trial in changes.trials)
        return ended

    def _was_running(self, number: int) -> bool:
        return number not in self._trials or self._trials[number].state == RUNNING

    def trials(self) -> list[TrialRecord]:
        """Return all trials as last read, in the order of their numbers."""
        return [self._trials[number] for number in sorted(self._trials)]

    def curve(self, number: int) -> Chunk:
        """Return a trial's curve; read only its new part."""
        known, trial = self._curves.get(number, curves.empty()), self._trials[number]
        if number not in self._complete:
            try:
                fresh = self._ledger.curve(trial.id, known.next_step)
            except UnreadableError:  # `tuner doctor` says why
                fresh = curves.empty()
            ended = trial.state != RUNNING
            if len(fresh.times) or (ended and len(fresh.eval_steps)):
                known = curves.join([known, fresh])
            self._curves[number] = known
        if trial.state != RUNNING:
            self._complete.add(number)
        return known

    def counts(self) -> dict[str, int]:
        """Return the number of trials by state."""
        counted = dict.fromkeys(STYLES, 0)
        for trial in self._trials.values():
            counted[trial.state] += not trial.imported
        return counted

    def deciding(self) -> StudyReader | None:
        """Return the reader of the trials that decide between those of the study, if any."""
        if self._deciding is None and self.study.deciding_trials:
            ended = sum(one.state != RUNNING and not one.imported for one in self.trials())
            again = existing(self._ledger, self.study) if ended >= self.study.limit else None
            if again is not None:
                self._deciding = StudyReader(self._ledger, again)
        return self._deciding


class LiveView:
    """A live table of a study: progress, best trial, running trials and the latest ended ones."""

    def __init__(self, reader: StudyReader, console: Console) -> None:
        self._reader = reader
        self._console = console
        self._progress = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("remaining"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=SPEED_SECONDS,
        )
        self._task: TaskID | None = None

    def draw(self) -> RenderableType:
        """Read what changed and return the table."""
        reader, study = self._reader, self._reader.study
        reader.refresh()
        trials = reader.trials()
        ranked = ranking.ranked(study, trials)
        running = [trial for trial in trials if trial.state == RUNNING]
        latest = sorted(
            (trial for trial in trials if trial.ended_at is not None),
            key=lambda trial: trial.ended_at or 0.0,
            reverse=True,
        )
        rows = max(3, self._console.height - HEADER_LINES)
        chosen = list(dict.fromkeys(t.number for t in (*running, *ranked[:3], *latest)))[:rows]
        table = trial_table(study)
        for trial in trials:
            if trial.number in chosen:
                curve = reader.curve(trial.number)
                *cells, why = trial_row(study, trial, curve, width=curve_width(self._console))
                table.add_row(*cells, Text(str(why), no_wrap=True, overflow="ellipsis"))
        imported = sum(trial.imported for trial in trials)
        ended = len(trials) - len(running) - imported
        header = Text.assemble(
            ("study ", "bold"),
            (study.title, "bold cyan"),
            f"  {ended} of {study.limit} trials ended: {ranking.counts_in_words(reader.counts())}",
            f"; {imported} imported" if imported else "",
            self._decided(),
        )
        best = next((trial for trial in ranked if trial.state == "completed"), None)
        found = Text(ranking.best_in_words(study, best, whole=False))
        for line in (header, found):
            line.no_wrap, line.overflow = True, "ellipsis"
        self._advance(ended, [trial for trial in running if trial.number in chosen], len(running))
        return Group(header, found, self._progress, fit_to_console(table, self._console))

    def _decided(self) -> str:
        """Return how many of the trials that decide have ended, if any."""
        again = self._reader.deciding()
        if again is None:
            return ""
        again.refresh()
        ended = sum(one.state != RUNNING for one in again.trials())
        return f"; deciding: {ended} of up to {self._reader.study.deciding_trials} trained"

    def _advance(self, ended: int, displayed: Sequence[TrialRecord], running: int) -> None:
        """Update the progress bar: ended trials plus the estimated share of the running ones."""
        horizon = self._reader.study.horizon
        parts = [
            self._reader.curve(trial.number).next_step / horizon(trial.params)
            for trial in displayed
        ]
        done = ended + (running * sum(parts) / len(parts) if parts else 0.0)
        if self._task is None:  # earlier work does not count for the speed
            limit = self._reader.study.limit
            self._task = self._progress.add_task("", total=limit, completed=done)  # type: ignore[arg-type]
        self._progress.update(self._task, completed=done)


@contextmanager
def show_progress(console: Console, ledger: Reader, study: StudyRecord) -> Iterator[None]:
    """Show a study's progress while the body runs."""
    reader = StudyReader(ledger, study)
    reader.refresh()  # skip the trials that ended earlier
    if not console.is_terminal:
        with _call_periodically(PLAIN_SECONDS, lambda: _print_ended(console, reader)):
            yield
        return
    view = LiveView(reader, console)
    # drawn by our own thread: rich's would lock the console while it reads the ledger
    with (
        Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as live,
        redirect_output(console),
        _call_periodically(1 / LIVE_PER_SECOND, lambda: live.update(view.draw(), refresh=True)),
    ):
        yield


@contextmanager
def _call_periodically(seconds: float, update: Callable[[], None]) -> Iterator[None]:
    """Call a function periodically in a thread while the body runs, and once after it."""
    ended = threading.Event()

    def repeat() -> None:
        last = False
        while not last:
            last = ended.wait(seconds)
            try:
                update()
            except UnavailableError as error:  # training continues; try again
                log.debug("progress cannot be read: %s", error)

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _print_ended(console: Console, reader: StudyReader) -> None:
    for trial in reader.refresh():
        terminal.print_text(console, _line(reader.study, trial))
    again = reader.deciding()
    for trial in () if again is None else again.refresh():
        short = ranking.in_short(trial.params)
        terminal.print_text(console, f"deciding: {short}: {trial.state}. {trial.reason}")


def _line(study: StudyRecord, trial: TrialRecord) -> str:
    short = ranking.in_short(trial.params)
    total = (
        f" of {study.limit}" if study.version == 1 else ""
    )  # later ones begin with imported ones
    return f"trial {trial.number}{total}: {short}: {trial.state}. {trial.reason}"
