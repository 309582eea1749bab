"""What studies have spent, by study, project and person, and their best values, for metrics.

The number of series is bounded: studies that were active last have their own, and the others are
summed by project and person, so that all sums are exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from tuner.core.text import printable, project_of
from tuner.ledger import events
from tuner.ledger.reading import Reader
from tuner.ledger.records import OPEN, StudyRecord
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.spending import Spend, spending
from tuner.ledger.summaries import last_activity, summaries
from tuner.ledger.tables import attempts, trials
from tuner.ledger.totals import LATE_IDS

UNKNOWN = "unknown"
"""Who submitted a study of an earlier version of tuner."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a series is about; an empty text stands for all that have no series of their own."""

    study: str = ""
    project: str = ""
    person: str = ""


@dataclass(frozen=True, kw_only=True)
class StudyTotals:
    """The spend of all studies, which adds up, and the best values of open ones."""

    spent: dict[Part, Spend]
    best: dict[tuple[str, str], float]  # by study and metric


class StudyTotalsReader:
    """Reads the totals; the spend of a study is read again only once it has changed."""

    def __init__(self, ledger: Reader, most: int) -> None:
        """Let `most` studies, and as many pairs of a project and a person, have a series."""
        self._ledger = ledger
        self._most = most
        # by the study's id: its revision and last attempt, and its spend
        self._known: dict[int, tuple[tuple[int, int], Spend]] = {}
        self._last_attempts: dict[int, int] = {}  # by the study's id

    def read(self) -> StudyTotals:
        """Read the totals. Raise `UnavailableError` while the database is unreachable."""
        known = self._ledger.studies()
        active = last_activity(self._ledger)
        newest = {one.name: one for one in known}
        names = sorted(newest, key=lambda name: active.get(name, 0.0), reverse=True)
        parts = self._parts(names)
        spent: defaultdict[Part, Spend] = defaultdict(Spend)
        for study, spend in zip(known, self._spends(known), strict=True):
            spent[parts[study.name]] += spend
        shown = [newest[name] for name in names[: self._most] if newest[name].state == OPEN]
        found = summaries(self._ledger, shown)
        best = {
            (printable(study.name), study.spec.study.metric): one.value
            for study in shown
            if (one := found[study.id].best) is not None
        }
        return StudyTotals(spent=dict(spent), best=best)

    def _parts(self, names: Sequence[str]) -> dict[str, Part]:
        """Return the series of each study; `names` begin with those that were active last."""
        done = events.latest(self._ledger, names)
        found: dict[str, Part] = {}
        pairs: set[Part] = set()
        for index, name in enumerate(names):
            by = done[name].get(events.SUBMITTED)
            person = UNKNOWN if by is None else printable(by.person)
            pair = Part(project=printable(project_of(name)), person=person)
            if index < self._most:
                found[name] = Part(study=printable(name), project=pair.project, person=pair.person)
                continue
            if len(pairs) < self._most:
                pairs.add(pair)
            found[name] = pair if pair in pairs else Part()
        return found

    def _spends(self, known: Sequence[StudyRecord]) -> list[Spend]:
        """Return the spend of each study."""
        # before those that run: a later one is among these
        since = max(self._last_attempts.values(), default=0) - LATE_IDS
        last = self._last_attempts = self._last_attempts | _last_attempts(self._ledger, since)
        live = self._ledger.live_attempts()
        stamps = {one.id: (one.revision, last.get(one.id, 0)) for one in known}
        kept = {
            key: spend
            for key, (stamp, spend) in self._known.items()
            if stamp == stamps.get(key) and key not in live
        }
        found = kept | spending(self._ledger, [one for one in known if one.id not in kept])
        self._known = {key: (stamps[key], found[key]) for key in found if key not in live}
        return [found[one.id] for one in known]


@retry_on_disconnect
def _last_attempts(ledger: Reader, since: int) -> dict[int, int]:
    """Read the id of the last attempt at a trial of each study that has one with an id above."""
    query = (
        select(trials.c.study_id, func.max(attempts.c.id).label("last"))
        .select_from(attempts.join(trials))
        .where(attempts.c.id > since)
        .group_by(trials.c.study_id)
    )
    with ledger.engine.begin() as tx:
        return {row.study_id: row.last for row in tx.execute(query)}
