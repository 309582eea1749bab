"""Run a train function in this process, for the trial that `TUNER_TRIAL` describes."""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from tuner.core import failures
from tuner.core.errors import WorkloadError
from tuner.training import out_of_memory, workloads
from tuner.training.programs import current
from tuner.training.train_functions import TrainFunction
from tuner.training.trial import StopTrial


def main() -> NoReturn:
    """Run the function and end this process, whatever threads the function has left."""
    code = 1
    try:
        code = _run()
        atexit._run_exitfuncs()  # not by leaving the interpreter, which waits for threads
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run() -> int:
    file = Path(os.environ[current.TRIAL])
    about = json.loads(file.read_text())["function"]
    faulthandler.enable()
    torch.set_num_threads(about["threads"])
    trial, worker = current.connected(file)
    current.use(trial)
    try:
        function_of(about)(trial)
    except StopTrial:
        pass
    except BaseException as error:
        worker.ask({"raised": _described(error, about["name"])})
        return 1
    worker.ask({"returned": True})
    return 0


def function_of(about: Mapping[str, Any]) -> TrainFunction:
    """Import a function. Raise `WorkloadError` if its code is not the worker's."""
    name, prefixes = about["name"], about["prefixes"]
    sys.path += [place for place in about["path"] if place not in sys.path]
    found = workloads.find(name, prefixes, "train_function")
    if workloads.code_digest(name, prefixes) != about["code"]:
        raise WorkloadError(f"{name}: its file has changed since the worker has imported it")
    return TrainFunction(
        name=name,
        call=found,
        arguments={
            key: tuple(value) if isinstance(value, list) else value
            for key, value in about["arguments"].items()
        },
        data_name="",
        data_digest="",
        searched=tuple(about["searched"]),
    )


def _described(error: BaseException, name: str) -> dict[str, Any]:
    """Return what the worker needs to raise a copy of an exception."""
    raised = error
    if not isinstance(error, Exception):
        raised = RuntimeError(f"{name} raised {type(error).__name__}")
        raised.__cause__ = error
    place = failures.cause(failures.sentence(raised, name))
    return {
        "type": type(raised).__name__,
        "message": str(raised),
        "place": "unknown:0" if place is None else place.place,
        "traceback": failures.full_traceback(raised),
        "out_of_memory": out_of_memory.is_out_of_memory(raised),
    }


if __name__ == "__main__":
    main()
