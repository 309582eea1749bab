"""Markdown notes of a study: its best trial, progress, silent workers, and links."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuner.analysis import ranking
from tuner.core.outcome import DIVERGED, RUNNING
from tuner.ledger import Silence, StudyRecord, TrialRecord
from tuner.tracking.mlflow.links import Links

WAITING = "waiting"
FOLDER = "report"
PICTURE, REPORT = f"{FOLDER}/curves.png", f"{FOLDER}/report.html"
MARKUP = re.compile(r"([\\`*_{}\[\]<>()#|!~])")


@dataclass(frozen=True, kw_only=True)
class About:
    """What a note says of a study beside its trials."""

    state: str
    owner: str | None  # who submitted it, if that is known
    tags: Sequence[str] = ()
    notes: Sequence[str] = ()  # of people, oldest first

    @property
    def line(self) -> str:
        """State, owner and tags, such as `ended, by ann, baseline`."""
        by = [] if self.owner is None else [f"by {escape_markdown(self.owner)}"]
        return ", ".join([self.state, *by, *map(escape_markdown, self.tags)])


def study_note(
    study: StudyRecord,
    best: TrialRecord | None,
    counts: Mapping[str, int],
    links: Links,
    about: About,
    *,
    best_runs: Sequence[str] = (),
    silent: Sequence[Silence] = (),
    files: Sequence[str] = (),
) -> str:
    """Return the note of a study's parent run; `best_runs` are run ids, best first."""
    pages = _pages(counts, links, best_runs, files)
    # the links come early, since the page shows only the first lines at first
    short = ranking.best_in_words(study, best, whole=False)
    whole = ranking.best_in_words(study, best)
    lines = [study.reason or "", short, _linked(pages), *(silence_line(one) for one in silent)]
    lines += [progress_line(study, counts), whole if whole != short else ""]
    lines.append(f"Study of project {escape_markdown(study.project)}: {about.line}.")
    if PICTURE in files:
        lines.append(f"![Loss curves of all trials]({links.picture(PICTURE)})")
    lines += [escape_markdown(one) for one in (study.spec.study.description, *about.notes)]
    return "\n\n".join(line for line in lines if line)


def experiment_note(
    study: StudyRecord,
    best: TrialRecord | None,
    counts: Mapping[str, int],
    links: Links,
    about: About,
) -> str:
    """Return the note of an experiment; its first line is shown in the list of experiments.

    That one is cut, so it begins with state and owner.
    """
    pages = [("summary", links.study()), *_pages(counts, links, (), ())]
    lines = (
        f"{about.line}. {ranking.best_in_words(study, best, whole=False)}",
        _linked(pages),
        progress_line(study, counts),
        # the header of MLflow's page has only what follows the last slash
        f"Study {escape_markdown(study.title)}." if "/" in study.title else "",
    )
    return "\n\n".join(line for line in lines if line)


def _linked(pages: Sequence[tuple[str, str]]) -> str:
    return " · ".join(f"[{text}]({address})" for text, address in pages)


def progress_line(study: StudyRecord, counts: Mapping[str, int]) -> str:
    """Return how many trials have ended, by outcome."""
    done = sum(count for kind, count in counts.items() if kind not in (RUNNING, WAITING))
    return f"{done} of {study.limit} trials have ended: {ranking.counts_in_words(counts)}."


def silence_line(one: Silence) -> str:
    """Return which worker has measured nothing, and for how long."""
    return (
        f"Trial {one.trial} has measured nothing for {one.seconds:.0f} seconds; its worker "
        f"{one.worker} may hang or have died."
    )


def escape_markdown(text: str) -> str:
    """Escape the characters that Markdown would interpret."""
    return MARKUP.sub(r"\\\1", text)


def _pages(
    counts: Mapping[str, int], links: Links, best_runs: Sequence[str], files: Sequence[str]
) -> list[tuple[str, str]]:
    found = [
        ("loss curves", links.view("tuner-curves")),
        ("best value against rate", links.view("tuner-rates")),
        ("schedules as applied", links.view("tuner-schedules")),
        ("table of trials", links.view("tuner-table")),
    ]
    if len(best_runs) > 1:
        found.append((f"curves of the best {len(best_runs)}", links.view("tuner-best")))
        found.append((f"compare the best {len(best_runs)}", links.compare(best_runs)))
    if counts[DIVERGED]:
        found.append((f"the {counts[DIVERGED]} diverged", links.view("tuner-diverged")))
    if REPORT in files:
        found.append(("report", links.file(REPORT)))
    return found
