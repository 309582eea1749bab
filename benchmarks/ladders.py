"""Is the best rate of a larger run where the ladder says? Digits, with horizon, batch and width.

    python -m benchmarks.ladders [--only sgd-steps ...]

A network on scikit-learn's digits is trained at rates a factor of two apart, with three seeds, at
four sizes of one scale a factor of two apart; `tuner.analysis.scaling` predicts the best rate at
four times the largest. Then the rates around it are trained there, a factor of the square root of
two apart, and the bottom of the parabola through their losses is the measured one. Rates are
trained side by side in one batched product, so that a ladder takes a minute. Each ladder is
written when it is done, and ladders that are there are not measured again without `--again`.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuner.analysis import scaling
from tuner.examples.digits import mlp

RESULTS = Path(__file__).with_name("results") / "ladders.json"
BASE = {"steps": 400, "batch_size": 64, "hidden": 64}
TIMES = 4
SEEDS = 3
OPTIMIZERS = ("sgd", "adamw")
CENTRES = {"sgd": 0.1, "adamw": 0.01}


def losses(optimizer: str, sizes: dict[str, int], rates: np.ndarray) -> np.ndarray:
    """Return the validation loss at each rate [rate, seed]; nan where training broke."""
    task = mlp()
    inputs, targets = task.train_inputs.float(), task.train_targets
    hidden, count = sizes["hidden"], len(rates) * SEEDS
    every = torch.tensor(np.repeat(rates, SEEDS), dtype=torch.float32)  # [member]
    generators = [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]

    def drawn(fan_in: int, *shape: int) -> Tensor:
        """Return uniform weights [member, ...], equal for all rates of a seed."""
        bound = fan_in**-0.5
        own = [(2 * torch.rand(shape, generator=one) - 1) * bound for one in generators]
        return torch.stack(own * len(rates))

    widths = [inputs.shape[1], hidden, hidden, 10]
    parameters: list[Tensor] = []
    for before, after in pairwise(widths):
        parameters += [drawn(before, before, after), drawn(before, 1, after)]
    for one in parameters:
        one.requires_grad_()
    first = [torch.zeros_like(one) for one in parameters]
    second = [torch.zeros_like(one) for one in parameters]
    orders = [torch.Generator().manual_seed(100 + seed) for seed in range(SEEDS)]
    for step in range(sizes["steps"]):
        rows = torch.stack(
            [torch.randint(len(inputs), (sizes["batch_size"],), generator=one) for one in orders]
            * len(rates)
        )  # [member, row]
        loss = _loss(parameters, inputs[rows], targets[rows])
        gradients = torch.autograd.grad(loss.sum(), parameters)
        rate = every * (1 + math.cos(math.pi * step / sizes["steps"])) / 2
        rate = rate[:, None, None]
        with torch.no_grad():
            for place, (one, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                if optimizer == "sgd":
                    first[place].mul_(0.9).add_(gradient)
                    one.sub_(rate * first[place])
                    continue
                first[place].mul_(0.9).add_(gradient, alpha=0.1)
                second[place].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                mean = first[place] / (1 - 0.9 ** (step + 1))
                size = (second[place] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                one.mul_(1 - 0.01 * rate).sub_(rate * mean / size)
    with torch.no_grad():
        held = task.validation_inputs.float().expand(count, -1, -1)
        end = _loss(parameters, held, task.validation_targets.expand(count, -1))
    found = end.double().numpy().reshape(len(rates), SEEDS)
    return np.where(found < math.log(10), found, math.nan)


def _loss(parameters: list[Tensor], rows: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of each member [member]."""
    values = rows
    for place in range(0, len(parameters), 2):
        values = torch.baddbmm(parameters[place + 1], values, parameters[place])
        if place + 2 < len(parameters):
            values = values.relu()
    return torch.nn.functional.cross_entropy(
        values.transpose(1, 2), targets, reduction="none"
    ).mean(dim=1)


def rung(optimizer: str, sizes: dict[str, int], centre: float, apart: float) -> scaling.Rung:
    """Return the best rate of a size, of rates around a centre that follow it."""
    trained: dict[float, np.ndarray] = {}
    rates = centre * apart ** np.arange(-3.0, 4.0)
    for _ in range(4):
        trained |= dict(zip(rates.tolist(), losses(optimizer, sizes, rates), strict=True))
        known = sorted(trained)
        means = np.array([np.nanmean(trained[one]) for one in known])
        place = int(np.nanargmin(means))
        if place == 0:
            rates = known[0] / apart ** np.arange(3.0, 0.0, -1.0)
        elif place == len(known) - 1:
            rates = known[-1] * apart ** np.arange(1.0, 4.0)
        else:
            break
    every = [(rate, loss) for rate in sorted(trained) for loss in trained[rate]]
    return scaling.rung(sizes, [rate for rate, _ in every], [loss for _, loss in every])


def ladder(optimizer: str, scale: str) -> dict[str, Any]:
    """Return what is predicted and measured at the top of a ladder."""
    rungs: list[scaling.Rung] = []
    centre = CENTRES[optimizer]
    for size in [BASE[scale] // 2**step for step in (3, 2, 1, 0)]:
        rungs.append(rung(optimizer, {**BASE, scale: size}, centre, 2.0))
        centre = rungs[-1].rate
    target = {scale: BASE[scale] * TIMES}
    found = scaling.predict(rungs, target)
    top = rung(optimizer, {**BASE, **target}, found.rate, math.sqrt(2))
    return {
        "predicted": round(found.rate, 5),
        "interval": [round(found.low, 5), round(found.high, 5)],
        "measured": round(top.rate, 5),
        "its error": round(top.error, 3),
        "off by": round(math.exp(abs(math.log(found.rate / top.rate))), 3),
        "unscaled off by": round(math.exp(abs(math.log(found.unscaled / top.rate))), 3),
        "held": bool(found.low <= top.rate <= found.high),
        "power": [round(getattr(found.slopes[scale], end), 3) for end in ("mean", "low", "high")],
        "rungs": {str(one.sizes[scale]): round(one.rate, 5) for one in rungs},
        "warnings": list(found.warnings),
    }


def main() -> None:
    """Parse the command line, and measure what is missing."""
    names = [f"{optimizer}-{scale}" for optimizer in OPTIMIZERS for scale in BASE]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--again", action="store_true", help="measure ladders that are there too")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in asked.only:
        if name not in found or asked.again:
            found[name] = ladder(*name.split("-"))
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(found[name]), flush=True)


if __name__ == "__main__":
    main()
