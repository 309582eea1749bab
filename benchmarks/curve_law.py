"""How well does the law of curves predict losses of language models? Held-out public runs.

    python -m benchmarks.curve_law LANGUAGE_MODEL_CURVES [--only ends schedules horizon few]

The runs are those of Schaipp et al. (124M parameters, AdamW, four rates, wsd and cosine over
15,000 to 50,000 steps; repository fabian-sp/lr-scheduling, MIT; arXiv 2501.18965) and of Luo et al.
(25M and 100M parameters, one rate; repository thu-yao-01-luo/MultiPowerLaw, MIT; arXiv 2503.12811).
One run diverged (a rate of 5e-3) and is left out: the law is of runs that do not.

*ends*: the law is fitted to a random half of the first ones; it predicts the last validation loss
of the other half, with and without the first 30 % of each run. A decay that was resumed from a stem
at constant rate begins with the stem's losses. *schedules*: each kind of schedule is left out in
turn, and half of the other runs are fitted. *horizon*: only runs of 15,000 steps, and stems up to
there, are fitted; they choose a rate and a schedule for 50,000 steps. One that was not run must be
expected to win by more than the law's mean error on schedules that were held out.
*few*: the published protocol on the second ones: three runs of a model are fitted (constant and
cosine over 24,000 steps, two stages), and their smoothed training losses predict all others.

Errors are relative, in %. Each part is written to the results when it is done, and parts that are
there are not measured again without `--again`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.early_judging_public import lines_of
from tuner.analysis import curve_law
from tuner.analysis.curve_law import Curve, CurveLaw

RESULTS = Path(__file__).with_name("results") / "curve_law.json"
SHORT, LONG = 15_000, 50_000
OBSERVED = 0.3
DIVERGED = 0.005
"""A rate at which the one run diverged."""
FITTED = ("constant_24000", "cosine_24000", "wsdcon_9")
"""Runs of the published protocol to which a law is fitted."""

Run = Mapping[str, Any]


def family(run: Run) -> str:
    """Return the kind of a run's schedule, whatever its rate and horizon."""
    if run["schedule"] == "cosine":
        return "cosine to 0" if run["run"].startswith("cos-zero") else "cosine to 10 %"
    if not run["decay_fraction"]:
        return "constant"
    return f"wsd, {run['decay']} over {100 * run['decay_fraction']:g} %"


def rates_of(run: Run) -> np.ndarray:  # float64 [step]
    """Return the rate at each step, by the recorded ones, and the stem's before those."""
    peak, horizon, warm_up = run["lr"], run["horizon"], run["warmup"]
    recorded = dict(zip(run["train_step"], run["train_lr"], strict=True))
    known = {0: 0.01 * peak}
    if run["schedule"] == "wsd":
        begin = round(horizon * (1 - run["decay_fraction"]))
        known |= {warm_up: peak} | ({begin: peak} if warm_up < begin <= max(recorded) else {})
    known |= recorded
    at = np.array(sorted(known))
    rates = np.array([known[step] for step in at])
    slope = (rates[-1] - rates[-2]) / (at[-1] - at[-2])
    steps = np.arange(horizon)
    last = np.maximum(rates[-1] + slope * (steps - at[-1]), 0.0)
    return np.where(steps > at[-1], last, np.interp(steps, at, rates))


def curve_of(run: Run, stems: Mapping[float, Run]) -> Curve:
    """Return the validation losses of a run, with those of the stem that it continues."""
    losses = dict(zip(run["val_step"], run["val_loss"], strict=True))
    stem = stems.get(run["lr"])
    if stem is not None and run["schedule"] == "wsd":
        first = min(losses)
        own = zip(stem["val_step"], stem["val_loss"], strict=True)
        losses |= {step: loss for step, loss in own if step < first}
    return _curve(rates_of(run), losses, family(run))


def _curve(rates: np.ndarray, losses: Mapping[int, float], group: str | None) -> Curve:
    steps = np.array(sorted(losses))
    return Curve(
        rates=rates, steps=steps, losses=np.array([losses[step] for step in steps]), group=group
    )


def first(curve: Curve, steps: float, *, whole: bool = True) -> Curve:
    """Return the losses up to a step; with `whole`, under the schedule of the whole run."""
    kept = curve.steps <= steps
    return Curve(
        rates=curve.rates if whole else curve.rates[: int(steps)],
        steps=curve.steps[kept],
        losses=curve.losses[kept],
        group=curve.group,
    )


def ungrouped(curves: Sequence[Curve]) -> list[Curve]:
    """Return curves that are held out one by one."""
    return [Curve(rates=one.rates, steps=one.steps, losses=one.losses) for one in curves]


def errors(law: CurveLaw, curves: Sequence[Curve], share: float | None) -> np.ndarray:
    """Return of each curve's end the error in %, whether the band holds it, and its width."""
    rows = []
    for one in curves:
        observed = None if share is None else first(one, share * len(one.rates))
        if observed is not None and not len(observed.steps):
            observed = None
        band = law.predict(one.rates, one.steps[-1:], observed=observed)
        mean, low, high, end = band.mean[0], band.low[0], band.high[0], one.losses[-1]
        rows.append((100 * (mean / end - 1), low <= end <= high, 100 * (high - low) / mean))
    return np.array(rows)  # [curve, 3]


def summary(rows: np.ndarray) -> dict[str, float]:
    """Return the mean and worst error, and what is true of the bands."""
    missed, width = np.abs(rows[:, 0]), float(rows[:, 2].mean())
    return {
        "predictions": len(rows),
        "mean error": round(float(missed.mean()), 3),
        "worst error": round(float(missed.max()), 3),
        "coverage": round(float(rows[:, 1].mean()), 3),
        "mean width": round(width, 3) if math.isfinite(width) else None,
    }


def halves(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of a random half, and of the rest."""
    order = np.random.default_rng(seed).permutation(count)
    return order[: count // 2], order[count // 2 :]


def ends(curves: Sequence[Curve], seeds: int) -> dict[str, Any]:
    """Predict the ends of a random half by a law of the other half."""
    found = defaultdict(list)
    splits = []
    for seed in range(seeds):
        fitted, held = halves(len(curves), seed)
        law = curve_law.fit(ungrouped([curves[row] for row in fitted]), seed=seed)
        for name, share in (("without observations", None), ("from the first 30 %", OBSERVED)):
            rows = errors(law, [curves[row] for row in held], share)
            found[name].append(rows)
            for row, one in zip(held, rows, strict=True):
                kind = (curves[row].group or "").partition(",")[0].partition(" ")[0]
                if share is not None:
                    found[f"from the first 30 %, {kind}"].append(one[None])
        splits.append(summary(found["from the first 30 %"][-1]))
    return {name: summary(np.concatenate(rows)) for name, rows in found.items()} | {
        "halves": splits
    }


def schedules(curves: Sequence[Curve], seeds: int) -> dict[str, Any]:
    """Predict the ends of each kind of schedule by a law of half of the others."""
    names = sorted({one.group or "" for one in curves} - {"constant"})
    found = defaultdict(list)
    for seed in range(seeds):
        for name in names:
            others = [one for one in curves if one.group != name]
            kept = [others[row] for row in halves(len(others), seed)[0]]
            law = curve_law.fit(kept, seed=seed)
            held = [one for one in curves if one.group == name]
            found[name].append(errors(law, held, None))
            found["all"].append(found[name][-1])
    return {name: summary(np.concatenate(rows)) for name, rows in found.items()}


def horizon(runs: Sequence[Run], stems: Mapping[float, Run], draws: int) -> dict[str, Any]:
    """Choose rate and schedule for the long horizon by a law of runs of the short one."""
    short = [curve_of(run, stems) for run in runs if run["horizon"] == SHORT]
    short += [first(curve_of(run, {}), SHORT, whole=False) for run in stems.values()]
    candidates = [run for run in runs if run["horizon"] == LONG]
    curves = [curve_of(run, stems) for run in candidates]
    final = np.array([dict(run["final_val_loss"])[LONG] for run in candidates])
    law = curve_law.fit(short)
    rows = errors(law, curves, None)
    ways = [(one.rates, one.group) for one in curves]
    chosen = curve_law.choose(law, ways)
    plain = curve_law.choose(law, [(rates, short[0].group) for rates, _ in ways])
    regrets = []
    for seed in range(draws):
        some, _ = halves(len(short), seed)
        half = curve_law.fit([short[row] for row in some], seed=seed)
        regrets.append(float(final[curve_law.choose(half, ways)] - final.min()))
    return {
        "fitted": len(short),
        "candidates": len(candidates),
        "range": round(float(np.ptp(final)), 4),
        "chosen": [candidates[chosen]["lr"], curves[chosen].group],
        "best": [candidates[final.argmin()]["lr"], curves[final.argmin()].group],
        "regret": round(float(final[chosen] - final.min()), 5),
        "regret without caution for schedules never run": round(
            float(final[plain] - final.min()), 5
        ),
        "predictions": summary(rows),
        "regrets from halves of the short runs": {
            "draws": draws,
            "mean": round(float(np.mean(regrets)), 5),
            "worst": round(max(regrets), 5),
        },
    }


def few(runs: Sequence[Run]) -> dict[str, Any]:
    """Predict the runs of each model by three of them."""
    found = {}
    for size in sorted({run["parameters"] for run in runs}):
        own = {run["name"]: _smoothed(run) for run in runs if run["parameters"] == size}
        law = curve_law.fit([own[name] for name in FITTED])
        rows = errors(law, [one for name, one in own.items() if name not in FITTED], None)
        others = [name for name in own if name not in FITTED]
        each = dict(zip(others, np.round(rows[:, 0], 3).tolist(), strict=True))
        found[f"{size / 1e6:.0f}M"] = summary(rows) | {"errors": each}
    return found


def _smoothed(run: Run) -> Curve:
    """Return a curve of training losses, each the mean of five neighbours at the same rate.

    A stage of constant rate begins at once in runs of two stages.
    """
    steps, rates = np.array(run["train_step"]), np.array(run["train_lr"])
    losses = np.array(run["train_loss"])
    every = np.arange(steps[-1])
    between = np.interp(every, [0, run["warmup"], *steps], [0.0, run["lr"], *rates])
    if run["schedule"] == "wsdcon":
        held = rates[np.clip(np.searchsorted(steps, every, side="right") - 1, 0, None)]
        between = np.where(every < run["warmup"], between, held)
    width = 2
    smooth = {}
    for at in range(len(steps)):
        near = slice(max(at - width, 0), at + width + 1)
        same = np.abs(np.log(rates[near] / rates[at])) < math.log(1.2)
        smooth[int(steps[at])] = float(losses[near][same].mean())
    return _curve(between, smooth, None)


def main() -> None:
    """Parse the command line, and measure what is missing."""
    parts = ("ends", "schedules", "horizon", "few")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("curves", type=Path)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--seeds", type=int, default=10, help="random halves")
    parser.add_argument("--again", action="store_true", help="measure parts that are there too")
    asked = parser.parse_args()
    lines = lines_of(asked.curves)
    language = [run for run in lines if run["source"] == "lr-scheduling" and run["lr"] < DIVERGED]
    stems = {
        run["lr"]: run for run in language if family(run) == "constant" and run["horizon"] == LONG
    }
    curves = [curve_of(run, stems) for run in language]
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in asked.only:
        if part in found and not asked.again:
            continue
        if part == "ends":
            found[part] = ends(curves, asked.seeds)
        elif part == "schedules":
            found[part] = schedules(curves, max(asked.seeds // 3, 1))
        elif part == "horizon":
            found[part] = horizon(language, stems, 2 * asked.seeds)
        else:
            found[part] = few([run for run in lines if run["source"] == "MultiPowerLaw"])
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(part, json.dumps(found[part], indent=1))


if __name__ == "__main__":
    main()
