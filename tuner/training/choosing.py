"""What a study trains, and the trainer for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from tuner.spec import StudySpec
from tuner.training import functions, workloads
from tuner.training.functions import TrainFunction
from tuner.training.own import LoopTrainer
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Trainer
from tuner.training.workloads import Workload

Trained: TypeAlias = Workload | TrainFunction


def load(spec: StudySpec, prefixes: Sequence[str]) -> Trained:
    """Import what a study trains. Raises `WorkloadError`."""
    if spec.workload.train is not None:
        return functions.load(spec.workload.train, spec.workload.arguments, prefixes)
    return workloads.load(spec.workload.function, spec.workload.arguments, prefixes)


def trainer_for(trained: Trained, spec: StudySpec) -> Trainer:
    """Make the trainer. Raises `WorkloadError` when the study's metric is not measured."""
    if isinstance(trained, TrainFunction):
        return LoopTrainer(trained, spec)
    return ReferenceTrainer(trained, spec)


def name_of(spec: StudySpec) -> str:
    """Name the trainer of a study, as the ledger keeps it."""
    return "reference" if spec.workload.train is None else "own"
