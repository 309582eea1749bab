"""Break the stack in every way that we know, print what that did, and write it to docs/chaos.md.

    cd tests && python -m chaos [WORD ...] [--soak SECONDS]

With words only the faults whose names have one of them; of the others the page keeps what was
measured before.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from functools import partial

from chaos import page, results, soak
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

Step = Callable[[Stack], Row]
TRAINERS = "reference", "cohort"
TRIALS, WORKERS = 60, 4


def all_steps() -> dict[str, Step]:
    """Give what makes each row of the table, by names that end with the trainer."""
    calms = {f"none {trainer}": partial(calm, trainer=trainer) for trainer in TRAINERS}
    disturbances = {
        f"{fault.what} {fault.trainer}": partial(disturbed, fault=fault) for fault in faults()
    }
    return {
        **calms,
        **disturbances,
        "deletion reference": partial(deleted, name="calm reference", action="kill"),
        "ten upgrades at once reference": upgraded,
        "ten first starts at once reference": ten_first_starts,
        "disk full (SQLite) cohort": full_sqlite,
    }


def done(name: str, step: Step, made: Stack) -> Row:
    """Do a step; one that fails is a row too, and its folder stays, to be looked at."""
    try:
        row = step(made)
    except AssertionError as error:  # the other faults are worth a try all the same
        row = Row(what=name, trainer="", fired=f"failed: {error}", failed=True)
    made.kept = made.kept or row.failed or bool(row.findings)
    print(row, flush=True)
    if made.kept:
        print(f"see {made.folder}", file=sys.stderr, flush=True)
    results.keep(name, row)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--trainers", nargs="+", default=TRAINERS)
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    told = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing stays behind
    if told.soak:
        return soak.main(told.soak, workers=WORKERS)
    steps = {k: one for k, one in all_steps().items() if k.endswith(tuple(told.trainers))}
    calms = {name: steps.pop(name) for name in tuple(steps) if name.startswith("none ")}
    todo = [k for k in steps if not told.words or any(word in k for word in told.words)]
    rows: list[Row] = []
    print(HEADER, flush=True)
    while todo:
        with stack(TRIALS, WORKERS, disk_megabytes=8) as made:
            rows += [done(name, step, made) for name, step in calms.items()]
            if made.kept:
                break  # there is nothing to compare with
            while todo and not made.kept:  # what is broken is not built on
                name = todo.pop(0)
                rows.append(done(name, steps[name], made))
    page.write("table", results.table(list(all_steps())))
    page.write("failpoints", page.failpoints())
    return int(any(row.failed or row.findings for row in rows))


if __name__ == "__main__":
    sys.exit(main())
