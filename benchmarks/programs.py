"""What each way into tuner costs a program, over the same program alone.

A step computes for about 20 ms on one thread: matrix products, whose number is calibrated once. Two
processes are kept: the program alone, and `tuner run` on a new SQLite database, with its recorder,
that trains it as a trial. They take turns of some steps, in the order ABBA, so that a machine whose
speed drifts slows both alike; a turn lasts from the beginning of its first step to that of the next
turn's, with everything between. Ratios are those of the times of several turns in a row. What the
worker does each second falls into the trial's turns twice as often as without turns.

The ratio of processor time is that of all processes, the recorder's included; it depends little on
what else the machine does.

Start and end of a trial are timed apart, in further ones that compute nothing: the time of its
attempt besides that from its first step to its last. Alone it is that of the process.

"none" compares the program alone with itself. Libraries that are not installed are left out.
Results are written after each way, and those that exist already are kept unless named.

    python benchmarks/programs.py [NAME ...] [--table]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import doors
import psutil
import torch

from tuner.training.device import use_threads

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "programs.json"
STEP_SECONDS = 0.02
TURN, TURNS, TOGETHER = 10, 25, 5  # steps of a turn, turns of each, turns of a ratio
STEPS = TURN * (TURNS + 2)  # the first turn is not counted
SHORT = 1  # trials that compute nothing
SECONDS = 180  # until a program begins

STUDY = """
[study]
name = "programs"
[workload]
{workload}
[training]
steps = {steps}
evaluate_every = {steps}
threads = 1
{training}
[space]
lr = {{ low = 0.01, high = 0.1 }}
schedule = "constant"
optimizer = "sgd"
[search]
sampler = "random"
pruner = "none"
[budget]
trials = {trials}
"""
PATTERNS = """
[workload.patterns]
step = 'step (?P<value>\\d+)'
train_loss = 'loss (?P<value>\\S+)'
val_loss = 'validation (?P<value>\\S+)'
"""


@dataclass(frozen=True, kw_only=True)
class Door:
    """A way into tuner."""

    alone: str  # the program of `doors.py` without it
    command: str = ""  # the program of a trial
    function: str = ""  # or the train function or factory
    more: dict[str, Any] = field(default_factory=dict)  # of [workload]
    patterns: str = ""
    training: str = ""  # more of [training]
    ranks: int = 1
    library: str = "torch"

    def workload(self, folder: Path) -> str:
        table = dict(self.more)
        if self.command:
            program = [str(ROOT / "benchmarks" / "doors.py"), self.command, str(folder), "{steps}"]
            table["command"] = ["python", *program]
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        if self.function:
            key = "factory" if self.function == "workload" else "train"
            steps = f", steps = {STEPS}" if key == "factory" else ""
            lines.append(f'{key} = "doors:{self.function}"')
            lines.append(f'arguments = {{ folder = "{folder}"{steps} }}')
        return "\n".join(lines) + self.patterns


DOORS = {
    "none": Door(alone="alone"),
    "train function": Door(alone="alone", function="reporting"),
    "train function in a process": Door(
        alone="alone", function="reporting", more={"isolation": "process"}
    ),
    "current_trial": Door(alone="alone", command="reporting"),
    "patterns": Door(alone="printing", command="printing", patterns=PATTERNS),
    "lines of JSON": Door(alone="printing_json", command="printing_json"),
    "two ranks": Door(alone="on_ranks", command="on_ranks", more={"processes": 2}, ranks=2),
    "loaders": Door(
        alone="from_loaders", function="workload", training='batch_size = 8\ntrainer = "reference"'
    ),
    **{
        name: Door(alone=f"in_{name}", command=f"in_{name}", library=name)
        for name in ("lightning", "transformers", "accelerate", "skorch", "ignite")
    },
}


class Talk:
    """The end of a program's connection."""

    def __init__(self, listener: socket.socket, process: subprocess.Popen[bytes]) -> None:
        listener.settimeout(1.0)
        while True:
            try:
                self._connection, _ = listener.accept()
                break
            except TimeoutError:
                if process.poll() is not None:
                    raise RuntimeError("the program ended before it began to train") from None
        self._connection.settimeout(SECONDS)
        self._lines = self._connection.makefile("r")
        self.began = self.heard()["at"]

    def heard(self) -> dict[str, float]:
        found: dict[str, float] = json.loads(self._lines.readline())
        return found

    def turn(self) -> float:
        """Let it make a turn and return the seconds."""
        self._connection.sendall(f"{TURN}\n".encode())
        return self.heard()["took"]

    def finish(self) -> float:
        """Let it make all further steps and return when the last one ended."""
        self._connection.sendall(b"1000000000\n")
        return self.heard()["at"]


def calibrated() -> int:
    """Return how many products take the time of a step."""
    use_threads(1)
    taken = []
    for _ in range(50):
        began = time.perf_counter()
        doors.compute(10)
        taken.append((time.perf_counter() - began) / 10)
    return max(1, round(STEP_SECONDS / statistics.median(taken)))


def measured(door: Door, products: int) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="programs-")))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(folder / "socket"))
        listener.listen()
        (folder / "study.toml").write_text(
            STUDY.format(
                workload=door.workload(folder),
                training=door.training,
                steps=STEPS,
                trials=1 + SHORT,
            )
        )
        log = stack.enter_context((folder / "log").open("wb"))

        def start(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=folder, env=environment(), stdout=log, stderr=log
            )
            stack.callback(process.kill)
            return process

        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={door.ranks}")
        program = [str(ROOT / "benchmarks" / "doors.py"), door.alone, str(folder), str(STEPS)]
        if door.alone in doors.WITH_TRIAL:
            program.append("alone")
        command = [*(launcher if door.ranks > 1 else ()), *program]

        (folder / "products").write_text(str(products))
        alone = start(*command)
        first = Talk(listener, alone)
        is_compared = door.command or door.function
        trained = start(*(("-m", "tuner", "run", "study.toml") if is_compared else command))
        try:
            second = Talk(listener, trained)
        except RuntimeError as error:
            raise RuntimeError((folder / "log").read_text()[-3000:]) from error
        (folder / "products").write_text("0")
        pairs, used = turns(first, second, (alone.pid, trained.pid))
        first.finish()
        second.finish()
        found: dict[str, Any] = {
            "ratio": summary(ratios_of(pairs)),
            "ratio of processor time": summary(ratios_of(used)),
        }
        found["milliseconds a step alone"] = rounded(
            1e3 * statistics.median(one for one, _ in pairs) / TURN
        )
        alone.wait(SECONDS)
        if is_compared:
            own, spans = [], []
            for _ in range(SHORT):
                talk = Talk(listener, trained)
                spans.append(talk.finish() - talk.began)
            if trained.wait(SECONDS):
                raise RuntimeError((folder / "log").read_text()[-3000:])
            with closing(sqlite3.connect(folder / "tuner.db")) as database:
                query = "SELECT ended_at - started_at FROM tuner_attempts ORDER BY started_at"
                whole = [seconds for (seconds,) in database.execute(query)][1:]
            trials = [a - b for a, b in zip(whole, spans, strict=True)]
            for _ in range(SHORT):
                began = time.monotonic()
                process = start(*command)
                talk = Talk(listener, process)
                span = talk.finish() - talk.began
                process.wait(SECONDS)
                own.append(time.monotonic() - began - span)
            found["seconds to start and end"] = {"alone": summary(own), "a trial": summary(trials)}
        trained.wait(SECONDS)
        return found


Pairs = list[tuple[float, float]]


def turns(first: Talk, second: Talk, pids: tuple[int, int]) -> tuple[Pairs, Pairs]:
    """Return the seconds of the turns of both, and the processor seconds from turn to turn."""
    pairs, used = [], []
    before = (0.0, 0.0)
    for index in range(TURNS + 1):
        if index % 2:
            other, one = second.turn(), first.turn()
        else:
            one, other = first.turn(), second.turn()
        pairs.append((one, other))
        now = processor_seconds(pids[0]), processor_seconds(pids[1])
        used.append((now[0] - before[0], now[1] - before[1]))
        before = now
    return pairs[1:], used[1:]


def processor_seconds(pid: int) -> float:
    """Return those of a process and of all that it has started."""
    own = psutil.Process(pid)
    found = [own.cpu_times()]
    for one in own.children(recursive=True):
        with suppress(psutil.Error):
            found.append(one.cpu_times())
    return sum(one.user + one.system for one in found)


def ratios_of(pairs: Sequence[tuple[float, float]]) -> list[float]:
    groups = [pairs[at : at + TOGETHER] for at in range(0, len(pairs), TOGETHER)]
    return [sum(b for _, b in group) / sum(a for a, _ in group) for group in groups]


def summary(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "lowest": rounded(ordered[0]),
        "median": rounded(statistics.median(ordered)),
        "highest": rounded(ordered[-1]),
    }


def rounded(value: float) -> float:
    return round(value, 3)


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TUNER_", "MLFLOW_"))}
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))
    return kept | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TUNER_ALLOW": "doors.",
    }


def table(found: dict[str, Any]) -> str:
    """Return the results as a table of a document."""
    lines = [
        "| way | time | processor time | start and end alone, s | of a trial, s |",
        "|---|---|---|---|---|",
    ]
    for name, one in found["doors"].items():
        ratios = [
            f"{ratio['median']:.3f} ({ratio['lowest']:.3f} to {ratio['highest']:.3f})"
            for ratio in (one["ratio"], one["ratio of processor time"])
        ]
        times = one.get("seconds to start and end", {})
        ends = [f"{time['median']:.1f}" for time in times.values()] or ["", ""]
        lines.append(f"| {' | '.join([name, *ratios, *ends])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*DOORS, []], help="measure these again")
    parser.add_argument("--table", action="store_true", help="print the results and end")
    chosen = parser.parse_args()
    found: dict[str, Any] = {"doors": {}}
    if RESULTS.exists():
        found = json.loads(RESULTS.read_text())
    if not chosen.table:
        products = calibrated()
        found["processors"], found["torch"] = os.cpu_count(), torch.__version__
        for name, door in DOORS.items():
            is_known = name in found["doors"] and not chosen.names
            if is_known or (chosen.names and name not in chosen.names):
                continue
            if importlib.util.find_spec(door.library) is None:
                print(f"{name}: not installed")
                continue
            began = time.monotonic()
            found["doors"][name] = measured(door, products)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name} ({time.monotonic() - began:.0f} s): {found['doors'][name]}", flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
