"""What only a GPU can show: `make gpu`, on a machine that has one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from processes import STUDY, end, prepare, rows, start, tuner

from tuner.training import gpus

pytestmark = pytest.mark.gpu


def test_the_driver_names_the_gpus_that_pytorch_sees() -> None:
    assert torch.cuda.is_available(), "these tests need a GPU"
    assert len(gpus.visible(os.environ)) == torch.cuda.device_count()
    assert all(one.startswith("GPU-") for one in gpus.visible(os.environ))


def test_workers_share_a_gpu_and_train_on_it(tmp_path: Path) -> None:
    study = STUDY.replace("steps = 40", 'steps = 40\ndevice = "cuda"')
    folder = prepare(tmp_path, study, trials="6")
    assert tuner(folder, "submit", "study.toml").code == 0
    arguments = ("worker", "--until-idle", "--device", "auto", "--workers-per-gpu", "2")
    workers = [start(folder, *arguments, cold=True) for _ in range(2)]
    for worker in workers:
        done = end(worker)
        assert done.code == 0, done.err
    found = [json.loads(one) for (one,) in rows(folder, "SELECT environment FROM tuner_attempts")]
    assert {one["device"] for one in found} == {"cuda"}
    assert {one["gpu"] for one in found} <= set(gpus.visible(os.environ))
    assert tuner(folder, "doctor").code == 0


def test_a_trial_on_a_gpu_is_repeated(tmp_path: Path) -> None:
    folder = prepare(
        tmp_path, STUDY.replace("steps = 40", 'steps = 40\ndevice = "cuda"'), trials="2"
    )
    assert tuner(folder, "run", "study.toml", "--no-report").code == 0
    assert tuner(folder, "rerun", "small", "0").code == 0
