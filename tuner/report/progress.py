"""Watching a study from its ledger: a live table in a terminal, plain lines elsewhere."""

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
from tuner.core import curves
from tuner.core.curves import Chunk
from tuner.core.errors import UnavailableError
from tuner.core.outcome import RUNNING
from tuner.ledger import Reader, StudyRecord, TrialRecord
from tuner.report import STYLES, curve_width, fitted, terminal, trial_row, trial_table
from tuner.report.redirection import printed_above

LIVE_PER_SECOND = 4
PLAIN_SECONDS = 0.5
HEADER_LINES = 6
SPEED_SECONDS = 600.0
"""Of how long ago the remaining time still takes the speed."""

log = logging.getLogger(__name__)


class Watch:
    """A study's trials without their reports, read again only where something changed."""

    def __init__(self, ledger: Reader, study: StudyRecord) -> None:
        self._ledger = ledger
        self.study = study
        self._revision = 0
        self._trials: dict[int, TrialRecord] = {}
        self._curves: dict[int, Chunk] = {}  # of those that were asked for
        self._whole: set[int] = set()  # whose curve will not grow

    def refresh(self) -> list[TrialRecord]:
        """Read what changed; give the trials that ended since the last call."""
        changes = self._ledger.changes(self.study.id, self._revision, with_reports=False)
        self._revision = changes.revision
        ended = [
            trial
            for trial in changes.trials
            if trial.state != RUNNING and self._runs_as_far_as_known(trial.number)
        ]
        self._trials.update((trial.number, trial) for trial in changes.trials)
        return ended

    def _runs_as_far_as_known(self, number: int) -> bool:
        return number not in self._trials or self._trials[number].state == RUNNING

    def trials(self) -> list[TrialRecord]:
        """Give all trials as last read, by number."""
        return [self._trials[number] for number in sorted(self._trials)]

    def curve(self, number: int) -> Chunk:
        """Read a trial's curve: what is new of it, since only the trials on show need theirs."""
        known, trial = self._curves.get(number, curves.empty()), self._trials[number]
        if number not in self._whole:
            fresh = self._ledger.curve(trial.id, known.next_step)
            known = curves.join([known, fresh]) if len(fresh.times) else known
            self._curves[number] = known
        if trial.state != RUNNING:
            self._whole.add(number)
        return known

    def counts(self) -> dict[str, int]:
        """Count trials by state."""
        counted = dict.fromkeys(STYLES, 0)
        for trial in self._trials.values():
            counted[trial.state] += not trial.imported
        return counted


class LiveView:
    """The state of a study in a terminal: how far it is, the best, what runs, the latest ends."""

    def __init__(self, watch: Watch, console: Console) -> None:
        self._watch = watch
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
        """Read what changed and draw it."""
        watch, study = self._watch, self._watch.study
        watch.refresh()
        trials = watch.trials()
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
                curve = watch.curve(trial.number)
                *cells, why = trial_row(study, trial, curve, width=curve_width(self._console))
                table.add_row(*cells, Text(str(why), no_wrap=True, overflow="ellipsis"))
        imported = sum(trial.imported for trial in trials)
        ended = len(trials) - len(running) - imported
        header = Text.assemble(
            ("study ", "bold"),
            (study.title, "bold cyan"),
            f"  {ended} of {study.limit} trials ended: {ranking.counts_in_words(watch.counts())}",
            f"; {imported} imported" if imported else "",
        )
        best = next((trial for trial in ranked if trial.state == "completed"), None)
        found = Text(ranking.best_in_words(study, best, whole=False))
        for line in (header, found):
            line.no_wrap, line.overflow = True, "ellipsis"
        self._advance(ended, [trial for trial in running if trial.number in chosen], len(running))
        return Group(header, found, self._progress, fitted(table, self._console))

    def _advance(self, ended: int, on_show: Sequence[TrialRecord], running: int) -> None:
        """Count trials; of running ones the part that is trained, as those on show have it."""
        steps = self._watch.study.spec.training.steps
        parts = [self._watch.curve(trial.number).next_step / steps for trial in on_show]
        done = ended + (running * sum(parts) / len(parts) if parts else 0.0)
        if self._task is None:  # what was done earlier says nothing of the speed
            limit = self._watch.study.limit
            self._task = self._progress.add_task("", total=limit, completed=done)  # type: ignore[arg-type]
        self._progress.update(self._task, completed=done)


@contextmanager
def shown(console: Console, ledger: Reader, study: StudyRecord) -> Iterator[None]:
    """Show the study's progress while the body runs."""
    watch = Watch(ledger, study)
    watch.refresh()  # what ended in an earlier run is not news
    if not console.is_terminal:
        with _repeated(PLAIN_SECONDS, lambda: _print_ended(console, watch)):
            yield
        return
    view = LiveView(watch, console)
    # drawn by a thread of ours, as rich's own would read the ledger with the console locked
    with (
        Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as live,
        printed_above(console),
        _repeated(1 / LIVE_PER_SECOND, lambda: live.update(view.draw(), refresh=True)),
    ):
        yield


@contextmanager
def _repeated(seconds: float, look: Callable[[], None]) -> Iterator[None]:
    """Call a function again and again in a thread while the body runs, and once after it."""
    ended = threading.Event()

    def repeat() -> None:
        last = False
        while not last:
            last = ended.wait(seconds)
            try:
                look()
            except UnavailableError as error:  # training goes on, and so does this
                log.debug("progress cannot be read: %s", error)

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _print_ended(console: Console, watch: Watch) -> None:
    for trial in watch.refresh():
        terminal.say(console, _line(watch.study, trial))


def _line(study: StudyRecord, trial: TrialRecord) -> str:
    short = ranking.in_short(trial.params)
    total = (
        f" of {study.limit}" if study.version == 1 else ""
    )  # later ones begin with imported ones
    return f"trial {trial.number}{total}: {short}: {trial.state}. {trial.reason}"
