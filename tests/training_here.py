"""Studies that tests train in their own process, and training them there."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tuner.config import StudySpec
from tuner.ledger import Ledger, StudyRecord
from tuner.ledger.database import Addresses
from tuner.operations import confirm, submit
from tuner.operations.confirm import Confirmation
from tuner.tracking.recorder import record
from tuner.training.workloads import Workload, digest_of
from tuner.worker import work

PREFIXES = ("tests.", "studies.")
INPUTS = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(12, 1)


def fitting(failing: bool = False) -> Workload:
    """Fit a line by batches; `failing` raises once there are more rows than when it is checked."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if failing and len(outputs) > 2:
            raise RuntimeError(f"no such thing as {outputs.mean().item()}")
        return nn.functional.mse_loss(outputs, targets)

    targets = 3.0 * INPUTS
    return Workload(
        model=_line,
        train_inputs=INPUTS,
        train_targets=targets,
        validation_inputs=INPUTS,
        validation_targets=targets,
        loss=loss,
        metrics={},
        baseline_loss=None,
        data_name="a line",
        data_digest=digest_of(INPUTS, targets),
    )


def counted(log: str) -> Workload:
    """Fit that line, and add a line to a file for each call."""
    with Path(log).open("a") as file:
        file.write("called\n")
    return fitting()


def picky() -> Workload:
    """Fit that line, with a metric that raises at large outputs."""

    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.abs().max() > 10:
            raise RuntimeError("such outputs cannot be scored")
        return (outputs - targets).abs().mean()

    return replace(fitting(), metrics={"score": score})


def _line(seed: int, dtype: torch.dtype) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    line = nn.Linear(1, 1, dtype=dtype)
    with torch.no_grad():
        for parameter in line.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return line


def line_spec(**tables: dict[str, Any]) -> StudySpec:
    """Make a study of that line: a grid of rates, of which 0.3 is the best and 100 diverges."""
    content: dict[str, dict[str, Any]] = {
        "study": {"name": "line"},
        "workload": {"factory": "tests.training_here:fitting"},
        "training": {"steps": 12, "batch_size": 4, "evaluate_every": 4, "dtype": "float64"},
        "space": {"lr": [0.01, 0.1, 0.3, 100.0], "schedule": "constant", "optimizer": "sgd"},
        "search": {"sampler": "grid", "pruner": "none"},
        "budget": {"trials": 4},
    }
    for name, table in tables.items():
        merged = {**content.get(name, {}), **table}
        content[name] = {key: value for key, value in merged.items() if value is not None}
    return StudySpec.model_validate(content)


def submitted(ledger: Ledger, **tables: dict[str, Any]) -> StudyRecord:
    """Put such a study into the ledger."""
    spec = line_spec(**tables)
    study, _ = submit.submit(ledger, spec, submit.prepare(spec, PREFIXES).description)
    return study


def train(ledger: Ledger, places: Addresses, study: StudyRecord) -> StudyRecord:
    """Train what is left of a study, with no recorder."""
    train_all(ledger, places, [study.name])
    return ledger.study(study.name)


def train_all(ledger: Ledger, places: Addresses, names: Sequence[str] = ()) -> None:
    """Train what is left of the studies with these names, or of all, with no recorder."""
    work(
        ledger,
        places,
        names=names,
        prefixes=PREFIXES,
        stop=threading.Event(),
        until_idle=True,
    )


def confirmed(
    ledger: Ledger, places: Addresses, study: StudyRecord, *, top: int, seeds: int
) -> Confirmation:
    """Train the best trials of a study again, with no recorder."""
    asked = confirm.question(ledger, study, top=top)
    while confirm.advance(ledger, study, asked, seeds) is not None:
        train(ledger, places, confirm.submit(ledger, study))
    return confirm.compare(ledger, study, asked, seeds)


def publish(ledger: Ledger, places: Addresses) -> None:
    """Publish what there is, as a recorder that is told to close."""
    closing_now = threading.Event()
    closing_now.set()
    record(ledger.engine, places, names=[], closing=closing_now)
