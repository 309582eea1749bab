"""What a study is: its tables, validated and frozen."""

from tuner.spec.choice import Choice, own
from tuner.spec.search import ASHA, TPE, Grid, Listed, Median, NoPruner, Random
from tuner.spec.space import Space
from tuner.spec.study import GuardTable, StudySpec
from tuner.spec.values import Entry, ParameterValue, Range, Table, WholeRange, fractions, options

__all__ = [
    "ASHA",
    "TPE",
    "Choice",
    "Entry",
    "Grid",
    "GuardTable",
    "Listed",
    "Median",
    "NoPruner",
    "ParameterValue",
    "Random",
    "Range",
    "Space",
    "StudySpec",
    "Table",
    "WholeRange",
    "fractions",
    "options",
    "own",
]
