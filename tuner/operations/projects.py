"""Projects: their studies, what these take, and the limits of that."""

from __future__ import annotations

from typing import Any

from tuner.ledger import Reader, projects
from tuner.ledger.projects import Project, Quota
from tuner.operations.context import acting

NAMES = ("workers", "steps_week")


def listed(ledger: Reader) -> list[dict[str, Any]]:
    """Return all projects that have a study or a setting, by name."""
    known, counts = projects.read(ledger), dict[str, int]()
    for study in ledger.studies():
        counts[study.project] = counts.get(study.project, 0) + 1
    return [
        _as_json(ledger, known.get(name, Project(name=name)), counts.get(name, 0))
        for name in sorted({*known, *counts})
    ]


def change(
    ledger: Reader,
    name: str,
    *,
    workers: int | None = None,
    steps_week: float | None = None,
    no_limits: bool = False,
    shared: bool | None = None,
    weight: float | None = None,
    reason: str = "",
) -> dict[str, Any]:
    """Set what is given of a project; what is None stays as it is. Return the project."""
    known = projects.project(ledger, name)
    before = Quota() if no_limits else known.quota
    quota = Quota(
        workers=before.workers if workers is None else workers,
        steps_week=before.steps_week if steps_week is None else steps_week,
    )
    changed = Project(
        name=name,
        quota=quota,
        shared=known.shared if shared is None else shared,
        weight=known.weight if weight is None else weight,
    )
    if changed != known:
        projects.put(ledger, changed, acting(reason))
    return show(ledger, name)


def show(ledger: Reader, name: str) -> dict[str, Any]:
    """Return one project."""
    count = sum(study.project == name for study in ledger.studies())
    return _as_json(ledger, projects.project(ledger, name), count)


def _as_json(ledger: Reader, project: Project, studies: int) -> dict[str, Any]:
    taken = projects.taken(ledger, project.name)
    return {
        "project": project.name,
        "studies": studies,
        "shared": project.shared,
        "weight": project.weight,
        "quota": {name: getattr(project.quota, name) for name in NAMES},
        "taken": {name: getattr(taken, name) for name in NAMES},
        "quota_reached": projects.reached(ledger, project),
    }


def in_words(found: dict[str, Any]) -> str:
    """Return a line about a project."""
    units = {"workers": "workers now", "steps_week": "steps in seven days"}
    parts = []
    for name, unit in units.items():
        most = found["quota"][name]
        limit = "" if most is None else f" of {most:,.0f}"
        parts.append(f"{found['taken'][name]:,.0f}{limit} {unit}")
    shared = ", shared" if found["shared"] else ""
    weight = "" if found["weight"] == 1.0 else f", weight {found['weight']:g}"
    studies = "1 study" if found["studies"] == 1 else f"{found['studies']} studies"
    return f"{found['project']}: {studies}, {', '.join(parts)}{weight}{shared}"
