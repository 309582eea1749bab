"""A named feature: one input column of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

FeatureType: TypeAlias = Literal["float64", "float32", "int64", "int32", "bool"]
"""numpy's names of the types that a column may have."""

FEATURE_TYPES: tuple[str, ...] = get_args(FeatureType)


@dataclass(frozen=True)
class Feature:
    """The name and the type of a column."""

    name: str
    dtype: FeatureType
