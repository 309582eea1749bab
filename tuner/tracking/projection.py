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
from tuner.tracking.backlog import Backlog, Mark

UNREADABLE = "unreadable"
"""The kind of mismatch for rows with content that tuner never writes."""
LEFT_OUT_SECONDS = 60.0
"""How long until a study with a row that cannot be read is tried again."""

log = logging.getLogger(__name__)


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

    def publish(self, names: Sequence[str] = (), *, waiting: bool = True) -> bool:
        """Publish what is new in studies that no other recorder has claimed.

        Return whether there was anything. Raise the first error after trying every study.
        """
        published, errors = False, []
        for mark in self._unpublished(names, waiting=waiting):
            if not self.publications.claim(mark.study_id):
                continue
            try:
                study = self._study(mark)
                self._publish_once(study, waiting=waiting)
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
