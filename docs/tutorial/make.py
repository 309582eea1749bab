"""Make the tutorial: run its commands, draw its pictures, and put its numbers into its text.

`python docs/tutorial/make.py` writes README.md and images/ beside text.md; `--into FOLDER` writes
them elsewhere. It fails if a command fails, or if a claim of the text does not hold.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from paths import path_on_function

from tuner.analysis import ranking
from tuner.core.curves import Chunk
from tuner.core.outcome import COMPLETED, DIVERGED
from tuner.ledger import Ledger, StudyRecord, TrialRecord
from tuner.ledger.database import addresses, open_ledger
from tuner.report.charts import plot_builders as plots
from tuner.report.charts.matplotlib_backend import draw as drawn
from tuner.report.charts.matplotlib_backend import save
from tuner.report.charts.plot import Line, Plot, Points
from tuner.training import schedules

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT = 0.1301247  # 2 over the largest curvature of the five houses


@dataclass(frozen=True, kw_only=True)
class Studied:
    """A study that was run: its trials and their curves, both by number."""

    study: StudyRecord
    trials: Sequence[TrialRecord]
    curves: Sequence[Chunk]

    def where(self, **params: float | str) -> tuple[TrialRecord, Chunk]:
        """Find the only trial with these parameters; `__` stands for a dot."""
        wanted = {key.replace("__", "."): value for key, value in params.items()}
        (found,) = (
            number
            for number, trial in enumerate(self.trials)
            if wanted.items() <= dict(trial.params or {}).items()
        )
        return self.trials[found], self.curves[found]


def main() -> None:
    """Run the commands, check the claims, write the pictures and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--into", type=Path, default=HERE, metavar="FOLDER")
    into = parser.parse_args().into
    text = (HERE / "text.md").read_text()
    with tempfile.TemporaryDirectory() as folder:
        run_commands(text, Path(folder))
        studies = read(Path(folder))
    check(studies)
    draw(studies, into / "images")
    numbers = facts(studies)
    page = re.sub(r"@([a-z][\w.]*[\w])@", lambda found: numbers[found[1]], text)
    note = "<!-- written by make.py from text.md; change that one -->\n"
    (into / "README.md").write_text(note + page)


def run_commands(text: str, folder: Path) -> None:
    """Run the text's commands in an empty folder with the studies."""
    shutil.copytree(ROOT / "studies", folder / "studies")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {k: v for k, v in os.environ.items() if not k.startswith(("TUNER_", "MLFLOW_"))}
    environment = own | {"PATH": path, "OMP_NUM_THREADS": "1"}
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL):
        commands: list[list[str]] = [[sys.executable, "-c", block]]
        if language == "sh":
            commands = [[sys.executable, "-m", *line.split()] for line in block.splitlines()]
        for command in commands:
            subprocess.run(
                command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL
            )


def read(folder: Path) -> dict[str, Studied]:
    """Read the ledger that the commands wrote."""
    ledger = Ledger(open_ledger(addresses({}, folder), create=False))
    found = {}
    for study in ledger.studies():
        trials = ledger.trials(study.id)
        curves = [ledger.curve(trial.id) for trial in trials]
        found[study.name] = Studied(study=study, trials=trials, curves=curves)
    ledger.engine.dispose()
    return found


def check(studies: Mapping[str, Studied]) -> None:
    """Raise SystemExit if a claim of the text does not hold."""
    houses, search, text = studies["house-prices"], studies["house-prices-search"], studies["text"]
    losses = {lr: houses.where(lr=lr)[1].metrics["val_loss"] for lr in (1e-4, 0.01, 0.1)}
    ended = {
        (lr, name, warmup): text.where(lr=lr, schedule=name, **{f"{name}.warmup": warmup})[0].value
        for lr in (0.003, 0.01)
        for name in ("constant", "cosine")
        for warmup in (0.0, 0.2)
    }
    value = {key: value if value is not None else np.inf for key, value in ended.items()}
    low = [value[key] for key in value if key[0] == 0.003]
    digits = studies["digits"]
    claims = {
        "0.1 is over three times better than 0.01": losses[0.1][-1] * 3 < losses[0.01][-1],
        "its loss falls at every step": bool((np.diff(losses[0.1]) < 0).all()),
        "0.0001 is far from done": losses[1e-4][-1] > 20_000,
        "what diverged was above the limit": all(
            rate(trial) > LIMIT for trial in search.trials if trial.state == DIVERGED
        ),
        "the search came close to the grid's best": min(values(search)) < 1.2 * losses[0.1][-1],
        "momentum's limits are as stated": momentum_limits(studies)
        == {0.0: (0.95, 1.05), 0.5: (1.45, 1.55), 0.9: (1.85, 1.95)},
        "at 0.003 all are about equal": max(low) - min(low) < 0.2,
        "at 0.003 a decay costs": value[0.003, "cosine", 0.0] > value[0.003, "constant", 0.0],
        "without a warm-up 0.01 is dead": min(
            value[0.01, name, 0.0] for name in ("constant", "cosine")
        )
        > 3.0,
        "a warm-up saves it": value[0.01, "constant", 0.2] < 2.7,
        "a decay adds to that": value[0.01, "cosine", 0.2] < value[0.01, "constant", 0.2] - 0.1,
        "level with the best of the low rates": abs(value[0.01, "cosine", 0.2] - min(low)) < 0.1,
        "digits are learned": min(values(digits)) < 0.2,
        **claims_on_batches(studies["digits-batches"]),
    }
    wrong = [claim for claim, holds in claims.items() if not holds]
    if wrong:
        raise SystemExit("These claims of the text do not hold: " + "; ".join(wrong))


# --- numbers


def facts(studies: Mapping[str, Studied]) -> dict[str, str]:
    """Word every number and table of the text, by its name there."""
    found = quadratic_facts(studies["quadratic"]) | houses_facts(studies["house-prices"])
    found |= sine_facts(studies["sine"]) | momentum_facts(studies)
    found |= search_facts(studies["house-prices-search"]) | text_facts(studies["text"])
    found |= batch_facts(studies["digits-batches"])
    digits = studies["digits"]
    best = ranking.ranked(digits.study, digits.trials)[0]
    counts = dict.fromkeys(("completed", "pruned", "diverged"), 0)
    for trial in digits.trials:
        counts[trial.state] = counts.get(trial.state, 0) + 1
    params = ranking.in_short(best.params)
    return found | {
        "digits.counts": f"{ranking.counts_in_words(counts)}, of {len(digits.trials)}",
        "digits.best": f"val_loss {best.value:.4f} in trial {best.number} with {params}",
    }


def quadratic_facts(quadratic: Studied) -> dict[str, str]:
    """Return the numbers on (x - 2)²."""
    rows = []
    for trial, curve in zip(quadratic.trials, quadratic.curves, strict=True):
        x, loss = curve.metrics["x"][-1], curve.metrics["val_loss"][-1]
        after = f"{curve.eval_steps[-1]}"
        factor = f"{1 - 2 * rate(trial):.3g}"
        rows.append([f"{rate(trial):g}", factor, after, f"{x:.6g}", f"{loss:.4g}", trial.state])
    head = ["lr", "factor a step", "steps", "x then", "loss then", "outcome"]
    return {"quadratic.table": table(head, rows)}


def sine_facts(sine: Studied) -> dict[str, str]:
    """Return the numbers on sin x."""
    found = {}
    for trial, curve in zip(sine.trials, sine.curves, strict=True):
        name = f"{rate(trial):g}.{(trial.params or {})['schedule']}"
        found[f"sine.x.{name}"] = f"{curve.metrics['x'][-1]:.4f}"
    circling = sine.where(lr=2.2, schedule="constant")[1].metrics["val_loss"]
    return found | {"sine.worst.2.2": f"{circling[-20:].max():.2f}"}


def houses_facts(houses: Studied) -> dict[str, str]:
    """Return the numbers on the five houses."""
    claimed = {1e-4: "too low", 0.01: "just right", 0.1: "too high"}
    rows = [
        [f"{rate(trial):g}", f"{trial.value:,.2f}", claimed[rate(trial)], str(place)]
        for place, trial in enumerate(ranking.ranked(houses.study, houses.trials), start=1)
    ]
    return {"houses.table": table(["lr", "loss after 50 steps", "the claim", "place"], rows)}


def momentum_limits(studies: Mapping[str, Studied]) -> dict[float, tuple[float, float]]:
    """Return for each momentum the highest stable rate and the lowest unstable one."""
    trials = studies["quadratic-momentum"].trials
    limits = {}
    for beta in (0.0, 0.5, 0.9):
        own = [one for one in trials if (one.params or {})["sgd.momentum"] == beta]
        limits[beta] = (
            max(rate(one) for one in own if one.state == COMPLETED),
            min(rate(one) for one in own if one.state == DIVERGED),
        )
    return limits


def momentum_facts(studies: Mapping[str, Studied]) -> dict[str, str]:
    """Return the numbers on momentum, and the guard's reasons there."""
    momentum = studies["quadratic-momentum"]
    best = {
        beta: min(
            (
                trial
                for trial in momentum.trials
                if (trial.params or {})["sgd.momentum"] == beta and trial.state == COMPLETED
            ),
            key=lambda trial: trial.value if trial.value is not None else np.inf,
        )
        for beta in (0.0, 0.5, 0.9)
    }
    rows = [
        [f"{beta:g}", f"{1 + beta:g}", f"{low:g}", f"{high:g}"]
        for beta, (low, high) in momentum_limits(studies).items()
    ]
    head = ["momentum", "limit", "highest rate that was stable", "lowest that diverged"]
    examples = [momentum.where(lr=lr, sgd__momentum=0.0)[0] for lr in (1.05, 1.95)]
    return {
        "momentum.table": table(head, rows),
        "guard.examples": "\n".join(f"> lr {rate(one):g}: {one.reason}\n>" for one in examples)[
            :-2
        ],
    } | {f"momentum.best.{beta:g}": power(best[beta].value or 0.0) for beta in best}


def search_facts(search: Studied) -> dict[str, str]:
    """Return the numbers on the search over the rate of the five houses."""
    best = ranking.ranked(search.study, search.trials)[0]
    diverged = [trial for trial in search.trials if trial.state == DIVERGED]
    low, high = 1e-5, 1.0
    return {
        "search.trials": str(len(search.trials)),
        "search.best.lr": f"{rate(best):.4f}",
        "search.best.value": f"{best.value:.2f}",
        "search.diverged": str(len(diverged)),
        "search.diverged.steps": str(max(trial.steps for trial in diverged)),
        "search.uniform": f"{100 * (high - LIMIT) / (high - low):.0f}",
        "search.log": f"{100 * np.log(high / LIMIT) / np.log(high / low):.0f}",
    }


def best_by_batch(batches: Studied) -> dict[int, TrialRecord]:
    """Return the best trial of each batch size, the smallest batch first."""
    ranked = ranking.ranked(batches.study, batches.trials)
    sizes = sorted({batch(trial) for trial in ranked})
    return {size: next(one for one in ranked if batch(one) == size) for size in sizes}


def claims_on_batches(batches: Studied) -> dict[str, bool]:
    """Return which claims on rate and batch size hold."""
    best = list(best_by_batch(batches).values())
    rates, losses = [rate(one) for one in best], [one.value or np.inf for one in best]
    wrong, _ = batches.where(lr=rates[0], batch_size=batch(best[-1]))
    return {
        "the best rate rises with the batch": rates[0] < rates[1] < rates[2],
        "the smaller batches end level": abs(losses[0] - losses[1]) < 0.02,
        "the largest batch ends higher": losses[2] > 1.3 * max(losses[:2]),
        "at the rate of the smallest batch, the largest has hardly learned": (wrong.value or 0.0)
        > 1.5,
    }


def batch_facts(batches: Studied) -> dict[str, str]:
    """Return the numbers on rate and batch size."""
    best = best_by_batch(batches)
    rows = [
        [str(size), str(one.steps), f"{rate(one):g}", f"{one.value:.3f}"]
        for size, one in best.items()
    ]
    (small, first), (large, last) = next(iter(best.items())), list(best.items())[-1]
    wrong, _ = batches.where(lr=rate(first), batch_size=large)
    return {
        "batches.table": table(["batch size", "steps", "best lr", "loss"], rows),
        "batches.factor": f"{rate(last) / rate(first):.3g}",
        "batches.sizes": f"{large / small:g}",
        "batches.small": f"{rate(first):g}",
        "batches.wrong": f"{wrong.value:.3f}",
        "batches.right": f"{last.value:.3f}",
    }


def batch(trial: TrialRecord) -> int:
    """Return a trial's batch size."""
    return int((trial.params or {})["batch_size"])


def text_facts(text: Studied) -> dict[str, str]:
    """Return the numbers on the transformer."""
    from tuner.examples import text as workload  # noqa: PLC0415

    rows = []
    for lr in (0.003, 0.01):
        row = [f"{lr:g}"]
        for name in ("constant", "cosine"):
            for warmup in (0.0, 0.2):
                trial, _ = text.where(lr=lr, schedule=name, **{f"{name}.warmup": warmup})
                row.append(f"{trial.value:.3f}")
        rows.append(row)
    head = ["lr", "constant", "warm-up, constant", "cosine", "warm-up, cosine"]
    return {
        "text.table": table(head, rows),
        "text.baseline": f"{workload.transformer().baseline_loss:.2f}",
        "text.warm": rows[1][2],
        "text.both": rows[1][4],
        "text.low": min(rows[0][1:]),
    }


def rate(trial: TrialRecord) -> float:
    """Return a trial's learning rate."""
    return float((trial.params or {})["lr"])


def values(studied: Studied) -> list[float]:
    """Return the values of completed trials."""
    return [one.value for one in studied.trials if one.state == COMPLETED and one.value is not None]


def power(number: float) -> str:
    """Format to one digit; below rounding errors, digits mean nothing."""
    return f"{number:.1g}" if number > 1e-12 else "zero but for rounding"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# --- pictures


def draw(studies: Mapping[str, Studied], folder: Path) -> None:
    """Draw every picture of the text."""
    quadratic, sine = studies["quadratic"], studies["sine"]
    houses, text, digits = studies["house-prices"], studies["text"], studies["digits"]
    figures = {
        "quadratic_paths": path_on_function(
            lambda x: (x - 2) ** 2, paths(quadratic), formula="(x - 2)²", span=(-3, 7)
        ),
        "quadratic_losses": plots.comparison(losses(quadratic, by_rate)),
        "sine_paths": path_on_function(
            np.sin,
            [line for line in paths(sine) if not line.label.startswith("lr 0.1")],
            formula="sin x",
            span=(-9, 9),
        ),
        "houses": plots.comparison(losses(houses, by_rate)),
        "momentum": plots.value_by_rate(
            by_choice(studies["quadratic-momentum"], "sgd.momentum", "momentum "),
            title="(x - 2)² after 100 steps",
            ylabel="loss",
            joined=True,
        ),
        "search": plots.value_by_rate(
            [by_choice(studies["house-prices-search"], "optimizer", "")[0]],
            title="Five houses after 50 steps",
            ylabel="loss",
            limit=LIMIT,
        ),
        "schedules": plots.rates_as_applied(applied()),
        "digits": plots.loss_curves(
            losses(digits, lambda one: ranking.in_short(one.params), smooth=10),
            best=ranking.ranked(digits.study, digits.trials)[0].number,
            title="Digits: every trial (means of 10 steps)",
            ylabel="training loss",
        ),
        "digits_rates": plots.value_by_rate(
            by_choice(digits, "optimizer", ""), title="Digits: last report of every trial"
        ),
        "batches": plots.value_by_rate(
            by_choice(studies["digits-batches"], "batch_size", "batch size "),
            title="Digits after ten epochs",
            ylabel="validation loss",
            joined=True,
        ),
        "text": plots.comparison(
            [
                line
                for line, trial in zip(
                    losses(text, by_schedule, smooth=20), text.trials, strict=True
                )
                if rate(trial) == 0.01
            ],
            title="A small transformer at lr 0.01 (means of 20 steps)",
            ylabel="training loss",
        ),
    }
    for name, figure in figures.items():
        save(drawn(figure) if isinstance(figure, Plot) else figure, folder / f"{name}.png")


def by_rate(trial: TrialRecord) -> str:
    """Return a trial's label by its rate."""
    return f"lr {rate(trial):g}"


def by_schedule(trial: TrialRecord) -> str:
    """Return a trial's label by its schedule."""
    name = str((trial.params or {})["schedule"])
    warm = (trial.params or {})[f"{name}.warmup"]
    return f"{'warm-up, ' if warm else ''}{name}"


def losses(studied: Studied, name: Callable[[TrialRecord], str], smooth: int = 1) -> list[Line]:
    """Return each trial's training loss, as means of `smooth` steps."""
    lines = []
    for trial, curve in zip(studied.trials, studied.curves, strict=True):
        whole = len(curve.columns["train_loss"]) // smooth * smooth
        loss = curve.columns["train_loss"][:whole].reshape(-1, smooth).mean(axis=1)
        steps = np.arange(whole).reshape(-1, smooth).mean(axis=1)
        lines.append(Line(label=name(trial), x=steps, y=loss, outcome=trial.state))
    return lines


def paths(studied: Studied) -> list[Line]:
    """Return each trial's x at each step."""
    several = len({(trial.params or {})["schedule"] for trial in studied.trials}) > 1
    lines = []
    for trial, curve in zip(studied.trials, studied.curves, strict=True):
        more = f", {(trial.params or {})['schedule']}" if several else ""
        label = by_rate(trial) + more
        lines.append(Line(label=label, x=curve.eval_steps, y=curve.metrics["x"]))
    return lines


def by_choice(studied: Studied, key: str, prefix: str) -> list[Points]:
    """Return values against rates, one series for each value of a parameter."""
    series: dict[str, list[tuple[float, float]]] = {}
    for trial in studied.trials:
        diverged = trial.state == DIVERGED or trial.value is None
        value = np.nan if diverged or trial.value is None else max(trial.value, 1e-16)
        name = f"{prefix}{(trial.params or {})[key]}"
        series.setdefault(name, []).append((rate(trial), value))
    return [
        Points(label=name, rates=np.array(points)[:, 0], values=np.array(points)[:, 1])
        for name, points in series.items()
    ]


def applied() -> list[Line]:
    """Return the rate of each kind of schedule at lr 0.1 over 100 steps."""
    shapes: dict[str, dict[str, float | str]] = {
        "constant": {"schedule": "constant"},
        "step": {"schedule": "step", "step.gamma": 0.3, "step.drops": 3},
        "cosine": {"schedule": "cosine", "cosine.final": 0.0},
        "warm-up, cosine": {"schedule": "cosine", "cosine.final": 0.0, "cosine.warmup": 0.1},
        "one_cycle": {
            "schedule": "one_cycle",
            "one_cycle.pct_start": 0.3,
            "one_cycle.div_factor": 25.0,
            "one_cycle.final_div_factor": 1e4,
        },
    }
    return [
        Line(label=name, x=np.arange(100), y=0.1 * schedules.multipliers(params, 100).numpy())
        for name, params in shapes.items()
    ]


if __name__ == "__main__":
    main()
