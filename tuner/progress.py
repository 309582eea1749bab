"""Watching a study from its ledger: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from tuner import curves, results
from tuner.curves import Chunk
from tuner.ledger import Reader, StudyRecord, TrialRecord
from tuner.outcome import RUNNING
from tuner.report import STYLES, trial_row, trial_table

LIVE_PER_SECOND = 4
PLAIN_SECONDS = 0.5
HEADER_LINES = 5


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


def live_view(watch: Watch, height: int) -> RenderableType:
    """Draw the state of a study in so many lines: what runs, the best, and the latest ends."""
    watch.refresh()
    study, trials = watch.study, watch.trials()
    ranked = results.ranked(study, trials)
    running = [trial for trial in trials if trial.state == RUNNING]
    latest = sorted(
        (trial for trial in trials if trial.ended_at is not None),
        key=lambda trial: trial.ended_at or 0.0,
        reverse=True,
    )
    rows = max(3, height - HEADER_LINES)
    chosen = list(dict.fromkeys(t.number for t in (*running, *ranked[:3], *latest)))[:rows]
    table = trial_table(study)
    for trial in trials:
        if trial.number in chosen:
            table.add_row(*trial_row(study, trial, watch.curve(trial.number)))
    imported = sum(trial.imported for trial in trials)
    ended = len(trials) - len(running) - imported
    header = Text.assemble(
        ("study ", "bold"),
        (study.title, "bold cyan"),
        f"  {ended} of {study.limit} trials ended: {results.counts_in_words(watch.counts())}",
        f"; {imported} imported" if imported else "",
    )
    best = next((trial for trial in ranked if trial.state == "completed"), None)
    return Group(header, Text(results.best_in_words(study, best)), table)


@contextmanager
def shown(console: Console, ledger: Reader, study: StudyRecord) -> Iterator[None]:
    """Show the study's progress while the body runs."""
    watch = Watch(ledger, study)
    watch.refresh()  # what ended in an earlier run is not news
    if console.is_terminal:
        with Live(
            get_renderable=lambda: live_view(watch, console.height),
            console=console,
            refresh_per_second=LIVE_PER_SECOND,
            transient=True,
        ):
            yield
        return
    ended = threading.Event()

    def tell() -> None:
        while True:
            last = ended.wait(PLAIN_SECONDS)
            for trial in watch.refresh():
                console.print(_line(study, trial), highlight=False, soft_wrap=True, markup=False)
            if last:
                return

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _line(study: StudyRecord, trial: TrialRecord) -> str:
    short = results.in_short(trial.params)
    total = (
        f" of {study.limit}" if study.version == 1 else ""
    )  # later ones begin with imported ones
    return f"trial {trial.number}{total}: {short}: {trial.state}. {trial.reason}"
