"""Where a trial that extends another one continues: that one's checkpoint and curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.config import ParameterValue
from tuner.core.file_stores import FileStore
from tuner.ledger import Reader, StudyRecord
from tuner.ledger.checkpoint_files import key_of
from tuner.ledger.records import sizes_of
from tuner.training import checkpoint, longer
from tuner.training.longer import Continuation
from tuner.training.trainer_choice import Trained
from tuner.training.workloads import Workload


def continuation(
    ledger: Reader,
    checkpoints: FileStore,
    study: StudyRecord,
    parent: Mapping[str, Any],  # the study's title and the trial's number
    params: Mapping[str, ParameterValue],
    trained: Trained,
) -> Continuation:
    """Return where a trial of a study continues the trial that it extends.

    Raise `ValueError` or `OSError` if it cannot.
    """
    name = f"trial {parent['trial']} of {parent['study']!r}"
    shorter = ledger.study_titled(parent["study"])
    trial = None if shorter is None else ledger.trial(shorter.id, parent["trial"])
    kept = None if trial is None else ledger.last_checkpoint(trial.id)
    if shorter is None or trial is None or kept is None:
        raise ValueError(f"{name} kept no checkpoint")
    own_params = trial.params or {}
    same = _but_the_schedule(own_params) == _but_the_schedule(params)
    if not same or shorter.workload != study.workload:
        raise ValueError(f"{name} has other parameters, code or data")
    workload: Trained = trained.of(params) if isinstance(trained, Workload) else trained
    return longer.continue_from(
        checkpoint.read(checkpoints, key_of(kept), kept.digest),
        ledger.curve(trial.id),
        params,
        shorter=shorter.spec,
        shorter_params=own_params,
        longer=study.spec,
        sizes=sizes_of(study.workload),
        baseline=workload.baseline_loss,
    )


def _but_the_schedule(params: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
    """Return the parameters of a trial that a decay branched from it has too."""
    name = params.get("schedule")
    return {
        key: value
        for key, value in params.items()
        if key != "schedule" and not key.startswith(f"{name}.")
    }
