"""Which rule that stops trials early loses the best one? Replays on pools of fully trained trials.

A *pool* is a problem, an optimizer and a seed: `TRIALS` trials of six schedules and rates over
three powers of ten, all trained to their horizon H by our cohort trainer, with the values at
27 evaluations and the values of branches (`tuner.training.branches`) at some of them:

    python -m benchmarks.early_judging generate POOLS [--problems digits text]

With `--common` all trials of a pool have the same initial weights and batches, else each its own.
Pools that exist are skipped, so an interrupted run is continued by the same command. One takes
from seconds (noisy quadratic) to minutes (text); 36 of them take a megabyte.

    python -m benchmarks.early_judging replay POOLS [--studies 200] [--common]

draws studies of 60 trials from each pool, in random order, and lets rules stop them: trials reach
a rung one after the other, and each is compared with those that were there before. A *narrow* study
has rates within three quarters of a power of ten of the good ones (the geometric mean of the best
tenth); a *wide* one has all. It reports the share of studies whose best trial was stopped, the
regret (chosen - best) / (median - best), and the cost: steps, branches included, of those of whole
trials. Beside each rule stands what as many steps on fewer whole trials give. Intervals are 95 %
bootstrap intervals over pools, since studies of one pool are not independent.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.unguarded import complete
from tuner.config import StudySpec
from tuner.examples import digits, mnist, text
from tuner.training.branches import BranchPlan, fast_forward, same_schedule
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.device import use_threads
from tuner.training.trainer import ENDED, Status, Task
from tuner.training.workloads import Workload, digest_of, seeded

RESULTS = Path(__file__).with_name("results") / "early_judging.json"
COMMON = "-common"
"""At the end of a pool's name: its trials have the same initial weights and batches."""
TRIALS = 160
EVALUATIONS = 27
"""Evaluations after the one at step 0; shares of the horizon below are in 27ths."""
BRANCHES = {  # name: (evaluation, steps by those so far, plan)
    "forward 0.2 at H/9": (3, 0.2, fast_forward, False),
    "forward 0.2 at H/3": (9, 0.2, fast_forward, False),
    "forward 0.1 at H/3": (9, 0.1, fast_forward, False),
    "average at H/3": (9, 0.1, same_schedule, True),
    "forward 0.2 at 0.52 H": (14, 0.2, fast_forward, False),
}
SCHEDULES: Sequence[Mapping[str, Any]] = (
    {"name": "constant"},
    {"name": "linear", "final": 0.0},
    {"name": "cosine", "final": 0.0},
    {"name": "wsd", "decay": 0.2},
    {"name": "step", "gamma": 0.1, "drops": 2},
    {"name": "one_cycle"},
)


# --- problems -----------------------------------------------------------------------------------


class Vector(nn.Module):
    """Parameters that are the output for every row."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(size, dtype=dtype))

    def forward(self, rows: Tensor) -> Tensor:  # [row, 1] -> [row, size]
        """Return the parameters for every row."""
        return self.x.expand(len(rows), -1)


def noisy_quadratic(size: int = 50, rows: int = 4096) -> Workload:
    """Minimize half the sum of h (x - c)², with a random center c in every row.

    Curvatures h fall from 1 as 1 / i, so some directions end in noise and others in bias; the
    validation loss has the true center, 0.
    """
    with seeded(1):
        centers = torch.randn(rows, size, dtype=torch.float64)
    curvature = 1.0 / torch.arange(1, size + 1, dtype=torch.float64)  # [size]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (curvature.to(outputs.dtype) * (outputs - targets).square()).sum(-1).mean()

    nothing = torch.zeros(rows, 1, dtype=torch.float64)
    return Workload(
        model=lambda _seed, dtype: Vector(size, dtype),
        train_inputs=nothing,
        train_targets=centers - centers.mean(dim=0),
        validation_inputs=nothing[:1],
        validation_targets=torch.zeros(1, size, dtype=torch.float64),
        loss=loss,
        metrics={},
        data_name="noisy quadratic",
        data_digest=digest_of(centers),
    )


def teacher_student(width: int = 20, rows: int = 2000) -> Workload:
    """Fit a noisy network of two layers by one of three."""
    with seeded(2):
        teacher = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 1)).double()
        inputs = torch.randn(rows + 500, width, dtype=torch.float64)
        with torch.no_grad():
            targets = 3.0 * teacher(inputs)
        targets = targets + 0.1 * torch.randn_like(targets)
    return _regression("teacher and student", _dense([width, 64, 64, 1], False), inputs, targets)


def _regression(name: str, model: Any, inputs: Tensor, targets: Tensor) -> Workload:
    return Workload(
        model=model,
        train_inputs=inputs[500:],
        train_targets=targets[500:],
        validation_inputs=inputs[:500],
        validation_targets=targets[:500],
        loss=nn.functional.mse_loss,
        metrics={},
        data_name=name,
        data_digest=digest_of(inputs, targets),
    )


def _dense(widths: list[int], normalized: bool) -> Callable[[int, torch.dtype], nn.Module]:
    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        with seeded(seed):
            layers: list[nn.Module] = []
            for before, after in itertools.pairwise(widths[:-1]):
                layers.append(nn.Linear(before, after))
                layers += [nn.BatchNorm1d(after)] if normalized else []
                layers.append(nn.ReLU())
            return nn.Sequential(*layers, nn.Linear(*widths[-2:])).to(dtype)

    return model


def normalized_digits() -> Workload:
    """Classify digits by a network with batch normalization."""
    plain = digits.mlp()
    return Workload(**{**vars(plain), "model": _dense([64, 64, 64, 10], True), "metrics": {}})


@dataclass(frozen=True)
class Problem:
    """A workload, its batch and horizon, and the highest rate of each optimizer."""

    make: Callable[[], Workload]
    steps: int  # a multiple of `EVALUATIONS`
    batch: int
    highest: Mapping[str, float]


PROBLEMS = {
    "quadratic": Problem(noisy_quadratic, 540, 4, {"sgd": 0.3, "adamw": 0.3}),
    "digits": Problem(digits.mlp, 540, 32, {"sgd": 0.5, "adamw": 0.1}),
    "batchnorm": Problem(normalized_digits, 270, 32, {"sgd": 3.0, "adamw": 0.3}),
    "teacher": Problem(teacher_student, 540, 32, {"sgd": 0.3, "adamw": 0.1}),
    "mnist": Problem(
        lambda: mnist.convolutional(channels=4, validation=500), 135, 32, {"sgd": 0.3, "adamw": 0.1}
    ),
    "text": Problem(
        lambda: text.transformer(width=16, heads=2, layers=2), 270, 16, {"sgd": 1.0, "adamw": 0.1}
    ),
}
OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"name": "sgd", "momentum": 0.9},
    "adamw": {"name": "adamw"},
}


# --- pools --------------------------------------------------------------------------------------


def tasks(problem: Problem, optimizer: str, seed: int, *, common: bool) -> list[Task]:
    """Draw the trials of a pool: schedules in turn, rates from a stratified sample."""
    draws = np.random.default_rng([seed, 7])
    strata = draws.permutation(TRIALS)
    made = []
    for number in range(TRIALS):
        exponent = -3.0 * (strata[number] + draws.random()) / TRIALS
        schedule = dict(SCHEDULES[number % len(SCHEDULES)])
        schedule["warmup"] = float(draws.choice([0.0, 0.1]))
        lr = problem.highest[optimizer] * 10.0**exponent
        params = complete(lr, schedule, dict(OPTIMIZERS[optimizer]))
        own = 1000 * seed + (0 if common else number)
        made.append(Task(number=number, seed=own, params=params))
    return made


def spec_of(problem: Problem) -> StudySpec:
    """Return a study that stops at every evaluation for a decision."""
    every = problem.steps // EVALUATIONS
    training = {"steps": problem.steps, "evaluate_every": every, "batch_size": problem.batch}
    return StudySpec.model_validate(
        {
            "study": {"name": "early judging"},
            "workload": {"factory": "studies.digits:mlp"},
            "training": training,
            "space": {"lr": 0.1, "schedule": "constant", "optimizer": "sgd"},
            "search": {"sampler": "random", "pruner": "median"},
            "budget": {"trials": 1},
        }
    )


def generate(folder: Path, problems: Sequence[str], seeds: Sequence[int], *, common: bool) -> None:
    """Train the pools that are missing."""
    use_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for name in problems:
            for optimizer in OPTIMIZERS:
                path = folder / f"{name}-{optimizer}-{seed}{COMMON if common else ''}.npz"
                if path.exists():
                    continue
                began = time.monotonic()
                pool = train_pool(PROBLEMS[name], optimizer, seed, common=common)
                partial = path.with_suffix(".partial")
                with partial.open("wb") as file:
                    np.savez_compressed(file, **pool)
                partial.replace(path)
                print(f"{path.name}: {time.monotonic() - began:.0f} s", flush=True)


def train_pool(
    problem: Problem, optimizer: str, seed: int, *, common: bool
) -> dict[str, np.ndarray]:
    """Train one pool; return rates, schedules, values [trial, evaluation] and of branches."""
    spec = spec_of(problem)
    trainer = CohortTrainer(problem.make(), spec, 32)
    every = problem.steps // EVALUATIONS
    waiting = tasks(problem, optimizer, seed, common=common)
    lr = np.array([float(task.params["lr"]) for task in waiting])
    schedule = np.array([str(task.params["schedule"]) for task in waiting])
    values = np.full((TRIALS, EVALUATIONS + 1), np.nan)  # [trial, evaluation]
    branches = {name: np.full(TRIALS, np.nan) for name in BRANCHES}
    running = 0
    while waiting or running:
        # whole cohorts, so that branches of one step are trained together
        while waiting and running < trainer.capacity:
            trainer.admit(waiting.pop(0))
            running += 1
        at_rung = []
        for event in trainer.advance(problem.steps):
            for evaluation in event.evaluations:
                values[event.number, evaluation.step // every] = evaluation.metrics["val_loss"]
            if event.status in ENDED:
                if event.status is not Status.FINISHED:
                    values[event.number, -1] = math.inf
                trainer.evict(event.number)
                running -= 1
            elif event.status is Status.AT_RUNG:
                at_rung.append((event.number, event.next_step))
        for name, (evaluation, share, rates, averaged) in BRANCHES.items():
            here = [number for number, step in at_rung if step == evaluation * every]
            if here:
                steps = max(1, round(share * evaluation * every))
                plan = BranchPlan(steps=steps, schedule=rates, averaged=averaged)
                for branch in trainer.branch(here, plan, lambda: True) or ():
                    value = branch.metrics["val_loss"]
                    branches[name][branch.number] = value if math.isfinite(value) else math.inf
    return {"lr": lr, "schedule": schedule, "values": values, **branches}


# --- rules --------------------------------------------------------------------------------------

GROUP = 8
"""Trials that reach a rung together, as in a cohort of eight slots."""


@dataclass(frozen=True)
class Study:
    """Some trials of a pool, in the order in which they are trained."""

    values: np.ndarray  # [trial, evaluation]; nan after divergence
    branches: Mapping[str, np.ndarray]  # each [trial]; nan if it diverged before
    final: np.ndarray  # [trial]; infinite if it diverged
    lengths: np.ndarray  # [trial]; steps of a whole trial, in 27ths of the horizon
    rates: np.ndarray  # [trial]
    schedules: np.ndarray  # [trial]; their names

    def judged(self, name: str) -> tuple[int, np.ndarray, float]:
        """Return evaluation, values [trial] and steps, in 27ths, of a judge by its name."""
        if name.startswith("raw "):
            at = int(name.removeprefix("raw "))
            return at, self.values[:, at], 0.0
        at, share, *_ = BRANCHES[name]
        return at, self.branches[name], at * share


Rule = Callable[[Study], tuple[np.ndarray, np.ndarray]]
"""Map a study to the evaluation after which each trial ends, 27 at the horizon, and the steps of
its branches, in 27ths of the horizon; both [trial]."""


def rungs(*steps: tuple[str, float], fewest: int = 1, group: int = GROUP) -> Rule:
    """Continue 1 in `keep` of the trials so far at each rung, (judge, keep)."""

    def rule(study: Study) -> tuple[np.ndarray, np.ndarray]:
        ends, extra = study.lengths.copy(), np.zeros(len(study.lengths))
        alive = np.ones(len(ends), dtype=bool)
        for name, keep in steps:
            at, values, cost = study.judged(name)
            there: list[int] = []
            for first in range(0, len(ends), group):
                arrived = [
                    n
                    for n in range(first, min(first + group, len(ends)))
                    if alive[n] and study.lengths[n] >= at and not math.isnan(values[n])
                ]
                there += arrived
                known = np.sort(values[there])
                for n in arrived:
                    extra[n] += cost
                    ahead = int(known.searchsorted(values[n]))
                    if len(there) >= fewest and ahead >= max(int(len(there) // keep), 1):
                        alive[n], ends[n] = False, at
        return ends, extra

    return rule


def unlikely(name: str, chance: float, group: int = GROUP) -> Rule:
    """Stop a trial whose chance to become the best is small.

    A line through the logarithms of judged and final values of completed trials, with normal
    residuals, predicts its final value; nothing is stopped before eight have completed.
    """

    def rule(study: Study) -> tuple[np.ndarray, np.ndarray]:
        at, values, cost = study.judged(name)
        ends, extra = study.lengths.copy(), np.zeros(len(study.lengths))
        done: list[int] = []
        for first in range(0, len(ends), group):
            arrived = range(first, min(first + group, len(ends)))
            going = []
            for n in arrived:
                if study.lengths[n] < at or math.isnan(values[n]):
                    continue
                extra[n] = cost
                if len(done) >= 8 and _chance(study, values, done, n) < chance:
                    ends[n] = at
                elif math.isfinite(study.final[n]) and math.isfinite(values[n]):
                    going.append(n)
            done += going
        return ends, extra

    return rule


def _chance(study: Study, values: np.ndarray, done: list[int], n: int) -> float:
    if not math.isfinite(values[n]):
        return 0.0
    x, y = np.log(values[done]), np.log(study.final[done])
    if np.ptp(x) == 0:
        return 1.0
    slope = max(float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()), 0.0)
    intercept = y.mean() - slope * x.mean()
    spread = math.sqrt(((y - intercept - slope * x) ** 2).sum() / (len(x) - 2)) + 1e-12
    mean = intercept + slope * math.log(values[n])
    return 0.5 * math.erfc((mean - y.min()) / spread / math.sqrt(2.0))


def percentile(share: float, startup: int = 5, group: int = GROUP) -> Rule:
    """Optuna's percentile pruner: the best value so far beside completed trials' at the step."""

    def rule(study: Study) -> tuple[np.ndarray, np.ndarray]:
        ends = study.lengths.copy()
        best = np.fmin.accumulate(study.values[:, 1:], axis=1)  # [trial, evaluation]
        done: list[int] = []
        for first in range(0, len(ends), group):
            arrived = range(first, min(first + group, len(ends)))
            if len(done) >= startup:
                limits = np.nanpercentile(study.values[done, 1:], share, axis=0)
                for n in arrived:
                    worse = np.flatnonzero(best[n, : int(ends[n])] > limits[: int(ends[n])])
                    if len(worse) and worse[0] + 1 < EVALUATIONS:
                        ends[n] = worse[0] + 1
            done += [n for n in arrived if ends[n] == EVALUATIONS and np.isfinite(study.final[n])]
        return ends, np.zeros(len(ends))

    return rule


def hyperband(study: Study) -> tuple[np.ndarray, np.ndarray]:
    """Optuna's hyperband with factor 3 from H/9: brackets in turn, by their share of the budget."""
    ends = study.lengths.copy()
    brackets = [[("raw 3", 3), ("raw 9", 3)], [("raw 9", 3)], []]
    shares = np.array([math.ceil(3 * 3**s / (s + 1)) for s in (2, 1, 0)], dtype=float)
    chosen = np.random.default_rng(0).choice(3, len(ends), p=shares / shares.sum())
    for bracket, steps in enumerate(brackets):
        own = np.flatnonzero(chosen == bracket)
        if len(own) and steps:
            part = replace(
                study,
                values=study.values[own],
                branches={},
                final=study.final[own],
                lengths=study.lengths[own],
            )
            ends[own] = rungs(*steps, group=max(1, GROUP // 3))(part)[0]
    return ends, np.zeros(len(ends))


FORWARD, EARLY, LATE = "forward 0.2 at H/3", "forward 0.2 at H/9", "forward 0.2 at 0.52 H"
RULES: Mapping[str, Rule] = {
    "one_rung, safe": rungs((FORWARD, 2), fewest=6),
    "one_rung, balanced": rungs((FORWARD, 3), fewest=6),
    "one_rung, fast": rungs((FORWARD, 6), fewest=6),
    "raw: keep 3/4 at 0.52 H": rungs(("raw 14", 4 / 3), fewest=6),
    "raw: keep 1/2 at 0.52 H": rungs(("raw 14", 2), fewest=6),
    "raw: keep 1/3 at 0.52 H": rungs(("raw 14", 3), fewest=6),
    "halving (keep 1/2 at H/3, raw)": rungs(("raw 9", 2)),
    "average: keep 1/2 at H/3": rungs(("average at H/3", 2), fewest=6),
    "forward 0.1: keep 1/2 at H/3": rungs(("forward 0.1 at H/3", 2), fewest=6),
    "one_rung, safe, one after the other": rungs((FORWARD, 2), fewest=6, group=1),
    "forward 0.2: keep 1/2 at 0.52 H": rungs((LATE, 2), fewest=6),
    "forward 0.2: keep 1/3 at 0.52 H": rungs((LATE, 3), fewest=6),
    "two rungs: 1/2 at H/3, 1/2 at 0.52 H": rungs((FORWARD, 2), (LATE, 2), fewest=6),
    "two rungs: 1/2 at H/9, 1/3 at H/3": rungs((EARLY, 2), (FORWARD, 3), fewest=6),
    "unlikely to win: below 5 %": unlikely(FORWARD, 0.05),
    "unlikely to win: below 1 %": unlikely(FORWARD, 0.01),
    "asha from H/27": rungs(("raw 1", 3), ("raw 3", 3), ("raw 9", 3)),
    "asha from H/9": rungs(("raw 3", 3), ("raw 9", 3)),
    "asha from H/3": rungs(("raw 9", 3)),
    "hyperband from H/9": hyperband,
    "median": percentile(50.0),
    "percentile 25": percentile(25.0),
    "percentile 75": percentile(75.0),
}


# --- replay -------------------------------------------------------------------------------------


def narrow(pool: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the trials with rates within 3/4 of a power of ten of the best tenth's mean."""
    final = np.where(np.isfinite(pool["values"][:, -1]), pool["values"][:, -1], math.inf)
    logs = np.log10(pool["lr"])
    center = logs[np.argsort(final)[: len(final) // 10]].mean()
    return np.flatnonzero(np.abs(logs - center) <= 0.75)


def studies(
    pool: Mapping[str, np.ndarray], among: np.ndarray, size: int, count: int, seed: int
) -> list[Study]:
    """Draw studies of some trials of a pool, in random order."""
    draws = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        rows = draws.permutation(among)[:size]
        values = pool["values"][rows].copy()
        final = np.where(np.isfinite(values[:, -1]), values[:, -1], math.inf)
        known = np.isfinite(values)
        lengths = np.where(
            np.isfinite(final), EVALUATIONS, np.maximum(known.cumsum(1).argmax(1), 1)
        )
        branches = {name: pool[name][rows] for name in BRANCHES}
        drawn.append(
            Study(
                values=values,
                branches=branches,
                final=final,
                lengths=lengths.astype(float),
                rates=pool["lr"][rows],
                schedules=pool["schedule"][rows],
            )
        )
    return drawn


@functools.cache
def best_of(k: int, n: int) -> np.ndarray:
    """Return the chance that the best of k out of n is the r-th of all, [rank]."""
    chances = [math.comb(n - 1 - rank, k - 1) / math.comb(n, k) for rank in range(n)]
    return np.array(chances)


def fewer(final: np.ndarray, trials: float) -> tuple[float, float]:
    """Return lost share and expected best of a random choice of so many whole trials."""
    ordered, n = np.sort(final), len(final)
    low = min(max(int(trials), 1), n)
    part = trials - low
    value = float(best_of(low, n) @ ordered)
    if part > 0 and low < n:
        value = (1 - part) * value + part * float(best_of(low + 1, n) @ ordered)
    return 1 - min(trials, n) / n, value


def outcomes(rule: Rule, drawn: Sequence[Study]) -> np.ndarray:
    """Return means over studies: lost, regret, cost, and lost and regret of fewer trials."""
    rows = []
    for study in drawn:
        ends, extra = rule(study)
        best, middle = study.final.min(), np.median(study.final)
        if not math.isfinite(middle):
            middle = study.final[np.isfinite(study.final)].max()
        whole = ends == study.lengths
        chosen = study.final[whole].min()
        cost = (ends.sum() + extra.sum()) / study.lengths.sum()
        lost, expected = fewer(
            study.final[np.isfinite(study.final)],
            cost * len(ends) * (np.isfinite(study.final).mean()),
        )
        scale = max(middle - best, 1e-12)
        rows.append((chosen > best, (chosen - best) / scale, cost, lost, (expected - best) / scale))
    return np.array(rows, dtype=float).mean(axis=0)


def interval(samples: np.ndarray, seed: int = 0) -> list[float]:
    """Return mean and 95 % bootstrap interval of the mean over pools."""
    draws = np.random.default_rng(seed).integers(len(samples), size=(2000, len(samples)))
    means = samples[draws].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return [round(float(number), 4) for number in (samples.mean(), low, high)]


def replay(folder: Path, count: int, size: int, *, common: bool) -> dict[str, Any]:
    """Replay all rules on all pools of one kind."""
    paths = [one for one in sorted(folder.glob("*.npz")) if one.stem.endswith(COMMON) == common]
    pools = {path.stem: dict(np.load(path)) for path in paths}
    found: dict[str, Any] = {"pools": list(pools), "studies": count, "trials": size}
    found["trials in pools"] = sum(len(pool["lr"]) for pool in pools.values())
    found["rank correlation with the final value, narrow"] = {
        name: interval(np.array([_correlation(pool, name) for pool in pools.values()]))
        for name in ("raw 1", "raw 3", "raw 9", "raw 14", *BRANCHES)
    }
    for kind in ("narrow", "wide"):
        drawn = [
            studies(
                pool,
                narrow(pool) if kind == "narrow" else np.arange(len(pool["lr"])),
                size, count, seed,
            )
            for seed, pool in enumerate(pools.values())
        ]  # fmt: skip
        found[kind] = {}
        for name, rule in RULES.items():
            each = np.array([outcomes(rule, some) for some in drawn])  # [pool, outcome]
            found[kind][name] = {
                "lost": interval(each[:, 0]),
                "regret": interval(each[:, 1]),
                "cost": interval(each[:, 2]),
                "fewer lost": interval(each[:, 3]),
                "fewer regret": interval(each[:, 4]),
                "regret less fewer's": interval(each[:, 1] - each[:, 4]),
                "pools worse than fewer": int((each[:, 1] > each[:, 4] + 1e-9).sum()),
                "regret by problem": {
                    problem: each[[one.startswith(problem) for one in pools], 1].mean().round(4)
                    for problem in PROBLEMS
                    if any(one.startswith(problem) for one in pools)
                },
                "worst pool": list(pools)[int((each[:, 1] - each[:, 4]).argmax())],
            }
    return found


def _correlation(pool: Mapping[str, np.ndarray], name: str) -> float:
    (whole,) = studies(pool, narrow(pool), len(pool["lr"]), 1, 0)
    _, values, _ = whole.judged(name)
    known = np.isfinite(values) & np.isfinite(whole.final)
    return float(spearmanr(values[known], whole.final[known]).statistic)


def table(found: Mapping[str, Any], kind: str) -> str:
    """Return the rules' outcomes as a Markdown table."""
    lines = [
        "| rule | cost | best lost | regret | fewer whole trials: lost | regret | pools worse |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found[kind].items():
        cost, lost, regret = one["cost"], one["lost"], one["regret"]
        lines.append(
            f"| {name} | {cost[0]:.0%} | {lost[0]:.1%} ({lost[1]:.1%} to {lost[2]:.1%}) "
            f"| {regret[0]:.3f} ({regret[1]:.3f} to {regret[2]:.3f}) | {one['fewer lost'][0]:.0%} "
            f"| {one['fewer regret'][0]:.3f} | {one['pools worse than fewer']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("generate")
    making.add_argument("folder", type=Path)
    making.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=PROBLEMS)
    making.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    replaying = commands.add_parser("replay")
    replaying.add_argument("folder", type=Path)
    replaying.add_argument("--studies", type=int, default=200)
    replaying.add_argument("--trials", type=int, default=60)
    for command in (making, replaying):
        command.add_argument("--common", action="store_true", help="one seed for all trials")
    asked = parser.parse_args()
    if asked.command == "generate":
        generate(asked.folder, asked.problems, asked.seeds, common=asked.common)
        return
    found = replay(asked.folder, asked.studies, asked.trials, common=asked.common)
    results = RESULTS.with_stem(RESULTS.stem + (COMMON if asked.common else ""))
    results.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["rank correlation with the final value, narrow"], indent=1))
    print(table(found, "narrow"), table(found, "wide"), sep="\n\n")


if __name__ == "__main__":
    main()
