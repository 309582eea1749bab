"""Break the stack in every way that we know, print what that did, and write it to docs/chaos.md.

    cd tests && python -m chaos [WORD ...] [--soak SECONDS]

With words only the faults whose names have one of them, and nothing is written.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from chaos import page, soak
from chaos.faults import faults
from chaos.scenarios import (
    HEADER,
    Row,
    calm,
    deleted,
    disturbed,
    full_sqlite,
    ten_first_starts,
    upgraded,
)
from chaos.stack import Stack, stack


def rows(made: Stack, words: Sequence[str], trainers: Sequence[str]) -> Iterator[Row]:
    """Give the rows of the table, one after the other."""
    for trainer in trainers:
        yield calm(made, trainer)
    steps = {f"{fault.what} {fault.trainer}": partial(disturbed, made, fault) for fault in faults()}
    steps |= {
        "deletion reference": partial(deleted, made, "calm reference", "kill"),
        "ten upgrades at once reference": partial(upgraded, made),
        "ten first starts at once reference": partial(ten_first_starts, made),
        "disk full (SQLite) cohort": partial(full_sqlite, made),
    }
    for name, step in steps.items():
        meant = not words or any(word in name for word in words)
        if meant and name.endswith(tuple(trainers)):
            try:
                yield step()
            except AssertionError as error:  # the other faults are worth a try all the same
                yield Row(what=name, trainer="", fired=f"failed: {error}", failed=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--trainers", nargs="+", default=["reference", "cohort"])
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--workers", type=int, default=4)
    told = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing stays behind
    if told.soak:
        return soak.main(told.soak, workers=told.workers)
    done: list[Row] = []
    print(HEADER, flush=True)
    with stack(told.trials, told.workers, disk_megabytes=8) as made:
        for row in rows(made, told.words, told.trainers):
            print(row, flush=True)
            done.append(row)
    if not told.words and len(told.trainers) == 2:
        page.write("table", "\n".join([HEADER, *map(str, done)]))
        page.write("failpoints", page.failpoints())
    return int(any(row.failed or row.findings for row in done))


if __name__ == "__main__":
    sys.exit(main())
