"""How accurate are the probe and the usual learning-rate finders?

On problems with exact solutions (house prices, (x - 2)², sin x and random quadratics of 2 to
50 dimensions): is the largest stable rate within the probe's bracket, how far is the estimated
curvature from the true one, and by what factor is the suggested rate off the best constant one?
Beside it, what the rules of fastai, pytorch-lr-finder and Lightning suggest after their own rising
sweep, each with its own range, smoothing and stop; the rules are reimplemented here and in
`lr_finders.py`. On the digits' network the curvature is compared with a dense
Hessian.

    python benchmarks/probing.py [--quadratics 200] [--write]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lr_finders import Sweep, curves_of_model, steep, sweep, valley
from torch import Tensor, nn

from tuner.config import ParameterValue, StudySpec
from tuner.examples.bowl import FrozenAdam, best, bowl, limit
from tuner.examples.digits import mlp
from tuner.examples.house_prices import line
from tuner.examples.quadratic import parabola
from tuner.examples.sine import wave
from tuner.training import optimizers
from tuner.training.lr_probe import curvature, curves_by_rate, probe
from tuner.training.workloads import Workload

RESULTS = Path(__file__).parent / "results" / "probing.json"
BETA = 0.9
MOMENTA: Mapping[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.0, "nesterov": False},
    "heavy ball": {"momentum": BETA, "nesterov": False},
    "nesterov": {"momentum": BETA, "nesterov": True},
}
RATES, STEPS = 31, 200


@dataclass(frozen=True, kw_only=True)
class Row:
    """One problem with one optimizer."""

    problem: str
    optimizer: str
    limit: float
    best: tuple[float, float]  # of constant rates; with momentum, many are equally good
    bracket: tuple[float | None, float | None]
    curvature_error: float | None  # relative
    suggested: Mapping[str, float | None]  # by whom

    def holds(self) -> bool:
        low, high = self.bracket
        return low is not None and high is not None and low <= self.limit <= high

    def off(self, who: str) -> float:
        """Return the ratio between a suggestion and the nearest of the best rates."""
        rate, (low, high) = self.suggested[who], self.best
        return math.inf if rate is None else max(low / rate, rate / high, 1.0)


def pytorch_lr_finder(swept: Sweep) -> float | None:
    """Suggest as pytorch-lr-finder's plot does: the steepest fall, 10 and 5 left out."""
    rates, losses = swept.rates[10:-5], swept.smoothed[10:-5]
    return None if len(losses) < 2 else float(rates[int(np.gradient(losses).argmin())])


def lightning(swept: Sweep) -> float | None:
    """Suggest as Lightning's `lr_find` does: the steepest step of the loss, 10 and 1 left out."""
    rates, losses = swept.rates[10:-1], swept.smoothed[10:-1]
    finite = np.isfinite(losses)
    losses = losses[finite]
    return None if len(losses) < 2 else float(rates[int(np.gradient(losses).argmin())])


# the defaults of each: the range, the share of the past in the smoothed loss, when it is lost
FINDERS: Mapping[str, tuple[Callable[[Sweep], float | None], dict[str, float]]] = {
    "fastai valley": (valley, {"low": 1e-7, "high": 10.0, "smoothing": 0.98, "lost": 4.0}),
    "fastai steep": (steep, {"low": 1e-7, "high": 10.0, "smoothing": 0.98, "lost": 4.0}),
    "pytorch-lr-finder": (
        pytorch_lr_finder,
        {"low": 1e-7, "high": 10.0, "smoothing": 0.95, "lost": 5.0},
    ),
    "lightning": (lightning, {"low": 1e-8, "high": 1.0, "smoothing": 0.98, "lost": 4.0}),
}


def study(factory: str = "studies.bowl:bowl") -> StudySpec:
    """Return a full-batch study in double precision."""
    return StudySpec.model_validate(
        {
            "study": {"name": "probing"},
            "workload": {"factory": factory},
            "training": {"steps": STEPS, "batch_size": "full", "dtype": "float64"},
            "space": {"lr": {"low": 1e-5, "high": 10.0}, "optimizer": "sgd"},
            "probe": {"rates": RATES, "steps": STEPS},
            "budget": {"trials": 1},
        }
    )


def of_sgd(**settings: ParameterValue) -> dict[str, ParameterValue]:
    own = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, **settings}
    return {
        "optimizer": "sgd",
        "schedule": "constant",
        "constant.warmup": 0.0,
        **{f"sgd.{key}": value for key, value in own.items()},
    }


def on_workload(
    name: str,
    workload: Workload,
    curvatures: tuple[float, ...],
    momenta: Mapping[str, dict[str, Any]] = MOMENTA,
    estimated: float | None = None,  # the largest curvature at the first weights, where it differs
) -> list[Row]:
    """Probe SGD in its forms, in one cohort."""
    spec = study()
    params = {form: of_sgd(**settings) for form, settings in momenta.items()}
    attempt = curves_by_rate.curves_of_workload(workload, spec, params)
    low, high = probe.first_range(spec)
    found = probe.measure_curves(attempt, dict.fromkeys(params, (low, high)), RATES)
    model = probe.first_model(workload, spec)
    fixed, _ = probe.losses(workload, spec)
    rows = []
    for form, curves in found.items():
        result = probe.summarize(curves, params[form])
        at = curvature.measure(params[form], model, fixed, [])
        true = max(curvatures) if estimated is None else estimated
        settings = momenta[form]

        def start(form: str = form) -> tuple[nn.Module, torch.optim.Optimizer]:
            made = probe.first_model(workload, spec)
            return made, optimizers.make({**params[form], "lr": 0.1}, list(made.parameters()))

        rows.append(
            Row(
                problem=name,
                optimizer=form,
                limit=limit(max(curvatures), **settings),
                best=best(curvatures, **settings),
                bracket=(result.low, result.high),
                curvature_error=abs(at.lambda_max - true) / abs(true),
                suggested={"probe": result.fastest, **finders(start, fixed)},
            )
        )
    return rows


def frozen_adam(name: str, workload: Workload, seed: int) -> Row:
    """Probe Adam with a frozen preconditioner, each coordinate's its own."""
    spec = study()
    model = probe.first_model(workload, spec)
    size = sum(p.numel() for p in model.parameters())
    generator = torch.Generator().manual_seed(seed)
    divided = torch.rand(size, generator=generator, dtype=torch.float64).mul(4).sub(2).exp()
    rows = workload.train_inputs
    hessian = 2 / len(rows) * rows.T @ rows
    root = divided.rsqrt()
    curvatures = tuple(torch.linalg.eigvalsh(root[:, None] * hessian * root).tolist())
    fixed, _ = probe.losses(workload, spec)

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        made = probe.first_model(workload, spec)
        return made, FrozenAdam(made.parameters(), divided[None], BETA)

    own, optimizer = start()
    attempt = curves_of_model(own, optimizer, lambda _step: fixed(own), spec.training.steps)
    found = probe.measure_curves(attempt, {"adam": probe.first_range(spec)}, RATES)["adam"]
    result = probe.summarize(found, {"optimizer": "adam"})
    product, _ = curvature.hessian(model, fixed)
    value, _ = curvature.largest(
        lambda v: root * product(root * v), size, torch.Generator().manual_seed(0)
    )
    scaled = tuple((1 - BETA) * one for one in curvatures)
    return Row(
        problem=name,
        optimizer="adam, frozen",
        limit=limit(max(scaled), BETA),
        best=best(scaled, BETA),
        bracket=(result.low, result.high),
        curvature_error=abs(value - max(curvatures)) / max(curvatures),
        suggested={"probe": result.fastest, **finders(start, fixed)},
    )


def finders(
    start: Callable[[], tuple[nn.Module, torch.optim.Optimizer]],
    loss: Callable[[nn.Module], Tensor],
) -> dict[str, float | None]:
    """Ask every other finder, after a sweep by its own defaults."""
    result: dict[str, float | None] = {}
    for name, (rule, settings) in FINDERS.items():
        model, optimizer = start()
        swept = sweep(
            model,
            optimizer,
            lambda _step, model=model: loss(model),  # type: ignore[misc]
            **settings,  # type: ignore[arg-type]
        )
        result[name] = rule(swept)
    return result


def spectrum(seed: int) -> tuple[float, ...]:
    """Draw curvatures: 2 to 50 of them, over up to three powers of ten, at any scale."""
    generator = np.random.default_rng(seed)
    size = int(generator.integers(2, 51))
    width, scale = generator.uniform(0.0, 3.0), generator.uniform(-3.0, 3.0)
    exponents = np.append(generator.uniform(-width, 0.0, size - 2), [0.0, -width])
    return tuple((10.0 ** (scale + exponents)).tolist())


def known() -> list[Row]:
    """Probe the problems that everybody knows."""
    house = tuple(np.linalg.eigvalsh([[13.5, 5.0], [5.0, 2.0]]).tolist())
    plain = {"sgd": MOMENTA["sgd"]}
    return [
        *on_workload("house prices", line(), house),
        *on_workload("(x - 2)²", parabola(), (2.0,)),
        *on_workload("sin x", wave(), (1.0,), plain, estimated=-math.sin(1.0)),
    ]


def quadratic(seed: int) -> list[Row]:
    """Probe one random quadratic with every optimizer."""
    curvatures = spectrum(seed)
    name, workload = f"quadratic {seed}", bowl(curvatures, seed)
    return [*on_workload(name, workload, curvatures), frozen_adam(name, workload, seed)]


def dense(hidden: int = 32) -> dict[str, float]:
    """Compare the curvature of the digits' network with the eigenvalues of its whole Hessian."""
    workload, spec = mlp(hidden=hidden), study("studies.digits:mlp")
    model = probe.first_model(workload, spec)
    fixed, batches = probe.losses(workload, spec)
    adam = probe.representative(spec.space.model_validate({"optimizer": "adam"}).optimizer[0])
    product, size = curvature.hessian(model, fixed)
    hessian = torch.stack([product(row) for row in torch.eye(size, dtype=torch.float64)])
    divided = curvature.preconditioner(
        adam, [curvature.gradient(model, batch) for batch in batches[:1]]
    )
    assert divided is not None
    root = divided.rsqrt()
    found = {"parameters": float(size)}
    for name, params, matrix in (
        ("sgd", of_sgd(), hessian),
        ("adam", adam, root[:, None] * hessian * root),
    ):
        true = float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
        at = curvature.measure(params, model, fixed, batches[:1])
        found |= {f"{name} true": true, f"{name} estimated": at.lambda_max}
        found |= {f"{name} relative error": abs(at.lambda_max - true) / true}
    return found


def summary(rows: list[Row]) -> dict[str, Any]:
    """Sum up by optimizer: containment, errors, factors, and how often the probe is the nearest."""
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.optimizer].append(row)
    groups["all"] = rows
    table = {}
    for name, own in groups.items():
        errors = [row.curvature_error for row in own if row.curvature_error is not None]
        factors = {who: [row.off(who) for row in own] for who in ("probe", *FINDERS)}
        widths = [row.bracket[1] / row.bracket[0] for row in own if all(row.bracket)]
        table[name] = {
            "problems": len(own),
            "limit in bracket": sum(row.holds() for row in own),
            "bracket high/low": round(statistics.median(widths), 4),
            "largest curvature error": max(errors),
            "within 1.5": {who: sum(f <= 1.5 for f in some) for who, some in factors.items()},
            "median factor": {who: _short(statistics.median(f)) for who, f in factors.items()},
            "worst factor": {who: _short(max(f)) for who, f in factors.items()},
            "probe as near or nearer": {
                who: sum(row.off("probe") <= row.off(who) for row in own) for who in FINDERS
            },
            "nothing suggested": {
                who: sum(row.suggested[who] is None for row in own) for who in FINDERS
            },
        }
    return table


def _short(number: float) -> float | str:
    return float(f"{number:.4g}") if math.isfinite(number) else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quadratics", type=int, default=200)
    parser.add_argument("--write", action="store_true", help="write results/probing.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    first = known()
    drawn = [row for seed in range(chosen.quadratics) for row in quadratic(seed)]
    found = {
        "known": [asdict(row) | {"factor": row.off("probe")} for row in first],
        "quadratics": summary(drawn) if drawn else {},
        "digits": dense(),
        "missed": [asdict(row) for row in drawn if not row.holds() or row.off("probe") > 1.5],
        "seconds": round(time.perf_counter() - began, 1),
    }
    text = json.dumps(found, indent=1, default=str)
    print(text)
    if chosen.write:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
