"""The named features of a workload: what its input columns are called, and their types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tuner.core.features import FEATURE_TYPES, Feature, FeatureType

Names: TypeAlias = Sequence[str] | Mapping[str, FeatureType]
"""The names of the columns of inputs [row, feature]; a mapping has the type of each."""


def features_of(names: Names, dtype: str) -> tuple[Feature, ...]:
    """Return named features; without types of their own they have the `dtype` of the inputs."""
    types: Mapping[str, Any] = names if isinstance(names, Mapping) else dict.fromkeys(names, dtype)
    return tuple(Feature(str(name), types[name]) for name in types)


def problems(names: Names, parts: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield what is wrong with the names of the columns of some inputs [row, feature]."""
    if isinstance(names, str) or not all(_is_name(one) for one in names):
        yield (
            "features: expected names of input columns, each a text without control characters "
            f"and without spaces around it, got {names!r:.200}"
        )
        return
    known = [str(one) for one in names]
    if not known:
        return
    if twice := sorted({one for one in known if known.count(one) > 1}):
        yield f"features: expected different names, got {', '.join(twice)} more than once"
        return
    if isinstance(names, Mapping):
        for name, kind in names.items():
            if kind not in FEATURE_TYPES:
                yield f"features: {name}: expected one of {', '.join(FEATURE_TYPES)}, got {kind!r}"
                return
    for title, inputs in parts.items():
        if inputs.shape[1:] != (len(known),):
            yield (
                f"features: expected a name for each column of {title}, which has rows of shape "
                f"{tuple(inputs.shape[1:])}, got {len(known)} names"
            )
            return
        for index, one in enumerate(features_of(names, "float64")):
            if wrong := problem_of_values(one, inputs[:, index]):
                yield f"features: {one.name}: {wrong} in {title}"


def problem_of_values(feature: Feature, values: Tensor) -> str | None:  # [row]
    """Return why values are not of a feature's type, or None."""
    if feature.dtype == "bool":
        wrong = int(((values != 0) & (values != 1)).sum())
        return f"expected 0 or 1, got {wrong} other values" if wrong else None
    if feature.dtype in ("int64", "int32") and values.is_floating_point():
        wrong = int((values != torch.trunc(values)).sum())
        return f"expected whole numbers, got {wrong} fractions" if wrong else None
    return None


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name == name.strip() != "" and name.isprintable()
