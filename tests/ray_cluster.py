"""A real Ray cluster on the loopback interface, in a process of its own: a head and nodes.

All nodes share a session folder, so one that is removed takes along the folders that were sent
with jobs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
from postgres import free_port

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it takes the outer interface
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
HERE = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}


@dataclass
class RayCluster:
    address: str  # for a process of this machine
    client: str  # with ray://
    process: subprocess.Popen[str]

    def ask(self, request: str) -> str:
        """Send a request to the process; return its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{request}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def add(self) -> str:
        """Add a node; return the beginning of its id."""
        return self.ask("add")

    def remove(self, node: str) -> None:
        """Kill a node."""
        assert self.ask(f"remove {node}") == "removed"

    def actors(self) -> list[psutil.Process]:
        """Return the processes of the actors that run workers."""
        return self._of("TunerWorker")

    def client_servers(self) -> list[psutil.Process]:
        """Return the processes of the head that serve a `ray://` connection each."""
        return self._of("specific-server")

    def _of(self, command: str) -> list[psutil.Process]:
        found = []
        for one in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it has ended since it was listed
                if command in " ".join(one.cmdline()):
                    found.append(one)
        return found


@contextmanager
def ray_cluster(nodes: int, more: Mapping[str, str], cpus: int = 2) -> Iterator[RayCluster]:
    """Start a cluster: a head, and nodes with so many CPUs and what Ray takes for a GPU.

    All have `more` variables.
    """
    port = free_port()
    # paths of sockets are short
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        process = subprocess.Popen(
            [sys.executable, __file__, str(port), str(cpus)],
            env={**os.environ, **ENVIRONMENT, **more, "RAY_TMPDIR": folder},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            assert address.startswith("127.0.0.1:"), "the cluster did not start"
            made = RayCluster(address, f"ray://127.0.0.1:{port}", process)
            for _ in range(nodes):
                made.add()
            yield made
        finally:
            below = psutil.Process(process.pid).children(recursive=True)
            process.communicate()  # at the end of its input it ends the cluster
            for one in below:
                if one.is_running():
                    one.kill()


def main(port: int, cpus: int) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    head = cluster.add_node(
        num_cpus=0, include_dashboard=False, ray_client_server_port=port, **HERE
    )
    print(head.gcs_address, file=out, flush=True)
    nodes = {}
    for line in sys.stdin:
        request, _, name = line.strip().partition(" ")
        if request == "add":
            node = cluster.add_node(num_cpus=cpus, num_gpus=1, **HERE)
            nodes[node.node_id[:8]] = node
            answer = node.node_id[:8]
        else:
            cluster.remove_node(nodes.pop(name), allow_graceful=False)
            answer = "removed"
        print(answer, file=out, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
