"""Workers that executors start for a study: start, list and stop them, and read their logs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuner.config.cluster import ClusterSpec, WorkerTable
from tuner.core.environment import person
from tuner.core.errors import NotFoundError, UnavailableError, UsageError
from tuner.core.executors import EXECUTORS, KUBERNETES, LOCAL, RAY
from tuner.executors import Executor, WorkerState
from tuner.executors.kubernetes import KubernetesExecutor
from tuner.executors.local import LocalExecutor
from tuner.executors.ray import RayExecutor
from tuner.executors.slurm import SlurmExecutor
from tuner.ledger import ENDED, OPEN, Ledger, Reader, StudyRecord, launches
from tuner.ledger.database import Addresses
from tuner.ledger.decoding import MEMORY
from tuner.ledger.launches import Launch
from tuner.ledger.managing import BEING_DELETED
from tuner.operations.context import PREFIXES

UNANSWERED_SECONDS = 600.0
"""Age at which a launch of which its engine knows nothing was never started."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The workers of one study on one engine."""

    ledger: Ledger
    study: StudyRecord
    executor: Executor
    resources: WorkerTable
    arguments: Sequence[str]  # of `tuner worker`

    def start(self, workers: int) -> Launch:
        """Start workers, and record them. Raise `UsageError` if the engine refuses."""
        launch = launches.add(self.ledger, self.study, self.executor.name, workers, person())
        try:
            handles = self.executor.launch(launch.key, workers, self.resources, self.arguments)
        except UsageError:
            launches.ended(self.ledger, launch.key)
            raise
        launches.answered(self.ledger, launch.key, handles)
        return Launch(**vars(launch) | {"handles": handles})

    def running(self) -> list[tuple[Launch, Sequence[WorkerState]]]:
        """Return the launches on this engine that have workers, and what the engine says of them.

        They include those of other processes. Raise `UnavailableError` if it does not answer.
        """
        found = launches.of_study(self.ledger, self.study.name, running=True)
        mine = [one for one in found if one.executor == self.executor.name]
        return list(_refreshed(self.ledger, self.executor, mine))


def executor_of(
    name: str,
    settings: ClusterSpec,
    places: Addresses,
    study_id: int,
    *,
    end_with_this: bool = False,
) -> Executor:
    """Return an executor by its name. Raise `UsageError` if its workers could not share the ledger.

    Local workers end with this process if asked to.
    """
    if name == LOCAL:
        return LocalExecutor(
            places.spill.with_name("logs") / str(study_id), end_with_this=end_with_this
        )
    if name not in EXECUTORS:
        raise UsageError(f"there is no executor {name!r:.40}; expected {', '.join(EXECUTORS)}")
    if places.file is not None:
        raise UsageError(
            f"workers on {name} run on other machines, which cannot share the SQLite file "
            f"{places.file.name!r}; set TUNER_DATABASE_URL to a PostgreSQL database"
        )
    if name == KUBERNETES:
        return KubernetesExecutor(settings.kubernetes)
    if name == RAY:
        return RayExecutor(settings.ray)
    logs = Path(settings.slurm.logs or ".tuner/logs").resolve()
    return SlurmExecutor(settings.slurm, logs / str(study_id))


def start(
    ledger: Ledger,
    places: Addresses,
    settings: ClusterSpec,
    name: str,
    *,
    workers: int,
    executor: str = LOCAL,
    prefixes: Sequence[str] = PREFIXES,
    recorder: bool = True,
) -> dict[str, Any]:
    """Start workers that train a study until nothing is left; return what was started.

    Raise `UsageError` if the study is paused or stopped, or the engine refuses.
    """
    study = ledger.study(name)
    refuse_closed(study)
    fleet = Fleet(
        ledger=ledger,
        study=study,
        executor=executor_of(executor, settings, places, study.id),
        resources=settings.worker,
        arguments=worker_arguments([name], prefixes, until_idle=True, recorder=recorder),
    )
    launch = fleet.start(workers)
    return {
        "study": name,
        "executor": executor,
        "launch": launch.key,
        "handles": list(launch.handles),
    }


def worker_arguments(
    names: Sequence[str], prefixes: Sequence[str], *, until_idle: bool, recorder: bool
) -> list[str]:
    """Return the arguments of `tuner worker` that name what it trains."""
    studies = [argument for name in names for argument in ("--study", name)]
    allowed = [argument for prefix in prefixes for argument in ("--allow", prefix)]
    idle = ["--until-idle"] if until_idle else []
    return [*studies, *allowed, *idle, *([] if recorder else ["--no-recorder"]), "--log", "json"]


def closed_in_words(study: StudyRecord) -> str | None:
    """Return why a study is paused, stopped or ended, and what to do; None if it is open."""
    if study.state == OPEN:
        return None
    if study.state == ENDED:
        return f"study {study.name!r} has ended: {study.reason} A larger budget continues it"
    if study.reason == BEING_DELETED:
        return f"study {study.name!r} is {study.state}: {study.reason.removesuffix('.')}"
    return (
        f"study {study.name!r} is {study.state}: {study.reason} "
        f"`tuner resume {shlex.quote(study.name)}` reopens it"
    )


def refuse_closed(study: StudyRecord) -> None:
    """Raise `UsageError` if a study is paused or stopped."""
    reason = closed_in_words(study)
    if reason is not None and study.state != ENDED:
        raise UsageError(reason)


def listed(
    ledger: Ledger, places: Addresses, settings: ClusterSpec, name: str, *, ended: bool = False
) -> dict[str, Any]:
    """Return the workers that were started for a study, as `--json` prints them.

    Those of launches that were seen to end are left out, unless asked for. An engine that cannot be
    asked from here makes the state of its workers "unknown".
    """
    ledger.identity(name)
    found = launches.of_study(ledger, name, running=not ended)
    states = _asked(ledger, places, settings, [one for one in found if one.ended_at is None])
    since = min((one.created_at for one in found), default=0.0)
    known = launches.environments(ledger, name, since) if found else {}
    workers = []
    for launch in found:
        about = {
            "launch": launch.key,
            "executor": launch.executor,
            "launched_at": launch.created_at,
            "os_user": launch.os_user,
            "host": launch.host,
        }
        over = [WorkerState(handle=one, phase="ended") for one in launch.handles]
        workers += [
            asdict(one) | about | machine(known.get((launch.key, index), {}))
            for index, one in enumerate(states.get(launch.key, over))
        ]
    return {"study": name, "workers": workers}


def machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return a worker's device, and the most MiB of memory that it has had, if they are known."""
    return {
        "device": environment.get("device_name", environment.get("device")),
        **{key: environment.get(key) for key in MEMORY},
    }


def machine_in_words(worker: Mapping[str, Any]) -> str:
    """Return what `machine` says of a worker, as a clause; empty if nothing is known."""
    words = [worker["device"]]
    for key in MEMORY:
        if worker[key] is not None:
            gpu = " on its GPU" if key == "peak_gpu_memory_mib" else ""
            words.append(f"at most {worker[key]} MiB{gpu}")
    return ", ".join(filter(None, words))


def stop(ledger: Ledger, places: Addresses, settings: ClusterSpec, name: str) -> dict[str, Any]:
    """Ask all workers that were started for a study to end; those that wait never start.

    Trials that they train are saved, and left to other workers. Return the launches.
    """
    ledger.identity(name)
    asked, problems = [], []
    for launch in launches.of_study(ledger, name, running=True):
        try:
            _executor(launch, places, settings).cancel(launch)
            asked.append(launch.key)
        except (UsageError, UnavailableError) as error:
            problems.append(f"{launch.executor} {launch.key}: {error}")
    return {"study": name, "stopped": asked, "problems": problems}


def logs(ledger: Ledger, places: Addresses, settings: ClusterSpec, name: str, handle: str) -> str:
    """Return the end of the log of a worker. Raise `NotFoundError` if none has this handle."""
    ledger.identity(name)
    for launch in launches.of_study(ledger, name):
        if handle in launch.handles:
            return _executor(launch, places, settings).logs(launch, handle)
    raise NotFoundError(
        f"no worker {handle!r:.60} was started for study {name!r}; `tuner workers list` shows them"
    )


def _executor(launch: Launch, places: Addresses, settings: ClusterSpec) -> Executor:
    return executor_of(launch.executor, settings, places, launch.study_id)


def _asked(
    ledger: Ledger, places: Addresses, settings: ClusterSpec, found: Sequence[Launch]
) -> dict[str, Sequence[WorkerState]]:
    """Return the states of the workers of launches; unknown where the engine does not answer."""
    states: dict[str, Sequence[WorkerState]] = {}
    for name in {one.executor for one in found}:
        mine = [one for one in found if one.executor == name]
        try:
            executor = _executor(mine[0], places, settings)
            states |= {one.key: known for one, known in _refreshed(ledger, executor, mine)}
        except (UsageError, UnavailableError) as error:
            for launch in mine:
                states[launch.key] = [
                    WorkerState(handle=one, phase="unknown", detail=str(error))
                    for one in launch.handles or ("",)
                ]
    return states


def _refreshed(
    ledger: Reader, executor: Executor, found: Sequence[Launch]
) -> Iterator[tuple[Launch, Sequence[WorkerState]]]:
    """Ask an engine for launches, and record which have ended.

    Handles are recorded where the process that asked for the workers died before it knew them.
    """
    states: Mapping[str, Sequence[WorkerState]] = executor.poll(found)
    for launch in found:
        known = states[launch.key]
        is_lost = not known and launches.age(ledger, launch) > UNANSWERED_SECONDS
        with suppress(UnavailableError):  # a login that only reads
            if known and not launch.handles:
                launches.answered(ledger, launch.key, [one.handle for one in known])
            if is_lost or (known and all(one.is_over for one in known)):
                launches.ended(ledger, launch.key)
        yield launch, known
