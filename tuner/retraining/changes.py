"""What has changed since a retraining ended: its code and its data."""

from __future__ import annotations

from collections.abc import Sequence

from tuner.core.errors import TunerError, UsageError
from tuner.ledger import Retraining, StudyRecord
from tuner.ledger.retrainings import TRAIN
from tuner.retraining.checking import with_fresh_data
from tuner.training import code_files, trainer_choice


def since(ended: Retraining, study: StudyRecord, prefixes: Sequence[str]) -> list[str]:
    """Return what has changed since a retraining ended, a clause each.

    Data are loaded only by the code that the retraining had, and only if it recorded their digest.
    """
    known = ended.result[TRAIN]
    files, data = known.get("files"), known.get("data")
    if not isinstance(files, dict) or not isinstance(data, str):
        return []  # of an earlier release
    try:
        spec = with_fresh_data(study, ended.run_key)
        here = code_files.digests(spec.workload, prefixes)
    except TunerError as error:
        return [f"the code cannot be read ({_line(error)})"]
    if here != files:
        names = sorted(name for name in {*here, *files} if here.get(name) != files.get(name))
        return [f"the code of {spec.workload.function}, in {', '.join(names)}"]
    try:
        loaded = trainer_choice.load(spec, prefixes)
    except UsageError as error:
        return [f"the data, which cannot be used now ({_line(error)})"]
    if loaded.data_digest == data:
        return []
    return [f"the data, whose digest was {data:.16} and is {loaded.data_digest}"]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
