"""One target of the ledger, and publishing to it what is new, study by study."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

from tuner.core.errors import LeaseLost, NotFoundError, TunerError
from tuner.ledger import Reader, StudyRecord
from tuner.ledger.publications import Publications
from tuner.tracking.backlog import Backlog, Mark

log = logging.getLogger(__name__)


class Publisher(Protocol):
    """Publishes claimed studies to one target. Raises `UnavailableError` where it is away."""

    target: str
    backlog: Backlog

    def due(self, mark: Mark) -> bool | None:
        """Tell whether there is anything to publish; None: only what may wait for a while."""
        ...

    def publish(self, study: StudyRecord, mark: Mark, *, waiting: bool) -> None:
        """Publish what is new, and with `waiting` also what may wait."""
        ...

    def close(self) -> None:
        """Close the connections to the target."""
        ...


class Projection:
    """Publishes the ledger to one target. A study that has not changed costs part of a query."""

    def __init__(self, ledger: Reader, publications: Publications, publisher: Publisher) -> None:
        self.publications = publications
        self._ledger = ledger
        self._publisher = publisher
        self._quiet: dict[int, Mark] = {}  # how a study stood when nothing of it was left

    def publish(self, names: Sequence[str] = (), *, waiting: bool = True) -> bool:
        """Publish what is new and no other recorder is publishing; tell whether there was anything.

        Raises the first error after every study had its turn.
        """
        moved, errors = False, []
        for mark in self._behind(names, waiting=waiting):
            if not self.publications.claim(mark.study_id):
                continue
            try:
                study = self._study(mark)
                self._once(study, waiting=waiting)
                moved = True
            except LeaseLost as lost:
                log.warning("study %s: %s", mark.name, lost)
            except NotFoundError:  # it has been deleted meanwhile
                continue
            except TunerError as error:
                errors.append(error)
            finally:
                self.publications.release(mark.study_id)
        if errors:
            raise errors[0]
        return moved

    def behind(self, names: Sequence[str] = ()) -> bool:
        """Tell whether there is anything to publish, by whomever."""
        return any(self._behind(names, waiting=True))

    def finish(self, study: StudyRecord) -> None:
        """Publish all there is of a claimed study."""
        while self._publisher.due(self._mark(study)) is not False:
            self._once(study, waiting=True)

    def close(self) -> None:
        """Close the connections to the target."""
        self._publisher.close()

    def _once(self, study: StudyRecord, *, waiting: bool) -> None:
        self._publisher.publish(study, self._mark(study), waiting=waiting)

    def _behind(self, names: Sequence[str], *, waiting: bool) -> Iterator[Mark]:
        for mark in self._publisher.backlog.marks(names):
            if self._quiet.get(mark.study_id) == mark:
                continue
            due = self._publisher.due(mark)
            if due is False:
                self._quiet[mark.study_id] = mark
            elif due or waiting:
                yield mark

    def _mark(self, study: StudyRecord) -> Mark:
        """Read anew how a study stands: another may have published it before it was claimed."""
        marks = self._publisher.backlog.marks([study.name])
        return next(mark for mark in marks if mark.study_id == study.id)

    def _study(self, mark: Mark) -> StudyRecord:
        versions = self._ledger.versions(mark.name)
        found = [study for study in versions if study.id == mark.study_id]
        if not found:
            raise NotFoundError(f"study {mark.name!r} has been deleted")
        return found[0]
