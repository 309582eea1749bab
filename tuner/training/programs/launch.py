"""Run a program on several ranks of this machine: `python -P -m ... RANKS PROGRAM ARGUMENT...`.

The ranks have the environment that `torchrun` gives them, on the loopback interface. One that fails
ends the others. The exit code is that of the first rank that failed, and the last line of output
says which one it was.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

LOOPBACK = "127.0.0.1"
MONITOR_SECONDS = 0.1


def main() -> int:
    """Run the ranks and return the exit code."""
    ranks, program, arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{LOOPBACK}:0",
        local_addr=LOOPBACK,
        max_restarts=0,
        monitor_interval=MONITOR_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        elastic_launch(config, program)(*arguments)
    except ChildFailedError as error:
        # what was ended by a signal failed first: the exceptions of others follow from it
        failures = {
            rank: (one.exitcode >= 0, one.timestamp) for rank, one in error.failures.items()
        }
        rank = min(failures, key=failures.__getitem__)
        code = error.failures[rank].exitcode
        how = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
        sys.stdout.write(f"rank {rank}: {how}\n")
        return code if code >= 0 else 128 - code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
