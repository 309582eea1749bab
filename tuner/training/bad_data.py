"""Bad data of a workload: values that are not finite, by batch, column and row.

A batch is what arrived together, such as a day. A workload that says with which batch each of its
rows arrived (`row_batches`) can be trained without a bad one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tuner.training.workloads import Workload

HELD = "holdout"
SOME = 5
"""How many places and rows a message lists."""


def problem(
    name: str, values: Tensor, columns: Sequence[str] = (), batches: Sequence[str] | None = None
) -> str | None:
    """Return where values [row, ...] are not finite, or None.

    `columns` are the names of the columns of rows of one dimension; empty: they have none.
    """
    wrong = (~torch.isfinite(values)).nonzero()
    if not len(wrong):
        return None
    known = batches is not None and len(batches) == len(values)
    places: dict[str, list[int]] = {}
    for row, *where in wrong.tolist():
        parts = [f"batch {batches[row]}"] if known and batches is not None else []
        parts += _column(where, columns)
        places.setdefault(", ".join(parts), []).append(row)
    listed = [
        ", ".join(part for part in (place, _some(rows)) if part)
        for place, rows in list(places.items())[:SOME]
    ]
    more = f"; and {len(places) - SOME} other places" if len(places) > SOME else ""
    return (
        f"{name}: expected finite numbers, got {len(wrong)} that are nan or infinite: "
        f"{'; '.join(listed)}{more}"
    )


def without_bad_batches(workload: Workload) -> Workload:
    """Return a workload without the batches that have values which are not finite.

    Bad rows of parts without `row_batches` stay, and are refused later.
    """
    found: dict[str, list[str]] = {}
    for title, name, values, columns in _tensors(workload):
        batches = [str(one) for one in workload.row_batches.get(title, ())]
        if len(batches) != len(values):
            continue
        bad = (~torch.isfinite(values)).reshape(len(values), -1).any(dim=1).numpy()
        for batch in dict.fromkeys(one for one, wrong in zip(batches, bad, strict=True) if wrong):
            others = torch.tensor([one != batch for one in batches])
            own = values.clone()
            own[others] = 0  # so that rows keep their numbers
            found.setdefault(batch, []).append(str(problem(name, own, columns)))
    return _without(workload, {batch: "; ".join(why) for batch, why in found.items()})


def problems_of_batches(workload: Workload) -> Iterator[str]:
    """Yield what is wrong with the batches of a workload's rows."""
    known = rows(workload)
    for title, batches in workload.row_batches.items():
        if title not in known:
            yield f"row_batches: expected parts among {', '.join(known)}, got {title}"
        elif len(batches) != known[title]:
            yield (
                f"row_batches: {title}: expected the name of a batch for each of {known[title]} "
                f"rows, got {len(batches)}"
            )


def rows(workload: Workload) -> dict[str, int]:
    """Return the number of rows of each part that is in memory."""
    return {title: len(values) for title, _, values, _ in _tensors(workload)}


def rows_by_batch(workload: Workload) -> dict[str, dict[str, int]]:
    """Return the number of rows of each part by batch, in the order in which they come."""
    found: dict[str, dict[str, int]] = {}
    for title, batches in workload.row_batches.items():
        for batch in map(str, batches):
            parts = found.setdefault(batch, {})
            parts[title] = parts.get(title, 0) + 1
    return found


def _tensors(workload: Workload) -> Iterator[tuple[str, str, Tensor, Sequence[str]]]:
    """Yield the part, name, values and columns of the tensors of a workload that has rows."""
    columns = [str(one) for one in workload.features]
    parts: dict[str, tuple[Any, Any]] = {
        "train": (workload.train_inputs, workload.train_targets),
        "validation": (workload.validation_inputs, workload.validation_targets),
    }
    if workload.holdout is not None:
        parts[HELD] = workload.holdout
    for title, (inputs, targets) in parts.items():
        for name, values, names in (
            (f"{title}_inputs", inputs, columns),
            (f"{title}_targets", targets, []),
        ):
            if isinstance(values, Tensor) and values.ndim and len(values):
                yield title, name, values, names


def _column(where: Sequence[int], columns: Sequence[str]) -> list[str]:
    """Return what the column of a position in a row is called."""
    if len(where) == 1:
        return [f"column {columns[where[0]]!r}" if columns else f"column {where[0]}"]
    return [f"position {tuple(where)}"] if where else []


def _some(found: Sequence[int]) -> str:
    different = sorted(set(found))
    shown = ", ".join(map(str, different[:SOME]))
    more = f" and {len(different) - SOME} others" if len(different) > SOME else ""
    return f"{'rows' if len(different) > 1 else 'row'} {shown}{more}"


def _without(workload: Workload, left_out: Mapping[str, str]) -> Workload:
    if not left_out:
        return workload
    kept = {
        title: torch.from_numpy(~np.isin(np.asarray(batches, dtype=str), list(left_out)))
        for title, batches in workload.row_batches.items()
    }

    def of(title: str, values: Tensor) -> Tensor:
        return values[kept[title]] if title in kept else values

    held = HELD if workload.holdout is not None else "validation"
    slices = {name: of(held, mask) for name, mask in workload.slices.items()}
    holdout = workload.holdout
    digest = hashlib.sha256("\n".join([workload.data_digest, *sorted(left_out)]).encode())
    return replace(
        workload,
        train_inputs=of("train", workload.train_inputs),
        train_targets=of("train", workload.train_targets),
        validation_inputs=of("validation", workload.validation_inputs),
        validation_targets=of("validation", workload.validation_targets),
        holdout=None if holdout is None else (of(HELD, holdout[0]), of(HELD, holdout[1])),
        slices={name: mask for name, mask in slices.items() if mask.any()},
        row_batches={
            title: [str(one) for one in batches if str(one) not in left_out]
            for title, batches in workload.row_batches.items()
        },
        data_name=f"{workload.data_name}, without {', '.join(left_out)}",
        data_digest=digest.hexdigest()[:16],
        left_out=dict(left_out),
    )
