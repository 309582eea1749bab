"""What a study's pages say, as Markdown: the answer, how far it is, who is silent, and links."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tuner.analysis import ranking
from tuner.core.outcome import DIVERGED, RUNNING
from tuner.ledger import Silence, StudyRecord, TrialRecord
from tuner.tracking.mlflow.views import Links

WAITING = "waiting"
FOLDER = "report"
PICTURE, REPORT = f"{FOLDER}/curves.png", f"{FOLDER}/report.html"
MARKUP = re.compile(r"([\\`*_{}\[\]<>()#|!~])")


def study_note(
    study: StudyRecord,
    best: TrialRecord | None,
    counts: Mapping[str, int],
    links: Links,
    *,
    best_runs: Sequence[str] = (),
    silent: Sequence[Silence] = (),
    files: Sequence[str] = (),
) -> str:
    """Say what a study's parent run has to say; `best_runs` are ids, best first."""
    pages = _pages(counts, links, best_runs, files)
    # the links come early: the page shows the first lines, and more when asked
    short = ranking.best_in_words(study, best, whole=False)
    whole = ranking.best_in_words(study, best)
    said = [study.reason or "", short, _linked(pages), *(silence(one) for one in silent)]
    said += [progress(study, counts), whole if whole != short else ""]
    if PICTURE in files:
        said.append(f"![Loss curves of all trials]({links.picture(PICTURE)})")
    said.append(plain(study.spec.study.description))
    return "\n\n".join(text for text in said if text)


def experiment_note(
    study: StudyRecord, best: TrialRecord | None, counts: Mapping[str, int], links: Links
) -> str:
    """Say it in the list of experiments, where there is a line of room, and on its page."""
    pages = [("summary", links.study()), *_pages(counts, links, (), ())]
    said = (
        ranking.best_in_words(study, best, whole=False),
        _linked(pages),
        progress(study, counts),
    )
    return "\n\n".join(said)


def _linked(pages: Sequence[tuple[str, str]]) -> str:
    return " · ".join(f"[{text}]({address})" for text, address in pages)


def progress(study: StudyRecord, counts: Mapping[str, int]) -> str:
    """Say how many trials have ended how."""
    done = sum(count for kind, count in counts.items() if kind not in (RUNNING, WAITING))
    return f"{done} of {study.limit} trials have ended: {ranking.counts_in_words(counts)}."


def silence(one: Silence) -> str:
    """Say who has measured nothing for how long."""
    return (
        f"Trial {one.trial} has measured nothing for {one.seconds:.0f} seconds; its worker "
        f"{one.worker} may hang, or be gone."
    )


def plain(text: str) -> str:
    """Escape what Markdown would read as more than text."""
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
