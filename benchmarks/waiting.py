"""Trials that take their time without a processor, for `workers.py`: one loss, two loops around it.

A trial sleeps at its beginning, so a pruned one takes as long as any other, and then reports at
three rungs. Both sides sample the same space, and the loss of a trial is the same for both.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

STEPS = 10
RUNGS = (1, 3, 9)  # asha's, from step 1 on by a factor of 3
LOW, HIGH = 1e-5, 10.0
SCHEDULES, OPTIMIZERS = ("constant", "cosine"), ("sgd", "adamw")
MEGABYTE = 1024**2

_began: list[float] = []


def loss(rate: float, step: int) -> float:
    """Return the loss at a step; a rate near 0.03 is best."""
    return 1 + (math.log10(rate) + 1.5) ** 2 + 1 / (1 + step)


def begin(seconds: float) -> None:
    """Note that a trial begins, and wait."""
    _began.append(time.time())
    if len(_began) == 2:  # one trial has ended: this process is under way
        print(flush=True)
    time.sleep(seconds)


def train(trial: Any, seconds: float) -> None:
    """Train as our worker has it trained: every step is reported, and metrics at rungs."""
    begin(seconds)
    for step in range(trial.steps):
        if trial.evaluates(step):
            trial.report(step, val_loss=loss(trial.lr, step))
        trial.report(step, train_loss=loss(trial.lr, step))
    trial.report(trial.steps, val_loss=loss(trial.lr, trial.steps))


def serve(work: Callable[[str, float, threading.Event], None]) -> None:
    """Work at what standard input says until it says stop, again and again.

    A line names a study and the seconds of a trial. An empty line tells that a first trial has
    ended; after the stop a line tells when trials began, and what memory the process has.
    """
    print(flush=True)  # all is imported
    while line := sys.stdin.readline():
        asked = json.loads(line)
        _began.clear()
        stop = threading.Event()
        reader = threading.Thread(target=lambda stop=stop: sys.stdin.readline() and stop.set())
        reader.start()
        work(asked["study"], asked["seconds"], stop)
        reader.join()
        held = psutil.Process(os.getpid()).memory_full_info()
        memory = {"uss": held.uss / MEGABYTE, "rss": held.rss / MEGABYTE}
        print(json.dumps({"began": _began, "memory, MB": memory}), flush=True)
