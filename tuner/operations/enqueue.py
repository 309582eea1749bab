"""Enqueue a trial with parameters of one's own; it is trained before the sampler's next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuner.config import Entry, Listed, ParameterValue, Range, Space, WholeRange, options, reading
from tuner.core.errors import UsageError
from tuner.core.text import printable
from tuner.ledger import Ledger, adding


def enqueue(
    ledger: Ledger,
    name: str,
    params: Mapping[str, ParameterValue],
    *,
    raise_budget: bool = False,
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
    number = adding.enqueue(ledger, study, fixed, raise_budget=raise_budget)
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
    known: dict[str, Entry] = {
        "lr": space.lr,
        "schedule": tuple(choice.name for choice in space.schedule),
        "optimizer": tuple(choice.name for choice in space.optimizer),
    }
    conditions: dict[str, str] = {}
    for group, choices in (("schedule", space.schedule), ("optimizer", space.optimizer)):
        chosen = params.get(group, choices[0].name if len(choices) == 1 else None)
        for choice in choices:
            for key, entry in choice.entries():
                if choice.name == chosen:
                    known[key] = entry
                else:
                    conditions[key] = f"{group}={choice.name} with it, as it applies to that alone"
    fixed, wrong = {}, []
    for key, value in params.items():
        if key not in known:
            condition = conditions.get(key, f"one of the parameters {', '.join(known)}")
            wrong.append(f"{printable(key)}: expected {condition}")
            continue
        fixed[key] = _typed(known[key], value)
        if expected := space.missing({**fixed, key: fixed[key]}).get(key):
            wrong.append(f"{key}: expected {expected}, got {printable(str(value))}")
    if not params:
        wrong.append("expected at least one parameter, such as lr=0.01")
    if wrong:
        raise UsageError(f"study {name!r}: no trial was added:\n  " + "\n  ".join(wrong))
    return fixed


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
