"""Workers as an Indexed Job of Kubernetes, by its official client (the extra `kubernetes`).

A pod that is evicted or whose node fails is replaced, and trains what is left. The job counts an
index as done once its worker has ended by itself; one that was stopped exits with another code.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tuner.config.cluster import KubernetesTable, WorkerTable
from tuner.core.errors import UnavailableError, UsageError
from tuner.executors import Phase, WorkerState, starting
from tuner.ledger.launches import Launch

if TYPE_CHECKING:
    from kubernetes import client

STOPPED_CODE = 143
"""Exit code of a worker that was stopped by SIGTERM, so that its index is not done."""
LAUNCH, INDEX = "tuner/launch", "batch.kubernetes.io/job-completion-index"
KEEP_SECONDS = 86_400
"""How long Kubernetes keeps a finished job, with the logs of its pods."""
REQUEST_SECONDS = 30
TAIL_LINES = 1000
POD_PHASES: Mapping[str, Phase] = {"Pending": "waiting", "Running": "running"}

R = TypeVar("R")


class KubernetesExecutor:
    """An `Executor` of Indexed Jobs; the handle of a worker is `JOB-INDEX`, as its pods begin."""

    name = "kubernetes"
    poll_seconds = 2.0

    def __init__(self, settings: KubernetesTable) -> None:
        """Find the cluster as kubectl does; in a pod, it is the pod's. Raise `UsageError`."""
        try:
            from kubernetes import client, config  # noqa: PLC0415 - an extra, and slow
        except ImportError as error:
            raise UsageError(
                "there is no client for Kubernetes; install it: pip install -e '.[kubernetes]'"
            ) from error
        self._settings = settings
        configuration = client.Configuration()
        try:
            try:
                config.load_kube_config(
                    config_file=os.environ.get("KUBECONFIG"),  # else that at the first import
                    context=settings.context,
                    client_configuration=configuration,
                )
            except config.ConfigException:
                if settings.context is not None:
                    raise
                config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException as error:
            raise UsageError(
                f"Kubernetes is not configured here: {error}; set KUBECONFIG as for kubectl"
            ) from error
        api = client.ApiClient(configuration)
        self._jobs: client.BatchV1Api = client.BatchV1Api(api)
        self._pods: client.CoreV1Api = client.CoreV1Api(api)

    def launch(
        self, key: str, workers: int, resources: WorkerTable, arguments: Sequence[str]
    ) -> tuple[str, ...]:
        """Create a job with an index for each worker."""
        body = manifest(self._settings, key, workers, resources, arguments)
        status, _ = self._asked(
            self._jobs.create_namespaced_job, self._settings.namespace, body, allowed=(409,)
        )
        assert status in (201, 409), status  # 409: an answer was lost, and it is there
        return tuple(f"{starting.job_name(key)}-{index}" for index in range(workers))

    def poll(self, launches: Sequence[Launch]) -> Mapping[str, Sequence[WorkerState]]:
        """Read all jobs and their pods by their labels; a job that is not there has ended."""
        if not launches:
            return {}
        selector = f"{LAUNCH} in ({','.join(one.key for one in launches)})"
        namespace = self._settings.namespace
        _, jobs = self._asked(self._jobs.list_namespaced_job, namespace, label_selector=selector)
        _, pods = self._asked(self._pods.list_namespaced_pod, namespace, label_selector=selector)
        by_key = {one.metadata.labels.get(LAUNCH): one for one in jobs.items}
        newest: defaultdict[str, dict[int, Any]] = defaultdict(dict)
        for pod in sorted(pods.items, key=lambda one: one.metadata.creation_timestamp):
            index = (pod.metadata.annotations or {}).get(INDEX, "")
            if index.isdecimal():
                newest[pod.metadata.labels.get(LAUNCH, "")][int(index)] = pod
        return {one.key: _states(one, by_key.get(one.key), newest[one.key]) for one in launches}

    def cancel(self, launch: Launch) -> None:
        """Delete the job: its pods get SIGTERM, and SIGKILL after the grace."""
        self._asked(
            self._jobs.delete_namespaced_job,
            starting.job_name(launch.key),
            self._settings.namespace,
            propagation_policy="Background",
            allowed=(404,),
        )

    def logs(self, launch: Launch, handle: str) -> str:
        """Return the end of the log of a worker's newest pod."""
        index = launch.handles.index(handle)
        selector = f"{LAUNCH}={launch.key},{INDEX}={index}"
        namespace = self._settings.namespace
        _, pods = self._asked(self._pods.list_namespaced_pod, namespace, label_selector=selector)
        if not pods.items:
            raise UsageError(f"the worker {handle} has no pod: it waits, or was removed")
        pod = max(pods.items, key=lambda one: one.metadata.creation_timestamp)
        _, text = self._asked(
            self._pods.read_namespaced_pod_log,
            pod.metadata.name,
            namespace,
            tail_lines=TAIL_LINES,
        )
        return str(text)

    def _asked(
        self, call: Callable[..., R], *arguments: Any, allowed: Sequence[int] = (), **more: Any
    ) -> tuple[int, R]:
        """Return the status and the answer of a request; `allowed` are errors that are expected.

        Raise `UsageError` if the server refuses it, and `UnavailableError` if it does not answer.
        """
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        try:
            answer: Any = getattr(call.__self__, f"{call.__name__}_with_http_info")(  # type: ignore[attr-defined]
                *arguments, _request_timeout=REQUEST_SECONDS, **more
            )
        except ApiException as error:
            if error.status in allowed:
                return error.status, None  # type: ignore[return-value]
            why = f"{error.status} {error.reason}: {error.body or ''}"[:500]
            if error.status in (401, 403) or 400 <= (error.status or 0) < 429:
                raise UsageError(f"Kubernetes refuses the request: {why}") from error
            raise UnavailableError(f"Kubernetes does not answer: {why}") from error
        except HTTPError as error:
            raise UnavailableError(f"Kubernetes does not answer: {error}") from error
        return answer[1], answer[0]


def _states(launch: Launch, job: Any, pods: Mapping[int, Any]) -> list[WorkerState]:
    """Return the states of the workers of a launch from its job and the newest pod of each."""
    handles = launch.handles or tuple(
        f"{starting.job_name(launch.key)}-{index}" for index in range(launch.workers if job else 0)
    )
    if job is None:
        return [WorkerState(handle=one, phase="ended") for one in handles]
    done, failed = (
        _indexes(getattr(job.status, name, None))
        for name in ("completed_indexes", "failed_indexes")
    )
    conditions = {one.type: one for one in job.status.conditions or () if one.status == "True"}
    is_over = conditions.get("Failed")
    states = []
    for index, handle in enumerate(handles):
        pod = pods.get(index)
        where = "" if pod is None else pod.spec.node_name or ""
        phase: Phase = "waiting" if pod is None else POD_PHASES.get(pod.status.phase, "waiting")
        code, detail = None, ""
        if index in done:
            phase = "ended"
        elif index in failed or is_over is not None:
            phase, code = "failed", _exit_code(pod)
            detail = "" if is_over is None else str(is_over.reason or "")
        elif "Suspended" in conditions:
            phase, detail = "waiting", "suspended"
        states.append(
            WorkerState(handle=handle, phase=phase, code=code, where=where, detail=detail)
        )
    return states


def _indexes(text: str | None) -> set[int]:
    """Return the numbers of a text such as "1,3-5"."""
    found: set[int] = set()
    for part in filter(None, (text or "").split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _exit_code(pod: Any) -> int | None:
    """Return the exit code of a pod's container; None if it is not known."""
    statuses = [] if pod is None else pod.status.container_statuses or []
    ended = [one.state.terminated for one in statuses if one.state and one.state.terminated]
    return ended[0].exit_code if ended else None


def manifest(
    settings: KubernetesTable,
    key: str,
    workers: int,
    resources: WorkerTable,
    arguments: Sequence[str],
) -> dict[str, Any]:
    """Return the job of a launch, as `kubectl apply` takes it."""
    name = starting.job_name(key)
    labels = {
        **settings.labels,
        "app.kubernetes.io/name": "tuner",
        "app.kubernetes.io/component": "worker",
        LAUNCH: key,
    }
    queue = {} if settings.queue is None else {"kueue.x-k8s.io/queue-name": settings.queue}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": labels | queue},
        "spec": {
            "completions": workers,
            "parallelism": workers,
            "completionMode": "Indexed",
            "backoffLimit": 3 * workers,
            "ttlSecondsAfterFinished": KEEP_SECONDS,
            "podFailurePolicy": {
                "rules": [
                    {  # evicted, preempted, or its node is drained
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    {
                        "action": "Ignore",
                        "onExitCodes": {"operator": "In", "values": [STOPPED_CODE]},
                    },
                    {  # it refuses the study
                        "action": "FailJob",
                        "onExitCodes": {"operator": "In", "values": [UsageError.exit_code]},
                    },
                ]
            },
            "template": {
                "metadata": {"labels": labels},
                "spec": _pod(settings, key, resources, arguments),
            },
        },
    }


def _pod(
    settings: KubernetesTable, key: str, resources: WorkerTable, arguments: Sequence[str]
) -> dict[str, Any]:
    """Return what a worker's pod may do, which is as little as in docker-compose.yml."""
    command = starting.command(
        key, resources, [*arguments, "--stopped-code", str(STOPPED_CODE)], python="python"
    )
    amounts: dict[str, str] = {"cpu": str(resources.cpus)}
    if resources.megabytes is not None:
        amounts["memory"] = f"{resources.megabytes}Mi"
    gpus = {settings.gpu_resource: str(resources.gpus)} if resources.gpus else {}
    limits = {k: v for k, v in amounts.items() if k != "cpu"} | gpus
    variables = {"TUNER_SPILL": "/tmp/spill"} | resources.environment  # noqa: S108 - of the pod
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    if settings.checkpoints_claim is not None:
        claim = {"claimName": settings.checkpoints_claim}
        volumes.append({"name": "checkpoints", "persistentVolumeClaim": claim})
        mounts.append({"name": "checkpoints", "mountPath": "/var/lib/tuner/checkpoints"})
        variables = {"TUNER_CHECKPOINTS": "/var/lib/tuner/checkpoints"} | variables
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": resources.grace_seconds,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "worker",
                "image": settings.image,
                # the image's entry point reads secrets from files
                "args": command,
                "env": [{"name": k, "value": v} for k, v in variables.items()],
                "envFrom": [{"secretRef": {"name": one}} for one in settings.secrets],
                "resources": {"requests": amounts | gpus, "limits": limits},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if settings.service_account is not None:
        pod["serviceAccountName"] = settings.service_account
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    return pod
