"""What a comparison of the ledger with a projection of it finds."""

from __future__ import annotations

from typing import NamedTuple


class Mismatch(NamedTuple):
    """Something that a projection has otherwise than the ledger."""

    kind: str
    trial: int | None  # the trial's number; None where it is about the whole study
    detail: str
