"""A study's note in optuna-dashboard: system attributes of the study, as the dashboard has them.

The dashboard is not needed to write them. The version counts edits, which people make there too:
theirs stands until something about the study changes.
"""

from __future__ import annotations

from optuna.storages import BaseStorage

from tuner.analysis import ranking
from tuner.ledger import Reader, StudyRecord
from tuner.tracking.notes import plain, progress, silence

VERSION, PART = "dashboard:note_ver", "dashboard:note_str:"
LIMIT = 2045
"""Characters of a note that one attribute holds."""
EXAMPLES = 3


def study_note(ledger: Reader, study: StudyRecord, pages: str | None) -> str:
    """Say the answer, how far the study is, why its last trials stopped, and where its curves are.

    Why each trial ended is among its own attributes, which the dashboard shows beside it.
    """
    counts = ledger.counts(study.id)
    said = [study.reason or "", ranking.best_in_words(study, ledger.best(study))]
    said += [progress(study, counts), *(silence(one) for one in ledger.silent(study.id))]
    stopped = ledger.last_stopped(study.id, EXAMPLES)
    if stopped:
        said.append("\n".join(f"- Trial {n}, {kind}: {plain(why)}" for n, kind, why in stopped))
    if pages is not None:
        said.append(f"[Every curve, in MLflow]({pages})")
    else:
        said.append(f"Every curve is in MLflow: `tuner ui {study.name}`.")
    said.append(plain(study.spec.study.description))
    return "\n\n".join(text for text in said if text)


def write(storage: BaseStorage, study_id: int, note: str) -> None:
    """Write a study's note, unless it is there already."""
    attrs = storage.get_study_system_attrs(study_id)
    parts = [note[first : first + LIMIT] for first in range(0, len(note), LIMIT)]
    there = [key for key in attrs if key.startswith(PART)]
    changed = {f"{PART}{index}": part for index, part in enumerate(parts)}
    changed |= {key: "" for key in there if key not in changed}
    if all(attrs.get(key) == part for key, part in changed.items()):
        return
    for key, part in changed.items():
        storage.set_study_system_attr(study_id, key, part)
    storage.set_study_system_attr(study_id, VERSION, int(attrs.get(VERSION, 0)) + 1)
