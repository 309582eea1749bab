"""Publish the ledger to one target; report differences between the target and the ledger."""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from tuner.core.errors import (
    LeaseLost,
    NotFoundError,
    TunerError,
    UnreadableError,
)
from tuner.ledger import Reader, StudyRecord
from tuner.ledger.publications import Publications
from tuner.tracking.backlog import Backlog, Mark, OpenTrial

UNREADABLE = "unreadable"
"""The kind of mismatch for rows with content that tuner never writes."""
LEFT_OUT_SECONDS = 60.0
"""How long until a study with a row that cannot be read is tried again."""
WITHOUT_PROGRESS = 3
"""How often a study is published in a row if that changes nothing, before it is left out."""

log = logging.getLogger(__name__)

State = tuple[Mark, list[OpenTrial]]
"""What of a study is to be published."""


class Mismatch(NamedTuple):
    """A difference between the ledger and a projection of it."""

    kind: str
    trial: int | None  # the trial's number; None for the whole study
    detail: str


class Due(enum.Enum):
    """Whether a study has anything to publish."""

    NOTHING = enum.auto()
    LATER = enum.auto()  # only a summary, which is refreshed from time to time
    NOW = enum.auto()


class Publisher(Protocol):
    """Publishes claimed studies to one target; raises `UnavailableError` if it is unreachable."""

    target: str
    backlog: Backlog

    def due(self, mark: Mark) -> Due:
        """Return when the study must be published."""
        ...

    def publish(self, study: StudyRecord, mark: Mark, *, waiting: bool) -> None:
        """Publish what is new, with `waiting` including what is due later."""
        ...

    def close(self) -> None:
        """Close the connections to the target."""
        ...


class Projection:
    """Publishes the ledger to one target. An unchanged study costs one row of a query."""

    def __init__(self, ledger: Reader, publications: Publications, publisher: Publisher) -> None:
        self.publications = publications
        self._ledger = ledger
        self._publisher = publisher
        self._published: dict[int, Mark] = {}  # by study: its mark when nothing was due
        self._left_out: dict[int, float] = {}  # by study: until when its rows are not read again
        self._published_from: dict[int, tuple[State, int]] = {}  # by study, and how often in a row

    def publish(self, names: Sequence[str] = (), *, waiting: bool = True) -> bool:
        """Publish what is new in studies that no other recorder has claimed.

        Return whether there was anything. Raise the first error after trying every study.
        """
        published, errors = False, []
        for mark in self._unpublished(names, waiting=waiting):
            if not self.publications.claim(mark.study_id):
                continue
            try:
                state = (mark, self._publisher.backlog.open(mark))
                self._require_progress(state)
                self._publish_once(self._study(mark), waiting=waiting)
                self._count(state)
                published = True
            except UnreadableError as error:
                self._leave_out(mark, error)
            except LeaseLost as lost:
                log.warning("study %s: %s", mark.name, lost)
            except NotFoundError:  # it was deleted in the meantime
                continue
            except TunerError as error:
                errors.append(error)
            finally:
                self.publications.release(mark.study_id)
        if errors:
            raise errors[0]
        return published

    def behind(self, names: Sequence[str] = ()) -> bool:
        """Return whether anything is unpublished, also in studies that another recorder claims."""
        return any(self._unpublished(names, waiting=True))

    def finish(self, study: StudyRecord) -> None:
        """Publish a claimed study completely."""
        while self._publisher.due(self._mark(study)) is not Due.NOTHING:
            self._publish_once(study, waiting=True)

    def close(self) -> None:
        """Close the connections to the target."""
        self._publisher.close()

    def _publish_once(self, study: StudyRecord, *, waiting: bool) -> None:
        self._publisher.publish(study, self._mark(study), waiting=waiting)

    def _require_progress(self, state: State) -> None:
        """Raise `UnreadableError` if publishing a study in this state changed nothing."""
        before, times = self._published_from.get(state[0].study_id, (state, 0))
        if before == state and times >= WITHOUT_PROGRESS:
            raise UnreadableError("publishing it changes nothing, though something is left")

    def _count(self, state: State) -> None:
        """Count how often in a row a study was published from a state."""
        study_id = state[0].study_id
        before, times = self._published_from.get(study_id, (state, 0))
        self._published_from[study_id] = (state, times + 1 if before == state else 1)

    def _unpublished(self, names: Sequence[str], *, waiting: bool) -> Iterator[Mark]:
        for mark in self._publisher.backlog.marks(names):
            if self._published.get(mark.study_id) == mark:
                continue
            if time.monotonic() < self._left_out.get(mark.study_id, 0.0):
                continue
            try:
                due = self._publisher.due(mark)
            except UnreadableError as error:
                self._leave_out(mark, error)
                continue
            if due is Due.NOTHING:
                self._published[mark.study_id] = mark
            elif due is Due.NOW or waiting:
                yield mark

    def _mark(self, study: StudyRecord) -> Mark:
        """Reread a study's mark: another recorder may have published it before the claim."""
        marks = self._publisher.backlog.marks([study.name])
        return next(mark for mark in marks if mark.study_id == study.id)

    def _study(self, mark: Mark) -> StudyRecord:
        found = self._ledger.study_by_id(mark.study_id)
        if found is None:
            raise NotFoundError(f"study {mark.name!r} was deleted")
        return found

    def _leave_out(self, mark: Mark, error: UnreadableError) -> None:
        """Leave a study out for a while, since a row of it cannot be read."""
        log.warning("study %s is not published to %s: %s", mark.name, self._publisher.target, error)
        self._left_out[mark.study_id] = time.monotonic() + LEFT_OUT_SECONDS
