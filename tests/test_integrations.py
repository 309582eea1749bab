"""Adapters: programs of training libraries are trials, judged, stopped and resumed like others.

Each folder of `tests/jobs` with a `before.py` has such a program, and in `train.py` the same one
with the lines that tuner needs.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import end, prepare, processes_in, reader, rows, start, tuner, until

import tuner as package
from tests.test_own_loops import function
from tests.test_programs import programs, spec_of, task_of
from tests.test_reference import advance, curve_of
from tuner.integrations import loops, ranks
from tuner.training import schedules
from tuner.training.function_trainer import FunctionTrainer
from tuner.training.programs.current import current_trial
from tuner.training.trainer import Status

ROOT = Path(__file__).parents[1]
JOBS = ROOT / "tests" / "jobs"


@dataclass(frozen=True)
class Job:
    """A program of `tests/jobs`, and what is known of it."""

    name: str
    good: float  # a rate
    low: float  # a rate too low to be competitive
    high: float  # a rate that diverges
    steps: int  # so many that it can be interrupted
    repeats: bool = True  # whether a resumed trial measures the same, bit by bit


ALL = [
    Job("lightning", good=0.1, low=1e-4, high=1e30, steps=400),
    Job("transformers", good=1e-3, low=1e-6, high=1e30, steps=100),
    Job("accelerate", good=0.1, low=1e-4, high=1e30, steps=200),
    Job("skorch", good=0.1, low=1e-4, high=1e30, steps=200),
    Job("ignite", good=0.1, low=1e-4, high=1e30, steps=400),
    # persistent workers go on with random numbers of their own, which nobody can save
    Job("loaders", good=0.1, low=1e-4, high=1e30, steps=100, repeats=False),
]
EACH = pytest.mark.parametrize("job", ALL, ids=lambda job: job.name)


def text_of(job: Job, name: str = "train") -> str:
    return (JOBS / job.name / f"{name}.py").read_text()


def added(name: str) -> int:
    """Count the lines that a program needs for tuner: added or changed, not counting empty ones."""
    found = difflib.ndiff(
        *((JOBS / name / f"{file}.py").read_text().splitlines() for file in ("before", "train"))
    )
    return sum(line.startswith("+ ") and bool(line[2:].strip()) for line in found)


# --- without the libraries ------------------------------------------------------------------------


def test_a_program_needs_the_few_lines_that_the_document_counts():
    document = (ROOT / "docs" / "integrations.md").read_text()
    counted = {
        name: int(lines)
        for name, lines in re.findall(r"^\| `(\w+)` .* (\d+) \|$", document, re.MULTILINE)
    }
    assert counted == {job.name: added(job.name) for job in ALL}


MARKED = ("loaders", "gan", "partial_fit")
"""Jobs whose lines for tuner end with `# tuner`."""


def test_the_readme_counts_the_lines_of_each_job():
    readme = (ROOT / "README.md").read_text()
    found = re.findall(r"^\| .* \| (\d+) <!-- (\w+) --> \|$", readme, re.MULTILINE)
    counted = {name: int(lines) for lines, name in found}
    marked = {
        f"{name}_job": (JOBS / name / "job.py").read_text().count("# tuner\n") for name in MARKED
    }
    compared = {name: added(name) for name in ("script", "torchrun", *(job.name for job in ALL))}
    assert counted == {"plain": 0, **marked, **compared}
    assert max(counted.values()) <= 5


def test_the_programs_of_the_document_are_those_that_are_tested():
    document = (ROOT / "docs" / "integrations.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL)
    assert shown == [text_of(job) for job in ALL]


def test_alone_a_program_has_its_own_values_and_rates(monkeypatch):
    monkeypatch.setattr("tuner.training.programs.current._CURRENT", [])
    monkeypatch.delenv("TUNER_TRIAL", raising=False)
    trial = current_trial(lr=0.5, steps=3, head_lr=0.25)
    assert (trial.lr, trial.steps, trial.params["head_lr"], trial.alone) == (0.5, 3, 0.25, True)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=trial.lr)
    halving = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    rates = []
    for epoch in loops.epochs(trial, optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        trial.report(epoch, train_loss=1.0, val_loss=1.0)
        optimizer.step()
        halving.step()
    assert rates == [0.5, 0.25, 0.125]


def test_a_schedule_with_feedback_is_refused_where_the_first_rank_alone_reports(monkeypatch):
    monkeypatch.setattr("tuner.training.programs.current._CURRENT", [])
    monkeypatch.delenv("TUNER_TRIAL", raising=False)
    plateau = {"factor": 0.5, "patience": 1, "threshold": 0.0, "floor": 0.0}
    own = {f"plateau.{name}": value for name, value in plateau.items()}
    trial = current_trial(schedule="plateau", **own)
    ranks.expect_rates_without_feedback(trial, 1)
    with pytest.raises(ValueError, match='several ranks, got "plateau"'):
        ranks.expect_rates_without_feedback(trial, 2)


# --- with the libraries, in this process ----------------------------------------------------------

WITH_LIBRARIES = (
    pytest.mark.slow,
    pytest.mark.integrations,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),  # warnings of libraries are not ours
)


def with_libraries(test):
    for mark in WITH_LIBRARIES:
        test = mark(test)
    return test


def in_process(text: str, monkeypatch):
    """Return a train function that runs a program."""

    def loop(trial):
        monkeypatch.setattr(sys, "argv", ["train.py"])
        monkeypatch.setattr(package, "current_trial", lambda **_: trial)
        exec(compile(text, "train.py", "exec"), {"__name__": "__main__"})

    return function(loop)


def trained(loop, *, until_step=None, snapshot=None, **params):
    """Train to the end and return the curve, or to a step and return the snapshot."""
    spec = spec_of(
        ["train.py"], training={"steps": 12, "evaluate_every": 3, "checkpoint_seconds": 1e-9}
    )
    trainer = FunctionTrainer(loop, spec)
    trainer.admit(replace(task_of(head_lr=0.05, **params), snapshot=snapshot))
    try:
        if until_step is None:
            return curve_of(advance(trainer, []))
        step = 0
        while step < until_step:
            step = trainer.advance(until_step - step)[-1].next_step
        return trainer.snapshot(0)
    finally:
        trainer.evict(0)


@with_libraries
@EACH
def test_an_interrupted_program_measures_what_an_uninterrupted_one_does(
    job: Job, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    loop = in_process(text_of(job), monkeypatch)
    rows, evaluations, ended = trained(loop, lr=job.good)
    assert ended == (Status.FINISHED, "", None)
    assert np.isfinite(rows["train_loss"]).all()
    assert evaluations[-1][0] in (11, 12)
    first = 8  # the end of an epoch of four updates, where an update is a step
    snapshot = trained(loop, lr=job.good, until_step=first)
    again, later, ended = trained(loop, lr=job.good, snapshot=snapshot)
    assert ended == (Status.FINISHED, "", None)
    assert len(again["lr"]) == 12 - first
    np.testing.assert_array_equal(again["lr"], rows["lr"][first:])
    if job.repeats:
        np.testing.assert_array_equal(again["train_loss"], rows["train_loss"][first:])
        assert dict(later).items() <= dict(evaluations).items()


COSINE = {"cosine.warmup": 0.0, "cosine.final": 0.0}


def rates_of_cosine() -> np.ndarray:
    params = {"lr": 0.1, "schedule": "cosine", **COSINE}
    return 0.1 * schedules.multipliers(params, 12).numpy()


def lightning_trial(monkeypatch, tmp_path, module: str, *callbacks: str):
    """Train a Lightning module, with four batches an epoch; `module` is the rest of its class."""
    monkeypatch.chdir(tmp_path)
    text = f"""
import lightning, torch, tuner, tuner.integrations.lightning
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder

class Line(lightning.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr, self.line, self.other = lr, torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)

    def loss(self, batch):
        return (self.line(batch) ** 2).mean() + (self.other(batch) ** 2).mean()

    def training_step(self, batch, index):
        return self.loss(batch)

    def validation_step(self, batch, index):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    {module}

trial = tuner.current_trial()
trainer = lightning.Trainer(max_epochs=1, logger=False, enable_checkpointing=False,
                            callbacks=[{", ".join(callbacks)}])
tuner.integrations.lightning.attach(trial, trainer)
loader = torch.utils.data.DataLoader(torch.randn(8, 2), batch_size=2)
trainer.fit(Line(trial.lr), loader, loader)
"""
    return trained(in_process(text, monkeypatch), schedule="cosine", **COSINE)


@with_libraries
def test_lightning_stops_early_and_has_no_rate_but_the_studys(monkeypatch, tmp_path):
    stopping = "EarlyStopping('val_loss', patience=1, min_delta=1e6)"
    rows, evaluations, ended = lightning_trial(
        monkeypatch, tmp_path, "", "LearningRateFinder()", stopping
    )
    assert ended == (Status.FINISHED, "its function returned after 6 of 12 steps", None)
    assert [step for step, _ in evaluations] == [3, 6]
    np.testing.assert_array_equal(rows["lr"], rates_of_cosine()[:6])


@with_libraries
def test_lightning_refuses_another_schedule(monkeypatch, tmp_path):
    other = """def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)]
"""
    with pytest.raises(ValueError, match="study's schedule sets the rates, got OneCycleLR"):
        lightning_trial(monkeypatch, tmp_path, other)


@with_libraries
def test_lightning_counts_a_batch_with_two_optimizers_once(monkeypatch, tmp_path):
    manual = """automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(self.line.parameters(), lr=self.lr),
                torch.optim.SGD(self.other.parameters(), lr=0.1 * self.lr)]

    def training_step(self, batch, index):
        rates = [one.param_groups[0]["lr"] for one in self.optimizers()]
        assert abs(rates[1] - 0.1 * rates[0]) < 1e-12, rates
        loss = self.loss(batch)
        for one in self.optimizers():
            one.zero_grad()
        self.manual_backward(loss)
        for one in self.optimizers():
            one.step()
        self.log("train_loss", loss)
"""
    rows, evaluations, ended = lightning_trial(monkeypatch, tmp_path, manual)
    assert ended == (Status.FINISHED, "", None)
    assert np.isfinite(rows["train_loss"]).all()
    assert [step for step, _ in evaluations] == [3, 6, 9, 12]
    np.testing.assert_array_equal(rows["lr"], rates_of_cosine())


# --- as programs of a worker ----------------------------------------------------------------------

STUDY = """
[study]
name = "job"

[workload]
command = ["python", "train.py"]

[training]
steps = {steps}
evaluate_every = {every}
checkpoint_seconds = {seconds}

[space]
lr = {lr}
schedule = "cosine"
optimizer = "sgd"
{more}

[search]
sampler = "grid"
pruner = {{ name = "median", startup_trials = 1 }}

[budget]
trials = {trials}
"""


def study(folder: Path, job: Job, lr: list[float], *, steps: int, seconds: float) -> Path:
    more = "rates = { head_lr = 0.05 }" if job.name == "lightning" else ""
    text = STUDY.format(
        steps=steps, every=steps // 4, seconds=seconds, lr=lr, more=more, trials=len(lr)
    )
    prepare(folder, text)
    (folder / "train.py").write_text(text_of(job))
    return folder


@with_libraries
@EACH
def test_a_program_is_tuned(tmp_path, job: Job):
    folder = study(tmp_path, job, [job.good, job.low, job.high], steps=24, seconds=60)
    done = tuner(folder, "run", "study.toml", "--json")
    assert done.code == 0, done.err
    found = {name: done.json["trials"][name] for name in ("completed", "pruned", "diverged")}
    assert found == {"completed": 1, "pruned": 1, "diverged": 1}, done.json
    assert done.json["best"]["params"]["lr"] == job.good
    assert tuner(folder, "doctor", "--json").json["problems"] == []


LEAVES = "atexit.register(lambda: print(f'rank {trainer.%s} leaves at {trainer.%s}'))"
ON_TWO_RANKS = {  # what is replaced in the program
    "lightning": {
        "trainer = lightning.Trainer(": 'two = {"accelerator": "cpu", "devices": 2}\n'
        'trainer = lightning.Trainer(**two, strategy="ddp", ',
        "trainer.fit(": LEAVES % ("global_rank", "global_step") + "\ntrainer.fit(",
    },
    "accelerate": {
        "    trial.report(": "    print(f'rank {accelerator.process_index} leaves at {epoch}')\n"
        "    trial.report("
    },
    "transformers": {
        "trainer.train(": LEAVES % ("args.process_index", "state.global_step") + "\ntrainer.train("
    },
}


@with_libraries
@pytest.mark.parametrize(
    ("name", "processes"),
    [("lightning", 1), ("lightning", 2), ("accelerate", 2), ("transformers", 2)],
    ids=["ranks that lightning starts", "lightning", "accelerate", "transformers"],
)
def test_a_program_on_two_ranks_is_stopped_on_both_at_the_same_step(tmp_path, name, processes):
    (job,) = [one for one in ALL if one.name == name]
    folder = study(tmp_path, job, [job.good, job.low], steps=24, seconds=0.1)
    text = (folder / "study.toml").read_text()
    text = text.replace("[training]", f"processes = {processes}\n\n[training]")
    (folder / "study.toml").write_text(text)
    program = text_of(job).replace("import argparse", "import argparse\nimport atexit")
    for old, new in ON_TWO_RANKS[name].items():
        assert program.count(old) == 1
        program = program.replace(old, new)
    (folder / "train.py").write_text(program)
    done = tuner(folder, "run", "study.toml", "--json")
    assert done.code == 0, done.err
    assert (done.json["trials"]["completed"], done.json["trials"]["pruned"]) == (1, 1), done.json
    found = reader(folder)
    for trial in found.trials(1):
        (output,) = (folder / ".tuner" / "programs").glob(f"*/trial-{trial.number}-*/output.log")
        left = dict(re.findall(r"rank (\d) leaves at (\d+)", output.read_text()))
        assert left.keys() == {"0", "1"}, output.read_text()
        assert left["0"] == left["1"]
        assert "Traceback" not in output.read_text()
        if name == "lightning":  # no sanity check is among them
            evaluated = found.curve(trial.id).eval_steps.tolist()
            assert evaluated == list(range(6, trial.steps + 1, 6))
    found.engine.dispose()


@with_libraries
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
@EACH
def test_an_interrupted_program_goes_on_at_its_checkpoint(tmp_path, job: Job, number):
    folder = study(tmp_path, job, [job.good], steps=job.steps, seconds=0.1)
    process = start(folder, "run", "study.toml", cold=number == signal.SIGKILL)
    saved = "SELECT step FROM tuner_checkpoints WHERE step > 3"
    until(lambda: rows(folder, saved), "a checkpoint", seconds=200)
    os.kill(process.pid, number)
    end(process)
    until(lambda: not processes_in(folder) and not programs(folder), "the end of the program")
    done = tuner(folder, "run", "study.toml", "--json")
    assert done.code == 0, done.err
    assert done.json["trials"]["completed"] == 1
    first, second = rows(folder, "SELECT first_step FROM tuner_attempts ORDER BY number")
    assert first == (0,)
    assert second[0] > 3
    assert rows(folder, "SELECT steps FROM tuner_trials") == [(job.steps,)]
    assert tuner(folder, "doctor", "--json").json["problems"] == []
