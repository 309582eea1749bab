"""The specification of a study: the validated, frozen tables of its file."""

from tuner.config.choice import Choice, own
from tuner.config.parameters import Parameter
from tuner.config.retrain import GateTable, NotifyTable, RetrainTable
from tuner.config.search import (
    ASHA,
    CMAES,
    GP,
    QMC,
    TPE,
    AnyPruner,
    Auto,
    Comparing,
    Grid,
    Halving,
    Hyperband,
    Listed,
    Median,
    NoPruner,
    OneRung,
    OptunaGP,
    Patient,
    Percentile,
    Random,
)
from tuner.config.space import CHOSEN, Space
from tuner.config.study import BudgetTable, GuardTable, StudySpec
from tuner.config.trial_settings import TrialSettings, batch_size, horizon_of, settings_of
from tuner.config.values import Entry, ParameterValue, Range, Table, WholeRange, fractions, options

__all__ = [
    "ASHA",
    "CHOSEN",
    "CMAES",
    "GP",
    "QMC",
    "TPE",
    "AnyPruner",
    "Auto",
    "BudgetTable",
    "Choice",
    "Comparing",
    "Entry",
    "GateTable",
    "Grid",
    "GuardTable",
    "Halving",
    "Hyperband",
    "Listed",
    "Median",
    "NoPruner",
    "NotifyTable",
    "OneRung",
    "OptunaGP",
    "Parameter",
    "ParameterValue",
    "Patient",
    "Percentile",
    "Random",
    "Range",
    "RetrainTable",
    "Space",
    "StudySpec",
    "Table",
    "TrialSettings",
    "WholeRange",
    "batch_size",
    "fractions",
    "horizon_of",
    "options",
    "own",
    "settings_of",
]
