"""Everything at once for a long time: nothing is lost, and what the service holds stays level."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from statistics import median

import psutil

from chaos import page
from chaos.faults import fill
from chaos.proxy import DEAF, ERRORS, PASS, SILENT
from chaos.scenarios import calm
from chaos.stack import LEASE_SECONDS, Member, Stack, stack
from tuner.ledger import Ledger, database
from tuner.operations import manage

TRIALS = 20
FAULTS = 6  # in each study
WARM_UP = 3
"""Studies before the first that counts: what is imported late, caches, pools of connections."""


@dataclass(frozen=True)
class Sample:
    """What is held after a study was tuned under faults, judged and deleted."""

    minute: float
    wrong: int  # findings of the checker in that study, of any kind
    worker_mb: float  # resident memory of a worker that is spared kills
    recorder_mb: float  # ... and of a recorder
    worker_files: int  # open files and sockets of the worker
    recorder_files: int
    connections: int  # to the database, of all
    rows: int  # of the ledger's and Optuna's tables
    files: int  # checkpoints and spilled rows


ALLOWED = {
    "worker_mb": 0.1, "recorder_mb": 0.1, "worker_files": 0.2, "recorder_files": 0.2,
    "connections": 0.2, "rows": 0.0, "files": 0.0,
}  # fmt: skip
"""By how much, as a part of itself, the median of the last third may lie above the first's."""


def main(seconds: float, workers: int) -> int:
    """Disturb study after study; print samples and a verdict; give the exit code."""
    samples: list[Sample] = []
    print(_line([field.name for field in fields(Sample)]), flush=True)
    chance = random.Random(1)
    with stack(TRIALS, workers, disk_megabytes=8) as made:
        for trainer in ("reference", "cohort"):
            calm(made, trainer)
        spared = made.of("worker")[0], made.of("recorder")[0]
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            name = f"soak {len(samples)}"
            wrong = _tuned(made, name, chance, spared)
            _delete(made, name)
            samples.append(_sample(made, spared, (time.monotonic() - began) / 60, wrong))
            print(_line(astuple(samples[-1])), flush=True)
    verdict, level = judge(samples)
    print(verdict)
    page.write("soak", verdict)
    return int(not level)


def _tuned(stack: Stack, name: str, chance: random.Random, spared: tuple[Member, ...]) -> int:
    """Tune one study under faults; give how much the checker finds wrong with it."""
    stack.fill()
    trainer = chance.choice(["reference", "cohort"])
    with stack.slow():
        stack.submit(name, trainer)
        for _ in range(FAULTS):
            stack.pause(chance.uniform(0.2, 2.0))
            chance.choice(_faults(stack, chance, spared))()
    stack.until(lambda: stack.is_done(name), f"the end of {name}")
    _, findings = stack.judge(name, trainer)
    if findings:
        print(f"{name} ({trainer}): {findings}", flush=True)
    return sum(vars(findings).values())


def _faults(
    stack: Stack, chance: random.Random, spared: tuple[Member, ...]
) -> list[Callable[[], None]]:
    proxy, disk = stack.proxy, stack.disk
    assert proxy is not None
    assert disk is not None

    def kill() -> None:
        _victim().process.kill()

    def stop() -> None:
        victim = _victim()
        victim.process.send_signal(signal.SIGSTOP)
        stack.pause(LEASE_SECONDS + 2)
        victim.process.send_signal(signal.SIGCONT)

    def _victim() -> Member:
        return chance.choice([one for one in stack.crew if one not in spared])

    def cut() -> None:
        stack.cluster.cut(stack.url.rpartition("/")[2])
        proxy.cut(0.5, chance=chance)

    def crash() -> None:
        stack.cluster.stop("immediate")
        stack.pause(chance.uniform(0, 4))
        stack.cluster.start()

    def misbehave() -> None:
        proxy.set(chance.choice([ERRORS, SILENT, DEAF]))
        stack.pause(3)
        proxy.set(PASS)

    def no_room() -> None:
        ballast = disk / "ballast"
        fill(ballast)
        crash()
        ballast.unlink()

    def new_mlflow() -> None:
        stack.kill_mlflow()
        stack.start_mlflow()

    return [kill, kill, stop, cut, crash, misbehave, no_room, new_mlflow]


def _delete(stack: Stack, name: str) -> None:
    places = database.addresses(stack.environment, stack.folder)
    ledger = Ledger(database.ledger_engine(places.ledger))
    manage.delete(ledger, places, name)
    ledger.engine.dispose()


def _sample(stack: Stack, spared: tuple[Member, ...], minute: float, wrong: int) -> Sample:
    worker, recorder = (psutil.Process(member.process.pid) for member in spared)
    tables = stack.text(
        "SELECT string_agg(format('(SELECT count(*) FROM %I.%I)', schemaname, tablename), '+') "
        "FROM pg_tables WHERE schemaname IN ('tuner', 'public')"
    )
    assert stack.disk is not None
    return Sample(
        minute=round(minute, 1),
        wrong=wrong,
        worker_mb=round(worker.memory_info().rss / 1e6, 1),
        recorder_mb=round(recorder.memory_info().rss / 1e6, 1),
        worker_files=worker.num_fds(),
        recorder_files=recorder.num_fds(),
        connections=stack.count(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        ),
        rows=stack.count(f"SELECT {tables}"),
        files=sum(one.is_file() for one in stack.disk.rglob("*")),
    )


def judge(samples: list[Sample]) -> tuple[str, bool]:
    """Compare the last third of what counts with the first; tell whether all is well."""
    counted = samples[WARM_UP:]
    third = max(1, len(counted) // 3)
    lines = ["| held | first third | last third | most | |", "|---|---|---|---|---|"]
    well = len(counted) >= 3 and not any(sample.wrong for sample in samples)
    for name, allowed in ALLOWED.items():
        series = [getattr(sample, name) for sample in counted] or [0]
        first, last = median(series[:third]), median(series[-third:])
        level = last <= first * (1 + allowed)
        well = well and level
        lines.append(
            f"| {name} | {first:g} | {last:g} | {max(series):g} | {'level' if level else 'grows'} |"
        )
    minutes = samples[-1].minute if samples else 0
    lines.append("")
    lines.append(
        f"{minutes:.0f} minutes, {len(samples)} studies of {TRIALS} trials, "
        f"{FAULTS * len(samples)} faults, "
        f"{sum(sample.wrong for sample in samples)} findings; medians after the first {WARM_UP}."
    )
    return "\n".join(lines), well


def _line(values: object) -> str:
    return " ".join(f"{value!s:>14}" for value in values)  # type: ignore[attr-defined]
