"""A worker of ours, for `workers.py`: `tuner worker --no-recorder` without its command line.

python benchmarks/worker_tuner.py URL
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

import waiting

from tuner.ledger import Ledger
from tuner.ledger.database import addresses, open_ledger
from tuner.observability import logs
from tuner.worker import work


def main() -> None:
    logs.service("json")
    with tempfile.TemporaryDirectory() as folder:
        places = addresses({"TUNER_DATABASE_URL": sys.argv[1]}, Path(folder))
        ledger = Ledger(open_ledger(places, create=False))

        def serve(study: str, _seconds: float, stop: threading.Event) -> None:
            work(
                ledger,
                places,
                names=[study],
                prefixes=["waiting"],
                stop=stop,
                until_idle=False,
            )

        waiting.serve(serve)


if __name__ == "__main__":
    main()
