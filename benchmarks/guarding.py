"""Which trials does the divergence guard stop? Real curves, and own trials run without a guard.

*Real curves*: runs of MLCommons' AlgoPerf, all of them from a file that is given, or the sample in
`tests/data`. Each evaluation is one observation, since a run has no other; missing losses are left
out, there is no warm-up, the rate is taken as constant, no baseline is known, the first validation
loss is taken as that before the first step (it is that after it), and the horizon is the run's own
number of evaluations: all as the guard is most eager. Runs of one workload are ranked
by their last training loss, and by their last validation loss; who of the best half is stopped?

*Our own*: studies of this repository, every optimizer and schedule in turn, each trained to its
horizon whatever happens, at rates from a third of the stable limit to thirty times it, even in the
logarithm. The stable limit is measured: the lowest of rates by a factor of 1.5 whose loss is higher
after 15 steps at a constant rate. Then a guard sees the recorded losses and gradient norms. A trial
ends by the training loss of up to 500 rows before the first update and after the last:

- *lost*: not finite, or more than 10 times the level at which it began;
- *good*: at least a tenth below it; the rest is neither.

The half that is *seen* has the studies as in their files, on which the rules were made; the half
that is *held out* has shapes of model, splits of data and horizons that no rule was made on. The
seeds of both were first used for the numbers in `results/guard.json`. Of the real curves every
other workload is held out, and none was looked at for the rules.

    python -m benchmarks.guarding [CURVES.jsonl.gz] [--runs 500]
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks.unguarded import (
    HELD_OUT,
    OPTIMIZERS,
    SEEN,
    Case,
    Curve,
    complete,
    spec_of,
    stable_limit,
    trained,
)
from tuner.config import ParameterValue, settings_of
from tuner.examples import wine
from tuner.training.device import use_threads
from tuner.training.guard.monitor import GuardMonitor
from tuner.training.rate_source import STATEFUL, rate_source
from tuner.training.schedules import SCHEDULES

SAMPLE = Path(__file__).resolve().parent.parent / "tests" / "data" / "algoperf_sample.jsonl.gz"
HALVES = {"seen": (SEEN, 71), "held out": (HELD_OUT, 72)}  # cases and seeds, used once
LOST, GOOD = 10.0, 0.9  # levels of the beginning


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trial run without a guard, and where the guard would have stopped it."""

    case: str
    params: dict[str, ParameterValue]
    ratio: float  # of its rate to the stable limit
    curve: Curve
    stopped: int | None = None
    reason: str = ""

    @property
    def levels(self) -> float:
        """The final level relative to the initial one, above min(0, lowest loss)."""
        began, ended, losses = self.curve.began, self.curve.ended, self.curve.losses
        if not math.isfinite(ended):
            return math.inf
        floor = min(0.0, np.min(losses, initial=0.0, where=np.isfinite(losses)))
        return (ended - floor) / max(abs(began), began - floor)


def watched(
    losses: Sequence[float],  # [step]
    norms: Sequence[float],  # [step]
    params: dict[str, Any],
    baseline: float | None,
    initial: float | None = None,  # loss of all validation rows at the start
    values: Iterable[tuple[int, float]] = (),  # metrics for a schedule with a state, by step
) -> tuple[int | None, str]:
    """Return the step at which the guard would have stopped a recorded trial, and why."""
    steps, metrics = len(losses), dict(values)
    paced = rate_source(params, steps, "minimize")
    spec = spec_of(steps)
    monitor = GuardMonitor(spec, settings_of(spec, {}, None), params, paced, baseline)
    if initial is not None:
        monitor.set_initial_loss(initial)
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if reason := monitor.observe(float(loss), float(norm)):
            return step, reason
        if step + 1 in metrics:
            paced.evaluated(step + 1, metrics[step + 1])
    return None, ""


def curves(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read AlgoPerf's runs by workload; missing numbers are skipped."""
    runs = defaultdict(list)
    with gzip.open(path, "rt") as lines:
        for line in lines:
            run = json.loads(line)
            for name in ("train_loss", "validation_loss"):
                run[name] = [float(value) for value in run[name] if value is not None]
            runs[run["workload"]].append(run)
    return runs


def replayed(path: Path) -> list[dict[str, Any]]:
    """Return a row per run: where the guard stops it, and whether it ended in the best half."""
    constant = complete(1.0, {"name": "constant"}, {"name": "sgd"})
    rows = []
    for index, (workload, runs) in enumerate(sorted(curves(path).items())):
        best = {name: best_half(runs, name) for name in ("train_loss", "validation_loss")}
        for number, run in enumerate(runs):
            losses = run["train_loss"]
            initial = next(filter(math.isfinite, run["validation_loss"][:1]), None)
            stopped, reason = watched(losses, [0.0] * len(losses), constant, None, initial)
            row = {"workload": workload, "half": "held out" if index % 2 else "seen"}
            row |= {name: number in ranks for name, ranks in best.items()}
            row |= {"stopped": stopped, "reason": reason, "evaluations": len(losses)}
            rows.append(row | {"lost": not -math.inf < losses[-1] <= LOST * losses[0]})
    return rows


def best_half(runs: list[dict[str, Any]], name: str) -> set[int]:
    """Return the indices of the better half by last loss; non-finite losses rank last."""
    last = [run[name][-1] if run[name] else math.nan for run in runs]
    order = sorted(range(len(runs)), key=lambda n: last[n] if math.isfinite(last[n]) else math.inf)
    return set(order[: (len(order) + 1) // 2])


def runs_of(case: Case, number: int, runs: int, seed: int) -> list[Run]:
    """Train so many trials of a case, the `number`-th of its half, and let the guard watch them."""
    found = []
    workload = case.workload and case.workload()
    baseline = workload.baseline_loss if workload else wine.train.baseline_loss  # type: ignore[attr-defined]
    # wine's loop has an optimizer of its own, and knows no schedule that listens
    optimizers = OPTIMIZERS if workload else OPTIMIZERS[:1]
    names = (*SCHEDULES, *STATEFUL) if workload else tuple(SCHEDULES)
    draws = np.random.default_rng([seed, number])
    limits: dict[int, float] = {}
    for index in range(runs):
        which = (index + number) % len(optimizers)
        if which not in limits:
            limits[which] = stable_limit(case, workload, optimizers[which])
        name = names[(7 * index + number) % len(names)]
        own = {"milestones": "0.5,0.75"} if name == "multistep" else {}
        ratio = 10 ** draws.uniform(-0.5, 1.5)
        schedule = {"name": name, "warmup": float(draws.choice([0.0, 0.1])), **own}
        params = complete(ratio * limits[which], schedule, optimizers[which])
        curve = trained(case, workload, params, int(draws.integers(2**31)), case.steps)
        stopped, reason = watched(
            curve.losses, curve.norms, params, baseline, curve.initial, curve.values
        )
        run = Run(case=case.name, params=params, ratio=ratio, curve=curve, stopped=stopped,
                  reason=reason)  # fmt: skip
        found.append(run)
    return found


def of_half(half: str, number: int, runs: int) -> list[Run]:
    """Run `runs_of` in a process of its own."""
    use_threads(1)
    cases, seed = HALVES[half]
    return runs_of(cases[number], number, runs, seed)


def share(name: str, stopped: int, runs: int) -> dict[str, Any]:
    """Print and return a share with its 95 percent Clopper-Pearson interval."""
    if not runs:
        return {"stopped": 0, "runs": 0}
    low, high = binomtest(stopped, runs).proportion_ci(0.95, "exact")
    print(f"{name}: {stopped} of {runs}, {stopped / runs:.2%} ({low:.2%} to {high:.2%})")
    return {"stopped": stopped, "runs": runs, "share": stopped / runs, "interval": [low, high]}


def of_curves(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up what the guard does to real curves."""
    report: dict[str, Any] = {"runs": len(rows)}
    for half in ("all", "seen", "held out"):
        own = [row for row in rows if half in ("all", row["half"])]
        report[half] = {
            f"best half by {name}": share(
                f"real, {half}, best half by {name}",
                sum(row[name] and row["stopped"] is not None for row in own),
                sum(row[name] for row in own),
            )
            for name in ("train_loss", "validation_loss")
        }
        lost = [row for row in own if row["lost"]]
        report[half]["lost"] = share(
            f"real, {half}, lost", sum(row["stopped"] is not None for row in lost), len(lost)
        )
    return report


def of_trials(name: str, runs: list[Run]) -> dict[str, Any]:
    """Sum up what the guard does to trials that nothing stopped."""
    kinds = {
        "not finite": [run for run in runs if run.levels == math.inf],
        "far worse": [run for run in runs if LOST < run.levels < math.inf],
        "lost": [run for run in runs if run.levels > LOST],
        "good": [run for run in runs if run.levels < GOOD],
        "neither": [run for run in runs if GOOD <= run.levels <= LOST],
    }
    report: dict[str, Any] = {"runs": len(runs)}
    for kind, own in kinds.items():
        report[kind] = share(f"{name}, {kind}", sum(r.stopped is not None for r in own), len(own))
    at = [run.stopped / len(run.curve.losses) for run in kinds["lost"] if run.stopped is not None]
    steps = sum(len(run.curve.losses) for run in runs)
    saved = sum(len(r.curve.losses) - r.stopped for r in runs if r.stopped is not None)
    of_lost = sum(len(run.curve.losses) for run in kinds["lost"])
    report["stop, share of the horizon"] = np.quantile(at, [0.1, 0.5, 0.9]).tolist() if at else []
    report["saved, of all steps"] = saved / steps
    saved_lost = sum(
        len(r.curve.losses) - r.stopped for r in kinds["lost"] if r.stopped is not None
    )
    report["saved, of the steps of lost trials"] = saved_lost / max(of_lost, 1)
    print(f"{name}: stopped at {report['stop, share of the horizon']} of the horizon (10, 50 and "
          f"90 percent); saved {saved / steps:.1%} of all steps")  # fmt: skip
    return report


def mistaken(runs: list[Run]) -> list[dict[str, Any]]:
    """Return the trials that the guard misjudged."""
    return [
        {"case": run.case, "ratio": run.ratio, "ended at levels": run.levels,
         "stopped": run.stopped, "steps": len(run.curve.losses), "reason": run.reason, **run.params}
        for run in runs
        if (run.levels > LOST and run.stopped is None)
        or (run.levels < GOOD and run.stopped is not None)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("curves", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--runs", type=int, default=500)
    given = parser.parse_args()
    use_threads(1)
    report: dict[str, Any] = {"curves": {"file": given.curves.name}}
    each, began = math.ceil(given.runs / len(SEEN + HELD_OUT)), time.perf_counter()
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        waiting = {
            half: [pool.submit(of_half, half, number, each) for number in range(len(cases))]
            for half, (cases, _) in HALVES.items()
        }
        report["curves"] |= of_curves(replayed(given.curves))  # while the others train
        found = {
            half: [run for one in own for run in one.result()] for half, own in waiting.items()
        }
    seen, held_out = found["seen"], found["held out"]
    report["seconds"] = time.perf_counter() - began
    print(f"trained for {report['seconds']:.0f} s")
    report["trials"] = {
        "all": of_trials("all", seen + held_out),
        "seen": of_trials("seen", seen),
        "held out": of_trials("held out", held_out),
        "mistaken": mistaken(seen + held_out),
    }
    for case in SEEN:
        own = [run for run in seen + held_out if run.case == case.name]
        report["trials"][case.name] = of_trials(case.name, own)
    path = Path(__file__).resolve().parent / "results" / "guard.json"
    path.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
