"""The faults: each is done to a stack in the middle of a study, and says that it fired."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil

from chaos.proxy import DEAF, ERRORS, PASS, SILENT
from chaos.stack import LEASE_SECONDS, Member, Stack
from tuner.core.failpoints import PLACES

RECORDERS_PLACES = [place for place in PLACES if place.startswith("recorder.")]
WORKERS_PLACES = [
    place
    for place in PLACES
    if place.startswith(("ask.", "chunk.", "report.", "checkpoint.", "outcome."))
]
RARE_PLACES = "spill.written", "leave.before_release"
STOPPED_SECONDS = LEASE_SECONDS + 2.0
HOUR = 3600


class NotFiredError(AssertionError):
    """A fault that did not happen proves nothing."""


@dataclass(frozen=True)
class Fault:
    """What is done to a stack while it works at the study of this name."""

    what: str  # in the table
    trainer: str
    do: Callable[[Stack, str], str]  # gives what was seen of it


def fired(seen: object, what: str) -> str:
    """Give what was seen of a fault. Raise `NotFiredError` if that is nothing."""
    if not seen:
        raise NotFiredError(f"the fault did not fire: {what}")
    return f"{seen} {what}"


# --- failpoints


def at_each_place(action: str) -> Callable[[Stack, str], str]:
    """Do one thing at each failpoint of workers and recorders, each once."""

    def do(stack: Stack, name: str) -> str:
        log = stack.folder / f"{name}.fired"
        stack.dismiss(*stack.crew)
        dies = action in ("kill", "raise")
        queues = {
            "worker": _shared(WORKERS_PLACES, stack.workers, one_each=dies),
            "recorder": _shared(RECORDERS_PLACES, stack.recorders, one_each=dies),
        }
        for role, queue in queues.items():
            for _ in range(stack.workers if role == "worker" else stack.recorders):
                stack.join(role, partial(_armed, queue, action, log))
        wanted = {*WORKERS_PLACES, *RECORDERS_PLACES}

        since: dict[int, float] = {}  # when processes were first seen to be stopped

        def all_fired() -> bool:
            fired_all = set(_places(log)) >= wanted or stack.is_done(name)
            return _all_awake(stack, since) and fired_all

        stack.until(all_fired, "every failpoint")
        missed = wanted - set(_places(log))
        if missed:
            raise NotFiredError(f"never reached: {', '.join(sorted(missed))}")
        return f"{len(wanted)} of {len(wanted)} places"

    return do


def _shared(places: Iterable[str], members: int, *, one_each: bool) -> list[list[str]]:
    """Deal the places out: one after the other to whoever starts, or all at once."""
    places = list(places)
    return [[one] for one in places] if one_each else [places[n::members] for n in range(members)]


def _armed(queue: list[list[str]], action: str, log: Path) -> dict[str, str]:
    armed = queue.pop(0) if queue else []
    return {
        "TUNER_FAILPOINTS": ";".join(f"{place}={action}" for place in armed),
        "TUNER_FAILPOINTS_LOG": str(log),
    }


def _places(log: Path) -> list[str]:
    return [line.partition("=")[0] for line in log.read_text().splitlines()] if log.exists() else []


def _all_awake(stack: Stack, since: dict[int, float]) -> bool:
    """Tell whether nobody is stopped; who has been for longer than a lease lasts may go on."""
    now = time.monotonic()
    asleep = [member.process for member in stack.crew if is_stopped(member)]
    for process in asleep:
        if now - since.setdefault(process.pid, now) > STOPPED_SECONDS:
            process.send_signal(signal.SIGCONT)
            del since[process.pid]
    return not asleep


def is_stopped(member: Member) -> bool:
    """Tell whether a process has been stopped by a signal, and not continued yet."""
    try:
        return psutil.Process(member.process.pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:  # it has just ended
        return False


# --- processes


def killed_at_random(stack: Stack, name: str) -> str:
    chance, kills = random.Random(name), 0
    for _ in range(8):
        stack.pause(chance.uniform(0.3, 1.5))
        if not stack.is_done(name):
            chance.choice(stack.crew).process.send_signal(signal.SIGKILL)
            kills += 1
    return fired(kills, "kills")


def stopped(stack: Stack, name: str) -> str:
    """Stop half of the workers and the recorder at work for longer than their leases last."""
    victims = [*stack.of("worker")[::2], stack.of("recorder")[0]]
    for member in victims:
        member.process.send_signal(signal.SIGSTOP)
    stack.pause(3 * LEASE_SECONDS)
    seen = sum(map(is_stopped, victims))
    for member in victims:
        member.process.send_signal(signal.SIGCONT)
    return fired(seen, f"processes for {3 * LEASE_SECONDS:g} s")


def told_to_end(stack: Stack, name: str) -> str:
    codes = stack.dismiss(*stack.crew)
    if set(codes) != {0}:
        raise NotFiredError(f"SIGTERM: expected exit codes 0, got {codes}")
    return fired(len(codes), "processes, exit code 0")


def clock_ahead(stack: Stack, name: str) -> str:
    """Let one worker live an hour ahead: whatever it asks of its machine's clock is wrong."""
    library = _shifted_clock(stack.folder)
    stack.dismiss(stack.of("worker")[0])
    ahead_by = {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(HOUR)}
    member = stack.join("worker", lambda: ahead_by)
    stack.until(lambda: _trials_ended(member) > 0 or stack.is_done(name), "a trial of its own")
    hours = round(_ahead(member) / HOUR, 1)
    stack.until(lambda: _trials_ended(member) > 1 or stack.is_done(name), "another one")
    stack.dismiss(member)
    trials = _trials_ended(member)
    return fired(hours and trials, f"trials by a worker {hours} h ahead")


def _trials_ended(member: Member) -> int:
    return member.log.read_text().count('"event": "trial ended"')


def _ahead(member: Member) -> float:
    line = member.log.read_text().splitlines()[-1]
    said = datetime.fromisoformat(json.loads(line)["timestamp"])
    return (said - datetime.now(UTC)).total_seconds()


def _shifted_clock(folder: Path) -> Path:
    source, library = Path(__file__).with_name("clock.c"), folder / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def killed_at_rare_places(stack: Stack, name: str) -> str:
    """Kill a worker that has put rows aside in an outage, and one that was told to end."""
    log = stack.folder / f"{name}.fired"
    armed = {
        "TUNER_FAILPOINTS": ";".join(f"{place}=kill" for place in RARE_PLACES),
        "TUNER_FAILPOINTS_LOG": str(log),
    }
    stack.dismiss(*stack.of("worker"))
    for _ in range(stack.workers):
        stack.join("worker", lambda: armed)
    stack.until(more_steps(stack, name), "steps by the new workers")
    stack.cluster.stop("fast")
    stack.until(lambda: RARE_PLACES[0] in _places(log), "rows put aside")
    stack.cluster.start()
    stack.until(more_steps(stack, name), "steps after the outage")
    killed = stack.dismiss(*stack.of("worker")).count(-signal.SIGKILL)
    if not {*RARE_PLACES} <= {*_places(log)}:
        raise NotFiredError(f"expected {RARE_PLACES}, only {_places(log)} fired")
    return fired(killed and len(RARE_PLACES), f"of {len(RARE_PLACES)} places")


def more_steps(stack: Stack, name: str) -> Callable[[], bool]:
    """Tell once more of a study has been trained than now."""
    before = stack.trained(name)
    return lambda: stack.trained(name) > before


# --- the database


def database_down(stack: Stack, name: str) -> str:
    signs = "rows are kept in a file", "waits for the database"
    noticed = -sum(map(stack.said, signs))
    stack.cluster.stop("fast")
    stack.pause(20)
    stack.cluster.start()
    noticed += sum(map(stack.said, signs))
    return fired(noticed, "times said by workers, in 20 s")


def database_crashed(stack: Stack, name: str) -> str:
    started = "SELECT extract(epoch FROM pg_postmaster_start_time())::int"
    restarts = 0
    for _ in range(3):
        before = stack.count(started)
        stack.pause(1.0)
        stack.cluster.stop("immediate")
        stack.cluster.start()
        restarts += stack.count(started) > before
    return fired(restarts, "crashes")


def connections_cut(stack: Stack, name: str, *, times: int = 20) -> str:
    """Cut connections to both, each with the chance of a half, every half second.

    So many times, and on until both were cut.
    """
    assert stack.proxy is not None
    chance, ours, theirs = random.Random(name), 0, 0
    for cuts in range(3 * times):
        if cuts >= times and ours and theirs:
            break
        ours += stack.count(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.5"
        )
        theirs += stack.proxy.cut(0.5, chance=chance)
        stack.pause(chance.uniform(0.2, 0.8))
    return fired(ours and theirs and f"{ours} + {theirs}", "connections")


# --- MLflow


def mlflow_killed(stack: Stack, name: str) -> str:
    assert stack.proxy is not None
    before = stack.proxy.counts["refused"]
    stack.kill_mlflow()
    stack.pause(30)
    refused = stack.proxy.counts["refused"] - before
    stack.start_mlflow()
    return fired(refused, "calls refused in 30 s")


def mlflow_is(mode: str, seconds: float, what: str) -> Callable[[Stack, str], str]:
    """Let the proxy before MLflow misbehave for a time."""

    def do(stack: Stack, name: str) -> str:
        proxy = stack.proxy
        assert proxy is not None
        before = proxy.counts[mode]
        proxy.set(mode)
        stack.pause(seconds)
        proxy.set(PASS)
        return fired(proxy.counts[mode] - before, f"{what} in {seconds:g} s")

    return do


# --- disks


def disk_full(stack: Stack, name: str) -> str:
    """Leave no room for checkpoints and spilled rows, while the database is away too."""
    disk = stack.disk
    assert disk is not None, "see `stack`: a small disk can be mounted by root alone"
    signs = "no room to keep rows", "has no checkpoint"
    before = [stack.said(one) for one in signs]
    ballast = disk / "ballast"
    fill(ballast)
    stack.pause(3)
    stack.cluster.stop("fast")
    stack.pause(6)
    stack.cluster.start()
    stack.pause(1)
    ballast.unlink()
    waited, unsaved = (stack.said(one) - was for one, was in zip(signs, before, strict=True))
    return fired(unsaved and waited, f"times no room for rows, {unsaved} checkpoints not saved")


def fill(ballast: Path) -> None:
    """Write a file until its disk is full."""
    with ballast.open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while True:
                    file.write(b"0" * size)
            except OSError:
                continue


# --- recorders


def many_recorders(stack: Stack, name: str) -> str:
    """Let four recorders publish one study, and see how many of them do."""
    extra = [stack.join("recorder") for _ in range(2)]
    seen: set[str] = set()

    def several() -> bool:
        publisher = stack.text(
            "SELECT max(publisher) FROM tuner.tuner_published_studies p "
            "JOIN tuner.tuner_studies s ON s.id = p.study_id "
            f"WHERE name = '{name}' AND target = 'mlflow'"
        )
        seen.add(publisher)
        return len(seen - {""}) > 1 or stack.is_done(name)

    stack.until(several, "a second publisher")
    stack.dismiss(*extra)
    return fired(len(seen - {""}) > 1 and len(seen - {""}), "of 4 recorders seen to publish")


def faults() -> list[Fault]:
    """List the faults, in the order of the table."""
    one, many = "reference", "cohort"
    return [
        Fault("kill at each failpoint", one, at_each_place("kill")),
        Fault("kill at each failpoint", many, at_each_place("kill")),
        Fault("an error at each failpoint", many, at_each_place("raise")),
        Fault("stopped at each failpoint, past the lease", one, at_each_place("stop")),
        Fault("a pause of 2 s at each failpoint", many, at_each_place("delay:2")),
        Fault("kill in an outage and while leaving", many, killed_at_rare_places),
        Fault("anyone killed at random", one, killed_at_random),
        Fault("anyone killed at random", many, killed_at_random),
        Fault("SIGSTOP for three leases", many, stopped),
        Fault("SIGTERM to all, then new ones", many, told_to_end),
        Fault("PostgreSQL away", one, database_down),
        Fault("PostgreSQL crashes (immediate)", many, database_crashed),
        Fault("connections cut at random", one, connections_cut),
        Fault("MLflow killed", many, mlflow_killed),
        Fault("MLflow answers 500", one, mlflow_is(ERRORS, 10, "answers")),
        Fault("MLflow hangs", many, mlflow_is(SILENT, 20, "requests")),
        Fault("answers of MLflow are lost", one, mlflow_is(DEAF, 20, "pieces of answers lost")),
        Fault("one worker lives an hour ahead", one, clock_ahead),
        Fault("disk full, then PostgreSQL away", many, disk_full),
        Fault("four recorders", one, many_recorders),
    ]
