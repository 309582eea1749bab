"""Enqueue a trial with parameters of one's own; it is trained before the sampler's next one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuner.config import (
    Entry,
    Listed,
    Parameter,
    ParameterValue,
    Range,
    Space,
    WholeRange,
    options,
    reading,
    written,
)
from tuner.config.parameters import equal, has, in_words
from tuner.core.errors import UsageError
from tuner.core.text import printable
from tuner.ledger import Ledger, adding
from tuner.operations.context import acting


def enqueue(
    ledger: Ledger,
    name: str,
    params: Mapping[str, ParameterValue],
    *,
    raise_budget: bool = False,
    reason: str = "",
) -> dict[str, Any]:
    """Add a trial with these parameters to a study; those left out are drawn when it is claimed.

    Return what `tuner enqueue --json` prints. Raise `UsageError` with every mistake of the
    parameters, or if the study is closed or its budget is spent.
    """
    study = ledger.study(name)
    if isinstance(study.spec.search.sampler, Listed):
        raise UsageError(
            f"study {name!r} trains a list of combinations, each under the same seeds, so no trial "
            "can be added; submit a longer list under another name"
        )
    fixed = checked(name, study.spec.space, params)
    number = adding.enqueue(ledger, study, fixed, raise_budget=raise_budget, act=acting(reason))
    study = ledger.study(name)
    budget = {"trials": study.limit, "reserved": study.reserved}
    return {"study": name, "trial": number, "params": fixed, "state": study.state, "budget": budget}


def parsed(assignments: Sequence[str]) -> dict[str, ParameterValue]:
    """Return the parameters of texts such as `lr=0.01`. Raise `UsageError`."""
    found: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not (key and equals):
            raise UsageError(f"expected NAME=VALUE such as lr=0.01, got {printable(text)!r}")
        if key in found:
            raise UsageError(f"{printable(key)}: expected one value, got several")
        found[key] = reading.toml_value(value.strip())
    return found


def checked(
    name: str, space: Space, params: Mapping[str, ParameterValue]
) -> dict[str, ParameterValue]:
    """Return parameters with the types of the space. Raise `UsageError` with every mistake."""
    known = {one.name: one for one in space.parameters()}
    fixed = {key: _typed(known[key].entry, params[key]) for key in params if key in known}
    wrong = []
    for key, value in params.items():
        if key not in known:
            names = ", ".join(one for one in known if "." not in one)
            wrong.append(f"{printable(key)}: expected one of the parameters {names}")
        elif not has(known[key].entry, fixed[key]):
            expected = in_words(known[key].entry)
            wrong.append(f"{key}: expected {expected}, got {printable(written(value))}")
        else:
            wrong += [
                f"{key}: expected {needed} with it, as it applies to that alone"
                for needed in _needed(known[key], fixed, known)
            ]
    if not params:
        wrong.append("expected at least one parameter, such as lr=0.01")
    if not wrong:
        try:
            space.draw(random.Random(0), fixed)  # noqa: S311 - whether there is any
        except ValueError:
            listed = "; ".join(space.constraints)
            wrong.append(f"expected values that satisfy the constraints of the space: {listed}")
    if wrong:
        raise UsageError(f"study {name!r}: no trial was added:\n  " + "\n  ".join(wrong))
    return fixed


def _needed(
    one: Parameter, fixed: Mapping[str, ParameterValue], known: Mapping[str, Parameter]
) -> Iterator[str]:
    """Yield what must be fixed too, so that a parameter certainly exists."""
    for name, values in one.when.items():
        if name in fixed:
            holds = any(equal(fixed[name], value) for value in values)
        else:
            entry = known[name].entry
            holds = not isinstance(entry, Range) and all(
                any(equal(option, value) for value in values) for option in options(entry)
            )
        if not holds:
            yield f"{name}={' or '.join(map(written, values))}"
        elif name not in fixed:
            yield from _needed(known[name], fixed, known)


def _typed(entry: Entry, value: Any) -> Any:
    """Return a value as the space has it: 1 for 1.0 where it has floats."""
    if isinstance(value, list | tuple):  # such as milestones, which are stored as text
        return ",".join(map(repr, map(float, value)))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(entry, Range):
        return float(value) if not isinstance(entry, WholeRange) else value
    same = [one for one in options(entry) if not isinstance(one, bool) and one == value]
    return same[0] if same else value
