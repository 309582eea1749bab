"""Notes on studies, and their tags; both may be added by anybody at any time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tuner.core.errors import UsageError
from tuner.ledger import Reader, events, managing
from tuner.operations import history
from tuner.operations.context import acting

LONGEST = 2000
"""The most characters of a note."""
TAG = re.compile(r"[^\s,]{1,64}")


def note(ledger: Reader, name: str, text: str) -> list[dict[str, Any]]:
    """Add a note to a study; return all its notes, oldest first. Raise `UsageError`."""
    study, written = ledger.identity(name), text.strip()
    if not written or len(written) > LONGEST:
        raise UsageError(f"expected a note of 1 to {LONGEST} characters, got {len(written)}")
    managing.annotate(ledger, study, events.NOTED, acting(written), {})
    return [history.as_json(one) for one in events.notes(ledger, study.name)]


def tag(ledger: Reader, name: str, tags: Sequence[str], *, remove: bool = False) -> list[str]:
    """Add tags to a study, or remove them; return its tags. Raise `UsageError`."""
    study = ledger.identity(name)
    for one in tags:
        if not (TAG.fullmatch(one) and one.isprintable()):
            raise UsageError(
                f"expected tags of up to 64 characters without spaces and commas, got {one!r:.80}"
            )
    known = events.tags_in(events.latest(ledger, [study.name])[study.name])
    changed = {*known} - {*tags} if remove else {*known} | {*tags}
    if changed != {*known}:
        details = {"tags": sorted(changed)}
        managing.annotate(ledger, study, events.TAGGED, acting(), details)
    return sorted(changed)
