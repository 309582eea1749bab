"""A study's note in optuna-dashboard, stored in system attributes in the dashboard's format.

The dashboard need not be installed. The version counts edits; a user's edit of the note is kept
until the note changes here.
"""

from __future__ import annotations

from optuna.storages import BaseStorage

from tuner.analysis import ranking
from tuner.ledger import Reader, StudyRecord
from tuner.tracking.notes import escape_markdown, progress_line, silence_line

VERSION, PART = "dashboard:note_ver", "dashboard:note_str:"
LIMIT = 2045
"""How many characters of a note fit in one attribute."""
EXAMPLES = 3


def study_note(ledger: Reader, study: StudyRecord, pages: str | None) -> str:
    """Return the note: best trial, progress, reasons of the last stops, and a link to MLflow.

    The reason of each trial's end is also in its attributes.
    """
    counts = ledger.counts(study.id)
    lines = [study.reason or "", ranking.best_in_words(study, ledger.best(study))]
    lines += [progress_line(study, counts), *(silence_line(one) for one in ledger.silent(study.id))]
    stopped = ledger.last_stopped(study.id, EXAMPLES)
    if stopped:
        lines.append(
            "\n".join(f"- Trial {n}, {kind}: {escape_markdown(why)}" for n, kind, why in stopped)
        )
    if pages is not None:
        lines.append(f"[Every curve, in MLflow]({pages})")
    else:
        lines.append(f"Every curve is in MLflow: `tuner ui {study.name}`.")
    lines.append(escape_markdown(study.spec.study.description))
    return "\n\n".join(line for line in lines if line)


def write(storage: BaseStorage, study_id: int, note: str) -> None:
    """Write a study's note, unless it is unchanged."""
    attrs = storage.get_study_system_attrs(study_id)
    parts = [note[first : first + LIMIT] for first in range(0, len(note), LIMIT)]
    existing = [key for key in attrs if key.startswith(PART)]
    changed = {f"{PART}{index}": part for index, part in enumerate(parts)}
    changed |= {key: "" for key in existing if key not in changed}
    if all(attrs.get(key) == part for key, part in changed.items()):
        return
    for key, part in changed.items():
        storage.set_study_system_attr(study_id, key, part)
    storage.set_study_system_attr(study_id, VERSION, int(attrs.get(VERSION, 0)) + 1)
