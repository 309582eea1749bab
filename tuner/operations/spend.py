"""What studies, projects and people have spent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tuner.ledger import Reader, StudyRecord, events
from tuner.ledger.spending import Spend, spending
from tuner.ledger.study_totals import UNKNOWN


def of_listed(ledger: Reader, listed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the spend of listed studies, by version of a study, project and person.

    With the best value of each study, in `best`.
    """
    titles = {one["title"]: one for one in listed}
    known = [study for study in ledger.studies() if study.title in titles]
    found = spending(ledger, known)
    people = {
        title: events.called(by["os_user"], by["db_role"])
        for title, one in titles.items()
        if (by := one.get("submitted"))
    }
    best = {title: one["best"] for title, one in titles.items() if one.get("best")}
    return {
        "best": {
            study.title: {"metric": study.spec.study.metric, "value": best[study.title]["value"]}
            for study in known
            if study.title in best
        },
        "studies": {study.title: found[study.id].as_json() for study in known},
        "projects": _sums((study.project, found[study.id]) for study in known),
        "people": _sums((people.get(study.title, UNKNOWN), found[study.id]) for study in known),
        "total": sum((found[study.id] for study in known), Spend()).as_json(),
    }


def of_study(ledger: Reader, study: StudyRecord) -> dict[str, Any]:
    """Return the spend of one study."""
    return spending(ledger, [study])[study.id].as_json()


def _sums(spends: Iterable[tuple[str, Spend]]) -> dict[str, Any]:
    found: defaultdict[str, Spend] = defaultdict(Spend)
    for name, one in spends:
        found[name] += one
    return {name: one.as_json() for name, one in sorted(found.items())}
