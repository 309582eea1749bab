"""A real Slurm on the loopback interface: a controller and two nodes on this machine. As root."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
from postgres import free_port
from processes import until

CONFIGURATION = """
ClusterName=tuner
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
KillWait=10
SlurmdTimeout=10
PropagateResourceLimits=NONE
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[0]} CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF
"""
NODES = ("n1", "n2")


@dataclass
class Slurm:
    """A cluster; its daemons are processes in the foreground."""

    folder: Path
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> Mapping[str, str]:
        """Give what the commands of Slurm need to find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self, name: str) -> None:
        """Start the controller, or a node, and wait until it answers."""
        daemon = ["slurmctld", "-D"] if name == "slurmctld" else ["slurmd", "-D", "-N", name]
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                daemon, env=os.environ | self.environment, stdout=out, stderr=out,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        if name == "slurmctld":
            until(lambda: "UP" in self.run("scontrol", "ping"), "the controller")
        for node in self._daemons.keys() & NODES:  # which a new controller does not know at once
            until(partial(self._is_ready, node), node)

    def _is_ready(self, node: str) -> bool:
        state = self.run("sinfo", "-h", "-n", node, "-p", "low", "-o", "%T")
        return state in ("idle", "mixed", "allocated")

    def kill(self, name: str) -> None:
        """Kill a daemon; the workers of a node go on."""
        process = self._daemons.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> None:
        """End a daemon that saves its state, which a killed controller loses for some seconds."""
        process = self._daemons.pop(name)
        process.terminate()
        process.wait()

    def run(self, *command: str) -> str:
        """Run a command of Slurm; return its output."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    def close(self) -> None:
        self.run("scancel", "--user=root", "--signal=KILL", "--full")
        for process in self._daemons.values():
            process.send_signal(signal.SIGTERM)
        for name in tuple(self._daemons):
            try:
                self._daemons[name].wait(10)
            except subprocess.TimeoutExpired:
                self.kill(name)
        for one in psutil.process_iter():  # jobs of a test that failed, which outlive their node
            with suppress(psutil.Error):
                if one.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    one.kill()


@contextmanager
def slurm() -> Iterator[Slurm]:
    """Run a cluster with the partitions `low`, which is preempted by `high`."""
    assert shutil.which("slurmctld"), "no Slurm: expected Debian's slurm-wlm and munge"
    folder = Path(tempfile.mkdtemp(prefix="tuner-slurm-"))
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            folder=folder,
            port=free_port(),
            ports=[free_port(), free_port()],
        )
    )
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    munged = subprocess.Popen(
        [
            "munged", "--foreground", "--force", f"--key-file={folder}/munge.key",
            f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid",
            f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed",
        ],
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    made = Slurm(folder)
    try:
        until((folder / "munge.socket").exists, "munged")
        for name in ("slurmctld", *NODES):
            made.start(name)
        yield made
    finally:
        made.close()
        munged.terminate()
        munged.wait()
        shutil.rmtree(folder, ignore_errors=True)
