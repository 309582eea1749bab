"""Workers on Kubernetes: what its client sends to a server, and what is made of the answers."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import pytest
import yaml
from helpers import submit as submitted
from postgres import rows
from processes import ROOT, until
from test_executors import KEY, launched

from tuner.config import cluster
from tuner.config.cluster import ClusterSpec, KubernetesTable, WorkerTable
from tuner.core.errors import UnavailableError, UsageError
from tuner.executors import WorkerState
from tuner.executors.kubernetes import INDEX, KubernetesExecutor, manifest
from tuner.ledger import Ledger, database, launches, managing
from tuner.operations import workers

VERSION = "1.31"
"""The oldest version of Kubernetes that has all that manifests use."""
SETTINGS = """
[worker]
cpus = 2
memory = "4GiB"
gpus = 1
environment = { OMP_NUM_THREADS = "2" }

[kubernetes]
image = "registry/tuner:1"
namespace = "tuning"
queue = "team"
secrets = ["tuner-worker"]
checkpoints_claim = "checkpoints"
service_account = "worker"
node_selector = { pool = "gpu" }
labels = { team = "vision" }
"""


class Stub(ThreadingHTTPServer):
    """The part of an API server that executors use: jobs and pods in one namespace."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.deleted: list[dict[str, list[str]]] = []  # parameters of requests
        self.broken: int | None = None  # the status of every answer

    def add_pod(self, job: str, index: int, phase: str, **status: Any) -> None:
        labels = self.jobs[job]["spec"]["template"]["metadata"]["labels"] | {INDEX: str(index)}
        number = len(self.pods)
        about = {
            "name": f"{job}-{index}-{number:05}",
            "labels": labels,
            "annotations": {INDEX: str(index)},
            "creationTimestamp": f"2026-01-01T00:00:{number:02}Z",
        }
        spec = {"nodeName": f"node{index}", "containers": [{"name": "worker"}]}
        self.pods.append({"metadata": about, "spec": spec, "status": {"phase": phase, **status}})


class Answering(BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        self.send_response(status)
        kind = "text/plain" if isinstance(content, str) else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def problem(self, status: int, reason: str) -> None:
        self.answer(status, {"kind": "Status", "status": "Failure", "reason": reason})

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "{}")
        url = urlsplit(self.path)
        match = re.fullmatch(
            "(/apis/batch/v1/namespaces/tuning/jobs|/api/v1/namespaces/tuning/pods)(?:/([^/]+))?(/log)?",
            url.path,
        )
        if self.server.broken is not None:
            self.problem(self.server.broken, "because")
        elif match is None:
            self.problem(404, "NotFound")
        else:
            kind, name, log = match.groups()
            selector = parse_qs(url.query).get("labelSelector", [""])[0]
            self.dispatch(self.command, kind.rpartition("/")[2], name, log, selector, body)

    do_GET = do_POST = do_DELETE = handle_request  # noqa: N815 - as the library names them

    def dispatch(
        self, verb: str, kind: str, name: str | None, log: str | None, selector: str, body: Any
    ) -> None:
        jobs = self.server.jobs
        if (verb, kind) == ("POST", "jobs"):
            name = body["metadata"]["name"]
            if name in jobs:
                self.problem(409, "AlreadyExists")
                return
            jobs[name] = body | {"status": {}}
            self.answer(201, jobs[name])
        elif (verb, kind) == ("DELETE", "jobs"):
            if name not in jobs:
                self.problem(404, "NotFound")
                return
            self.server.deleted.append(parse_qs(urlsplit(self.path).query))
            del jobs[name]
            self.answer(200, {"kind": "Status", "status": "Success"})
        elif log:
            self.answer(200, f"the log of {name}\n")
        else:
            items = list(jobs.values()) if kind == "jobs" else self.server.pods
            chosen = [one for one in items if selects(selector, one["metadata"]["labels"])]
            self.answer(200, {"kind": "List", "metadata": {}, "items": chosen})


def selects(selector: str, labels: dict[str, str]) -> bool:
    within = re.fullmatch(r"(\S+) in \((.*)\)", selector)
    if within:
        return labels.get(within[1]) in within[2].split(",")
    return all(
        labels.get(one.partition("=")[0]) == one.partition("=")[2] for one in selector.split(",")
    )


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A server that the kubeconfig names."""
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": address}}],
        "users": [{"name": "me", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_job_is_valid_and_has_every_setting() -> None:
    settings = cluster.parse(SETTINGS, "cluster.toml")
    for one in (settings, ClusterSpec()):
        made = manifest(one.kubernetes, KEY, 4, one.worker, ["--study", "a $(b)"])
        kubernetes_validate.validate(made, VERSION, strict=True)
    made = manifest(settings.kubernetes, KEY, 4, settings.worker, ["--study", "a $(b)"])
    labels = made["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == labels["team"].replace("vision", "team")
    pod = made["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "2", "memory": "4096Mi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "4096Mi", "nvidia.com/gpu": "1"},
    }
    assert container["args"][:5] == ["python", "-P", "-m", "tuner", "worker"]
    assert container["envFrom"] == [{"secretRef": {"name": "tuner-worker"}}]
    assert {one["name"]: one["value"] for one in container["env"]} == {
        "OMP_NUM_THREADS": "2",
        "TUNER_SPILL": "/tmp/spill",
        "TUNER_CHECKPOINTS": "/var/lib/tuner/checkpoints",
    }
    assert (pod["terminationGracePeriodSeconds"], pod["nodeSelector"]) == (60, {"pool": "gpu"})
    assert "PASSWORD" not in json.dumps(made)


@pytest.mark.slow
def test_workers_are_started_listed_read_and_stopped(stub, ledger, places) -> None:
    settings = cluster.parse(SETTINGS, "cluster.toml")
    shared = replace(places, file=None)  # as on PostgreSQL
    study = submitted(ledger)
    started = workers.start(
        ledger, shared, settings, study.name, workers=6, executor="kubernetes", recorder=False
    )
    (job,) = stub.jobs
    assert job == f"tuner-{started['launch']}"
    assert started["handles"] == [f"{job}-{index}" for index in range(6)]
    kubernetes_validate.validate(
        {k: v for k, v in stub.jobs[job].items() if k != "status"}, VERSION, strict=True
    )

    def states() -> dict[str, tuple[str, str]]:
        found = workers.listed(ledger, shared, settings, study.name)["workers"]
        return {
            one["handle"].removeprefix(f"{job}-"): (one["phase"], one["where"]) for one in found
        }

    assert set(states().values()) == {("waiting", "")}
    stub.add_pod(job, 0, "Running")
    stub.add_pod(job, 1, "Succeeded")
    stub.add_pod(job, 2, "Failed")  # was evicted
    stub.add_pod(job, 2, "Running")  # which replaces it
    stub.add_pod(job, 3, "Failed")
    stub.add_pod(job, 4, "Pending")
    stub.jobs[job]["status"] = {"completedIndexes": "1", "failedIndexes": "3"}
    assert states() == {
        "0": ("running", "node0"),
        "1": ("ended", "node1"),
        "2": ("running", "node2"),
        "3": ("failed", "node3"),
        "4": ("waiting", "node4"),
        "5": ("waiting", ""),
    }
    log = workers.logs(ledger, shared, settings, study.name, f"{job}-2")
    assert log == f"the log of {job}-2-00003\n"
    with pytest.raises(UsageError, match="has no pod"):
        workers.logs(ledger, shared, settings, study.name, f"{job}-5")
    stub.broken = 503
    assert set(states().values()) == {("unknown", "")}
    stub.broken = None
    assert workers.stop(ledger, shared, settings, study.name)["problems"] == []
    assert stub.jobs == {}
    assert stub.deleted[0]["propagationPolicy"] == ["Background"]
    assert set(states().values()) == {("ended", "")}
    assert states() == {}, "the launch was seen to end"
    assert workers.stop(ledger, shared, settings, study.name) == {
        "study": study.name, "stopped": [], "problems": [],
    }  # fmt: skip


@pytest.mark.slow
def test_a_worker_that_refuses_its_study_ends_the_job_with_its_code(stub, ledger) -> None:
    found = launched(ledger, [], "kubernetes")
    executor = KubernetesExecutor(KubernetesTable(namespace="tuning"))
    executor.launch(found.key, 1, WorkerTable(), [])
    name = f"tuner-{found.key}"
    state = {"terminated": {"exitCode": 2, "reason": "Error"}}
    statuses = [
        {
            "name": "worker", "state": state, "ready": False, "restartCount": 0, "image": "x",
            "imageID": "y",
        }
    ]  # fmt: skip
    stub.add_pod(name, 0, "Failed", containerStatuses=statuses)
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}
    stub.jobs[name]["status"] = {"conditions": [failed]}
    known = replace(found, workers=1)  # its launcher died before the answer
    assert executor.poll([known])[found.key] == [
        WorkerState(
            handle=f"{name}-0", phase="failed", code=2, where="node0", detail="PodFailurePolicy"
        )
    ]


@pytest.mark.slow
def test_an_answer_that_was_lost_starts_nothing_twice(stub) -> None:
    executor = KubernetesExecutor(KubernetesTable(namespace="tuning"))
    first = executor.launch(KEY, 2, WorkerTable(), [])
    assert executor.launch(KEY, 2, WorkerTable(), []) == first
    assert len(stub.jobs) == 1


@pytest.fixture
def namespace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where jobs may be made: on the stand-in, or on the real server that a variable names."""
    if file := os.environ.get("TUNER_TEST_KUBECONFIG"):
        monkeypatch.setenv("KUBECONFIG", file)
        return os.environ.get("TUNER_TEST_NAMESPACE", "default")
    request.getfixturevalue("stub")
    return "tuning"


@pytest.mark.slow
def test_any_server_takes_finds_and_deletes_a_job(namespace: str, ledger: Ledger) -> None:
    settings = cluster.parse(SETTINGS, "cluster.toml")
    table = settings.kubernetes.model_copy(update={"namespace": namespace, "queue": None})
    executor = KubernetesExecutor(table)
    found = launched(ledger, [], "kubernetes")
    try:
        handles = executor.launch(found.key, 2, settings.worker, ["--study", "a $(b)"])
        assert handles == tuple(f"tuner-{found.key}-{index}" for index in range(2))
        assert executor.launch(found.key, 2, settings.worker, ["--study", "a $(b)"]) == handles
        (states,) = executor.poll([replace(found, handles=handles)]).values()
        assert [one.handle for one in states] == [*handles]
        assert {one.phase for one in states} <= {"waiting", "running"}
        with pytest.raises(UsageError, match=r"refuses the request: 422|refuses the request: 404"):
            KubernetesExecutor(table.model_copy(update={"namespace": "No Such"})).launch(
                found.key, 2, settings.worker, []
            )
    finally:
        executor.cancel(found)
    until(
        lambda: all(
            one.is_over for one in executor.poll([replace(found, handles=handles)])[found.key]
        ),
        "the job's deletion",
    )


@pytest.mark.slow
@pytest.mark.parametrize(("status", "error"), [(403, UsageError), (500, UnavailableError)])
def test_what_the_server_refuses_is_said(stub, ledger, places, status, error) -> None:
    submitted(ledger)
    stub.broken = status
    settings = ClusterSpec(kubernetes=KubernetesTable(namespace="tuning"))
    with pytest.raises(error, match=f"Kubernetes .*{status}.*because"):
        workers.start(
            ledger, replace(places, file=None), settings, "small", workers=1, executor="kubernetes"
        )
    running = launches.of_study(ledger, "small", running=True)
    assert len(running) == (0 if status == 403 else 1), "it may be there, where no answer came"


@pytest.mark.longer
def test_without_a_configuration_it_says_what_to_set(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="set KUBECONFIG"):
        KubernetesExecutor(KubernetesTable())


# --- the stack in deploy/kubernetes ---------------------------------------------------------------

FOLDER = ROOT / "deploy" / "kubernetes"
CUSTOM = {"ScaledObject", "TriggerAuthentication"}
"""Kinds of KEDA, of which Kubernetes has no schemas."""


def resources() -> list[dict[str, Any]]:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert {*listed, "kustomization.yaml"} == {one.name for one in FOLDER.iterdir()}
    return [one for name in listed for one in yaml.safe_load_all((FOLDER / name).read_text())]


def pods() -> dict[str, dict[str, Any]]:
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in resources()
        if "template" in one.get("spec", {})
    }


@pytest.mark.longer
def test_every_manifest_is_valid() -> None:
    for one in resources():
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, VERSION, strict=True)


@pytest.mark.parametrize("name", pods())
def test_a_pod_may_do_no_more_than_a_worker_that_is_launched(name: str) -> None:
    launched_pod = manifest(KubernetesTable(), KEY, 1, WorkerTable(), [])["spec"]["template"][
        "spec"
    ]
    pod = pods()[name]
    for key in ("securityContext", "automountServiceAccountToken", "enableServiceLinks"):
        assert pod[key] == launched_pod[key]
    (container,), (other,) = pod["containers"], launched_pod["containers"]
    assert container["securityContext"] == other["securityContext"]
    assert container["resources"].keys() == {"requests", "limits"}


def test_the_secrets_of_the_page_are_those_that_pods_read() -> None:
    used = {
        source["secretRef"]["name"]
        for pod in pods().values()
        for source in pod["containers"][0]["envFrom"]
        if "secretRef" in source
    }
    (table,) = re.findall(
        r"\| Secret \|.*?\n\n", (ROOT / "docs/clusters.md").read_text(), re.DOTALL
    )
    assert set(re.findall(r"`(tuner-\w+)`", table)) == used | {"tuner-scaler"}


@pytest.mark.slow
def test_keda_asks_for_a_worker_a_trial(shared: str, tmp_path: Path) -> None:
    (query,) = [
        one["spec"]["triggers"][0]["metadata"]["query"]
        for one in resources()
        if one["kind"] == "ScaledObject"
    ]
    ledger = Ledger(
        database.ledger_engine(database.addresses({"TUNER_DATABASE_URL": shared}, tmp_path).ledger)
    )
    assert rows(shared, query) == [(0,)]
    study = submitted(ledger, budget={"trials": 5})
    ledger.claim(study.id, "worker", {})
    assert rows(shared, query) == [(5,)]  # one that runs, and four to come
    managing.pause(ledger, study)
    assert rows(shared, query) == [(0,)]
    ledger.engine.dispose()
