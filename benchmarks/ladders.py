"""Is the best rate of a larger run where the ladder says? Digits and text; horizon, batch, width.

    python -m benchmarks.ladders [--only digits-sgd-steps ...]
    python -m benchmarks.ladders --table

A ladder is five sizes of one scale a factor of two apart, so the last is sixteen times the first.
At each, a network is trained at rates a factor of two apart, around the best rate of the size
before, with three seeds. At the last, rates are a factor of the square root of two apart and have
more seeds; the bottom of the curve through their losses is the measured best rate.
`tuner.analysis.scaling` predicts it from the other four, and from the lowest three.

Trials of a size are trained side by side. Every loss is kept in results/ladders.jsonl, a line for
each rung, so that an interrupted run is resumed and estimators are compared without training again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from tuner.analysis import scaling
from tuner.examples import digits, text
from tuner.training.workloads import Workload

RESULTS = Path(__file__).with_name("results") / "ladders.jsonl"
FROM = {
    "digits": {"steps": (100, 400), "batch_size": (16, 64), "hidden": (32, 64)},
    "text": {"steps": (50, 100), "batch_size": (4, 8), "width": (32, 32)},
}
"""The first size of each ladder, and the size while another scale is varied."""
CENTRES = {"sgd": 0.1, "adamw": 0.01}
SIZES, SEEDS, TOP_SEEDS = 5, 3, 5
EVALUATED = 2000
"""Rows of validation data at most."""


def workload(data: str, sizes: Mapping[str, int], parametrization: str) -> Workload:
    """Return what is trained at some sizes."""
    more: dict[str, Any] = (
        {} if parametrization == "standard" else {"parametrization": parametrization}
    )
    if data == "digits":
        return digits.mlp(hidden=sizes["hidden"], **more)
    return text.transformer(width=sizes["width"], layers=1, **more)


def losses(
    task: Workload, optimizer: str, sizes: Mapping[str, int], rates: np.ndarray, seeds: int
) -> np.ndarray:
    """Return the validation loss at each rate [rate, seed]; nan where training broke."""
    models = [task.model(seed, torch.float32) for seed in range(seeds)]
    own = [dict(one.named_parameters()) for one in models]
    names = list(own[0])
    parameters = {
        name: torch.stack([one[name].detach() for one in own] * len(rates)) for name in names
    }  # [member, ...]
    first = {name: torch.zeros_like(one) for name, one in parameters.items()}
    second = {name: torch.zeros_like(one) for name, one in parameters.items()}
    every = torch.tensor(np.repeat(rates, seeds), dtype=torch.float32)  # [member]
    orders = [torch.Generator().manual_seed(100 + seed) for seed in range(seeds)]
    inputs, targets = _single(task.train_inputs), _single(task.train_targets)

    def loss_of(values: dict[str, Tensor], rows: Tensor, wanted: Tensor) -> Tensor:
        return task.loss(functional_call(models[0], values, (rows,)), wanted)

    step_of = vmap(grad_and_value(loss_of))
    for step in range(sizes["steps"]):
        drawn = [
            torch.randint(len(inputs), (sizes["batch_size"],), generator=one) for one in orders
        ]
        rows = torch.stack(drawn * len(rates))  # [member, row]
        gradients, _ = step_of(parameters, inputs[rows], targets[rows])
        rate = every * (1 + math.cos(math.pi * step / sizes["steps"])) / 2
        for name, one in parameters.items():
            own_rate = (rate * task.multiplier_of(name)).reshape(-1, *[1] * (one.ndim - 1))
            gradient = gradients[name]
            if optimizer == "sgd":
                first[name].mul_(0.9).add_(gradient)
                one.sub_(own_rate * first[name])
                continue
            first[name].mul_(0.9).add_(gradient, alpha=0.1)
            second[name].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            mean = first[name] / (1 - 0.9 ** (step + 1))
            size = (second[name] / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
            one.mul_(1 - 0.01 * own_rate).sub_(mean.div_(size).mul_(own_rate))
    held, wanted = _single(task.validation_inputs), _single(task.validation_targets)
    with torch.no_grad():
        end = torch.stack(
            [
                loss_of({name: one[member] for name, one in parameters.items()}, held, wanted)
                for member in range(len(every))
            ]
        )
    found = end.double().numpy().reshape(len(rates), seeds)
    return np.where(found < task.baseline_loss, found, math.nan)


def _single(data: Tensor) -> Tensor:
    return data.float() if data.is_floating_point() else data


def grid(
    task: Workload,
    optimizer: str,
    sizes: Mapping[str, int],
    centre: float,
    *,
    apart: float = 2.0,
    reach: int = 3,
    seeds: int = SEEDS,
) -> list[list[float]]:
    """Return rate, seed and loss of the trials of a size; rates follow the best one."""
    trained: dict[float, np.ndarray] = {}
    rates = centre * apart ** np.arange(-reach, reach + 1.0)
    for _ in range(5):
        found = losses(task, optimizer, sizes, rates, seeds)
        trained |= dict(zip(rates.tolist(), found, strict=True))
        known = sorted(trained)
        means = [float(np.mean(trained[one])) for one in known]
        place = int(np.nanargmin(means)) if np.isfinite(means).any() else 0
        if place < 2:
            rates = known[0] / apart ** np.arange(2.0, 0.0, -1.0)
        elif place > len(known) - 3 and math.isfinite(means[-1]):
            rates = known[-1] * apart ** np.arange(1.0, 3.0)
        else:
            break
    return [
        [float(f"{rate:.6g}"), seed, float(f"{loss:.6g}")]
        for rate in sorted(trained)
        for seed, loss in enumerate(trained[rate])
    ]


def measure(name: str) -> None:
    """Train the missing rungs of a ladder, the smallest first, and write each when it is done."""
    data, optimizer, scale, *more = name.split("-")
    family = "adam" if optimizer == "adamw" else "sgd"
    parametrization = f"mup-{family}" if more else "standard"
    base = {name: usual for name, (_, usual) in FROM[data].items()}
    first, _ = FROM[data][scale]
    rungs = read().get(name, [])
    centre = CENTRES[optimizer] if not rungs else best(rungs[-1])
    for place in range(len(rungs), SIZES):
        sizes = {**base, scale: first * 2**place}
        task = workload(data, sizes, parametrization)
        top = place == SIZES - 1
        trials = grid(
            task,
            optimizer,
            sizes,
            centre,
            apart=math.sqrt(2) if top else 2.0,
            seeds=TOP_SEEDS if top else SEEDS,
        )
        rung = {"sizes": {scale: sizes[scale]}, "trials": trials}
        with RESULTS.open("a") as file:
            file.write(json.dumps([name, rung]) + "\n")
        centre = best(rung)
        print(name, sizes[scale], f"{centre:.3g}", flush=True)


def best(rung: Mapping[str, Any]) -> float:
    """Return the rate of a rung with the lowest mean loss."""
    known = sorted({rate for rate, *_ in rung["trials"]})
    means = [np.mean([loss for rate, _, loss in rung["trials"] if rate == one]) for one in known]
    return float(known[int(np.nanargmin(means))])


def names() -> list[str]:
    """Return the names of all ladders."""
    found = [
        f"{data}-{optimizer}-{scale}"
        for data, scales in FROM.items()
        for optimizer in CENTRES
        for scale in scales
    ]
    return found + [
        f"{data}-{optimizer}-{width}-mup"
        for data, width in (("digits", "hidden"), ("text", "width"))
        for optimizer in CENTRES
    ]


def read() -> dict[str, list[dict[str, Any]]]:
    """Return the rungs that were measured, by the name of the ladder, the smallest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    if RESULTS.exists():
        for line in RESULTS.read_text().splitlines():
            name, rung = json.loads(line)
            found.setdefault(name, []).append(rung)
    return found


def grid_of(rung: Mapping[str, Any]) -> scaling.Grid:
    """Return the trials of a rung as data of the estimator."""
    rates, seeds, ends = zip(*rung["trials"], strict=True)
    return scaling.Grid(sizes=rung["sizes"], rates=rates, losses=ends, seeds=seeds)


def judged(rungs: list[dict[str, Any]], used: int) -> dict[str, Any]:
    """Return the prediction for the top by the first `used` rungs, and what was measured there."""
    grids = [grid_of(one) for one in rungs]
    # the same estimator, to which a grid lends its shape to itself
    measured = scaling.together([grids[-1], grids[-1]])[0]
    found = scaling.predict(scaling.together(grids[:used]), grids[-1].sizes)
    off = math.log(found.rate / measured.rate)
    # the loss by the rate, between the rates that were tried
    trials = rungs[-1]["trials"]
    rates = np.array(sorted({rate for rate, *_ in trials}))
    ends = [np.mean([loss for rate, _, loss in trials if rate == one]) for one in rates]
    known = np.isfinite(ends)
    at = np.log([found.rate, found.unscaled])
    costs = np.interp(at, np.log(rates[known]), np.array(ends)[known]) - np.nanmin(ends)
    return {
        "found": found,
        "measured": measured,
        "off": math.exp(abs(off)),
        "unscaled": math.exp(abs(math.log(found.unscaled / measured.rate))),
        "held": found.low <= measured.rate <= found.high,
        "costs": costs,
    }


def table(used: int) -> None:
    """Print what is predicted and measured at the top of each complete ladder."""
    rows = []
    for name, rungs in sorted(read().items()):
        if len(rungs) < SIZES:
            continue
        one = judged(rungs, used)
        found, measured = one["found"], one["measured"]
        (size,) = rungs[-1]["sizes"].values()
        spread = math.exp(measured.error)
        print(
            f"| {name}, {size} | {found.rate:.2g} ({found.low:.2g} to {found.high:.2g}) "
            f"| {measured.rate:.2g} (factor {spread:.2f}) | {one['off']:.2f} "
            f"| {one['unscaled']:.2f} | {'yes' if one['held'] else 'no'} "
            f"| {one['costs'][0]:.3f} | {one['costs'][1]:.3f} |"
        )
        rows.append(one)
    near = sum(one["off"] <= 1.4 for one in rows)
    same = sum(one["unscaled"] <= 1.4 for one in rows)
    held = sum(one["held"] for one in rows)
    print(f"{len(rows)} ladders, {used} rungs: {near} within 1.4, unscaled {same}; {held} held")


def main() -> None:
    """Parse the command line, and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names(), default=names())
    parser.add_argument("--table", action="store_true", help="print what was measured")
    asked = parser.parse_args()
    if asked.table:
        for used in (SIZES - 1, SIZES - 2):
            table(used)
        return
    torch.set_num_threads(1)
    for name in asked.only:
        measure(name)


if __name__ == "__main__":
    main()
