"""Workers as elements of a Slurm job array, by `sbatch`, `squeue`, `scontrol` and `scancel`.

No accounting is needed. Elements may start at any time, and again: each is a worker that trains
what is left. Slurm queues an element again after a preemption and when its node has failed; before
a time limit the script does it.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuner.config.cluster import SlurmTable, WorkerTable
from tuner.core.commands import quoted
from tuner.core.errors import UnavailableError, UsageError
from tuner.core.outputs import private_folder
from tuner.executors import Phase, WorkerState, starting
from tuner.ledger.launches import Launch

COMMAND_SECONDS = 60.0
"""How long a command of Slurm may take; it waits for a busy controller."""
HANDLE = re.compile(r"([0-9]{1,10})_([0-9]{1,7})")
"""The array's job and the index in it."""
PHASES: Mapping[str, Phase] = {
    **dict.fromkeys(
        ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"),
        "waiting",
    ),
    **dict.fromkeys(
        ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"), "running"
    ),
    **dict.fromkeys(("COMPLETED", "CANCELLED", "PREEMPTED", "REVOKED"), "ended"),
    **dict.fromkeys(
        ("FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "TIMEOUT", "DEADLINE"), "failed"
    ),
}  # fmt: skip
AWAY = ("Unable to contact slurm controller", "Socket timed out", "Connection refused")
"""What sbatch says if the controller cannot be reached, which may have accepted the job."""

SCRIPT = """\
#!/bin/bash
# A worker of tuner. Before a time limit Slurm sends SIGUSR1 to this shell alone: the worker saves
# its trials, and the job is queued again. When Slurm ends the job it sends SIGTERM to every process
# of it: the worker saves its trials, and Slurm decides what becomes of the job.
again= signalled= worker=
trap 'again=yes signalled=yes; [ -z "$worker" ] || kill -TERM "$worker"' USR1
trap 'signalled=yes' TERM
{setup}{command} </dev/null &
worker=$!
[ -z "$again" ] || kill -TERM "$worker"
wait "$worker"
code=$?
while [ -n "$signalled" ]; do
  signalled=
  wait "$worker"  # a signal has ended the wait before
  code=$?
done
state=
[ -z "$again" ] || state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
[ "$state" != RUNNING ] || scontrol requeue "$SLURM_JOB_ID"  # unless it was cancelled meanwhile
exit "$code"
"""


class SlurmExecutor:
    """An `Executor` of job arrays; the handle of a worker is `JOB_INDEX`, as `squeue` shows it."""

    name = "slurm"
    poll_seconds = 2.0

    def __init__(self, settings: SlurmTable, logs: Path) -> None:
        """Log into files of the folder `logs`, which the nodes share with this machine."""
        self._settings = settings
        self._logs = logs

    def launch(
        self, key: str, workers: int, resources: WorkerTable, arguments: Sequence[str]
    ) -> tuple[str, ...]:
        """Submit a job array with an element for each worker."""
        private_folder(self._logs)
        options = self._options(key, workers, resources)
        script = self._script(starting.command(key, resources, arguments))
        done = _run(
            ["sbatch", *options], script=script, environment=starting.environment(resources)
        )
        if done.returncode:
            _raise_if_away(done)
            raise UsageError(f"Slurm refuses the workers: {_said(done)}")
        job = done.stdout.strip().partition(";")[0]  # after it the cluster's name
        handles = tuple(f"{job}_{index}" for index in range(workers))
        if not HANDLE.fullmatch(handles[0]):
            raise UnavailableError(f"sbatch printed {done.stdout!r:.100}, which is no job's number")
        return handles

    def _options(self, key: str, workers: int, resources: WorkerTable) -> list[str]:
        named = self._settings
        gpus = ":".join(filter(None, ("gpu", named.gpu_type, str(resources.gpus))))
        values = {
            "job-name": starting.job_name(key),
            "array": f"0-{workers - 1}",
            "chdir": str(Path.cwd()),
            "output": f"{str(self._logs.resolve()).replace('%', '%%')}/%A_%a.log",
            "open-mode": "append",  # an element may be started again
            "export": "ALL",
            "signal": f"B:USR1@{resources.grace_seconds}",
            "ntasks": "1",
            "cpus-per-task": str(resources.cpus),
            "mem": None if resources.megabytes is None else f"{resources.megabytes}M",
            "gres": gpus if resources.gpus else None,
            "time": None if named.minutes is None else str(named.minutes),
            "partition": named.partition,
            "account": named.account,
            "qos": named.qos,
            "constraint": named.constraint,
        }
        given = [f"--{name}={value}" for name, value in values.items() if value is not None]
        return ["--parsable", "--requeue", *given, *named.options]

    def _script(self, command: Sequence[str]) -> str:
        setup = [f"{quoted(*shlex.split(one))} || exit\n" for one in self._settings.setup]
        return SCRIPT.format(setup="".join(setup), command=quoted(*command))

    def poll(self, launches: Sequence[Launch]) -> Mapping[str, Sequence[WorkerState]]:
        """Ask for all jobs at once, by their names; a job that is not listed has ended.

        The controller lists a job for some minutes after its end.
        """
        names = {starting.job_name(one.key): one for one in launches}
        if not names:
            return {}
        command = ["squeue", "--noheader", "--array", "--states=all", f"--name={','.join(names)}"]
        done = _run([*command, "--format=%j|%i|%T|%N|%r"])
        if done.returncode:
            raise UnavailableError(f"Slurm does not answer: {_said(done)}")
        found: defaultdict[str, dict[str, WorkerState]] = defaultdict(dict)
        for line in done.stdout.splitlines():
            name, handle, state, node, reason = [*line.split("|", 4), *[""] * 5][:5]
            if name in names and HANDLE.fullmatch(handle):
                found[names[name].key][handle] = self._state(handle, state, node, reason)
        return {
            one.key: [
                found[one.key].get(handle) or WorkerState(handle=handle, phase="ended")
                for handle in one.handles or found[one.key]
            ]
            for one in launches
        }

    def _state(self, handle: str, state: str, node: str, reason: str) -> WorkerState:
        phase = PHASES.get(state, "unknown")
        detail = "" if reason in ("None", "") else reason
        if phase == "failed":
            detail = ", ".join(filter(None, (state, detail)))
        code = _exit_code(handle) if phase == "failed" else None
        return WorkerState(handle=handle, phase=phase, code=code, where=node, detail=detail)

    def cancel(self, launch: Launch) -> None:
        """Cancel the array: Slurm sends SIGTERM, and SIGKILL after its `KillWait`."""
        done = _run(["scancel", f"--name={starting.job_name(launch.key)}"])
        if done.returncode:
            raise UnavailableError(f"Slurm does not cancel {launch.key}: {_said(done)}")

    def logs(self, launch: Launch, handle: str) -> str:
        """Return the end of a worker's log."""
        if not HANDLE.fullmatch(handle):
            raise UsageError(f"{handle!r} is no handle of Slurm; expected one such as 12_0")
        return starting.end_of(self._logs / f"{handle}.log")


def _exit_code(handle: str) -> int | None:
    """Return the exit code of a worker that has failed; None if it is not known any more."""
    done = _run(["scontrol", "--oneliner", "show", "job", handle])
    found = re.search(r"\bExitCode=([0-9]+):", done.stdout)
    return int(found[1]) if found else None


def _run(
    command: Sequence[str],
    *,
    script: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm without a shell. Raise `UnavailableError` if that cannot be done."""
    try:
        return subprocess.run(  # noqa: S603 - every value is an argument of its own
            list(command),
            input=script or "",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
    except FileNotFoundError as error:
        raise UnavailableError(
            f"there is no {command[0]} here; use a machine with the commands of Slurm"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            f"{command[0]} has not ended within {COMMAND_SECONDS:.0f} s; is slurmctld running?"
        ) from error


def _raise_if_away(done: subprocess.CompletedProcess[str]) -> None:
    if any(one in done.stderr for one in AWAY):
        raise UnavailableError(f"Slurm does not answer: {_said(done)}")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command of Slurm said of its failure, on one line."""
    text = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
    return "; ".join(text.splitlines())[:500]
