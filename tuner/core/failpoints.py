"""Named places in the code where a test kills, stops, delays or breaks the process.

`TUNER_FAILPOINTS` holds `place=action` pairs separated by `;`. An action is `kill`, `stop`,
`raise`, or `delay:SECONDS`; with the suffix `@N` it fires when the place is reached for the N-th
time. Commands arm failpoints at their start. Without the variable, reaching a place costs a look-up
in an empty dictionary.

When a failpoint fires, its line is appended to the file that `TUNER_FAILPOINTS_LOG` names, so that
a test can assert it. Each one fires once per process and once per file: a process that is started
with the same environment after the killed one passes the place.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PLACES = {
    "probe.claimed": "a worker has claimed the study's probe and not begun it",
    "probe.before_commit": "the probe is done and not committed",
    "ask.reserved": "budget, number and lease are committed, the parameters are not drawn",
    "ask.drawn": "the parameters are drawn and not written",
    "chunk.before_commit": "rows of a curve are measured and not committed",
    "chunk.committed": "rows of a curve are committed",
    "branch.trained": "branches of trials at a rung are trained, nothing of it is committed",
    "report.before_commit": "the pruner has decided, its decision is not committed",
    "checkpoint.before_rename": "a checkpoint is written under its temporary name",
    "checkpoint.renamed": "a checkpoint is in its place and not in the ledger",
    "extend.begun": "the rows of the trial that a trial extends are committed as its own",
    "spill.written": "the database cannot be reached and rows are in a file",
    "leave.before_release": "an interrupted worker has saved its trial and not released it",
    "outcome.before_commit": "the trial has ended, its outcome is not committed",
    "outcome.committed": "the outcome is committed and not published",
    "decide.added": "trials that decide between others are added and not trained",
    "recorder.row_created": "Optuna has the trial, the ledger has not recorded that",
    "recorder.begun": "the ledger has recorded that MLflow gets a run, MLflow has none",
    "recorder.run_created": "MLflow has the run, the ledger has not recorded that",
    "recorder.batch_logged": "MLflow has the points, the ledger has not recorded that",
    "recorder.before_final": "all of a trial is published except its final state",
    "retrain.claimed": "a retraining is claimed, nothing is trained",
    "retrain.in_training": "a retraining has saved a checkpoint of its model",
    "retrain.trained": "the challenger is trained and not measured",
    "retrain.evaluated": "the gate's decision is committed, nothing is logged",
    "retrain.run_created": "MLflow has the run of a retraining, without its model",
    "retrain.model_logged": "MLflow has the model, the registry has no version of it",
    "retrain.version_created": "the registry has the version, no alias points to it",
    "retrain.logged": "the challenger is logged, the champion has not changed",
    "retrain.promoted": "the champion has changed, the ledger has not recorded that",
    "retrain.ended": "a retraining has ended and its notifications are not sent",
    "approve.promoted": "an approved challenger is the champion, the ledger has not recorded that",
    "notify.sent": "a receiver has a notification, the ledger has not recorded that",
    "scheduler.claimed": "a scheduler has claimed the run of a tick and not begun it",
    "scheduler.retrained": "the retraining of a tick has ended, its run has not",
    "upgrade.before_ours": "Optuna's and MLflow's tables are created, ours are not",
    "delete.stopped": "a study to be deleted is stopped and not deleted anywhere",
    "delete.erased": "a study is deleted from Optuna and MLflow, not from the ledger",
}


class FailpointError(RuntimeError):
    """The exception of the action `raise`."""


@dataclass
class _Armed:
    kind: str  # kill, stop, raise or delay
    seconds: float  # of a delay
    waits: int  # how many more times the place is reached before it fires


_ACTION = re.compile(
    r"(?:(?P<kind>kill|stop|raise)|delay:(?P<seconds>\d+(\.\d+)?))(@(?P<count>[1-9]\d*))?"
)


def _parse(text: str) -> dict[str, _Armed]:
    armed = {}
    for pair in filter(None, text.split(";")):
        place, _, action = pair.partition("=")
        if place not in PLACES:
            raise ValueError(f"TUNER_FAILPOINTS: there is no place {place!r}")
        matched = _ACTION.fullmatch(action)
        if matched is None:
            raise ValueError(
                f"TUNER_FAILPOINTS: {place}: expected kill, stop, raise or delay:SECONDS, with @N "
                f"after it to wait for the N-th time, got {action!r}"
            )
        kind, seconds, count = matched["kind"] or "delay", matched["seconds"], matched["count"]
        armed[place] = _Armed(kind, float(seconds or 0), int(count or 1))
    return armed


_armed: dict[str, _Armed] = {}


def arm(text: str) -> None:
    """Arm these `place=action` pairs, and no others.

    Raises:
        ValueError: there is no such place or action.
    """
    made = _parse(text)
    _armed.clear()
    _armed.update(made)


@contextmanager
def armed(text: str) -> Iterator[None]:
    """Arm these `place=action` pairs, in addition to those that are armed, for a block."""
    before = dict(_armed)
    _armed.update(_parse(text))
    try:
        yield
    finally:
        _armed.clear()
        _armed.update(before)


def reach(place: str) -> None:
    """Run the action that is armed for `place`, one of `PLACES`, if any."""
    if _armed and place in _armed:
        _fire(place)


def _fire(place: str) -> None:
    armed = _armed[place]
    armed.waits -= 1
    if armed.waits:
        return
    del _armed[place]
    log = os.environ.get("TUNER_FAILPOINTS_LOG")
    if log:
        line = f"{place}={armed.kind}\n"
        with Path(log).open("a+") as file:
            file.seek(0)
            if line in file.readlines():
                return  # it fired in an earlier process
            file.write(line)
    match armed.kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            # to this thread: it would run on until another one has received a process's signal
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        case "delay":
            time.sleep(armed.seconds)
        case "raise":
            raise FailpointError(place)
