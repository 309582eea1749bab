"""Train functions that do what nobody should, or work on several ranks."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn

KEPT = []


def descend(trial, fault="none"):
    """Descend (x - 2)² with noise, and do something wrong on the way."""
    x = 0.0
    if saved := trial.checkpoint.load():
        x = saved["x"]
    for step in range(trial.first_step, trial.steps):
        noise = torch.rand(()).item() + random.random() + np.random.rand()
        trial.report(step, train_loss=(x - 2) ** 2 + 0.01 * noise)
        x -= trial.rate(step) * 2 * (x - 2)
        trial.report(step + 1, val_loss=(x - 2) ** 2)
        if trial.checkpoint.due:
            trial.checkpoint.save({"x": x})
        if step == 3:
            FAULTS[fault]()


def state(trial, fault="none"):
    """Report 0 if this process is as a new one, else 1; then change what is global."""
    changed = (
        torch.get_default_dtype() != torch.float32
        or "FAULTY" in os.environ
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        or bool(KEPT)
        or torch.get_num_threads() != 1
    )
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    os.environ["FAULTY"] = "1"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    KEPT.append(trial.number)
    sys.stdout.write('{"step": 1, "val_loss": 7}\n')
    trial.report(trial.steps, val_loss=float(changed))


def run_on(trial, fault="none"):
    """Report rows as fast as possible; at step 9 the loss jumps, or the process ends."""
    for step in range(trial.steps):
        if step == 9 and fault == "exit":
            os._exit(1)
        trial.report(step, train_loss=1e30 if step == 9 else 1.0)
    trial.report(trial.steps, val_loss=1.0)


def wait(trial):
    """Report twice and wait for ever, with a child in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        while True:
            signal.pause()
    trial.report(0, train_loss=1.0, val_loss=1.0)
    trial.report(1, train_loss=1.0)  # the last row is committed with what follows it
    while True:
        signal.pause()


def greedy(trial):
    """Hold 300 MB of memory and three children in sessions of their own, for ever."""
    held = torch.ones(75 << 20)
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            while True:
                signal.pause()
    trial.report(0, train_loss=held[0])
    while True:
        signal.pause()


def on_ranks(trial):
    """Report the sum over ranks of random numbers, which each rank draws."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    trial.checkpoint.load()
    torch.manual_seed(trial.seed + rank) if trial.first_step == 0 else None
    step = trial.first_step
    try:
        for step in range(trial.first_step, trial.steps):
            drawn = torch.rand(())
            distributed.all_reduce(drawn)
            trial.report(step, train_loss=drawn)
            if rank == 0:  # by rank 0 alone
                trial.report(step + 1, val_loss=drawn)
            trial.checkpoint.save({})
    finally:
        Path(f"rank-{rank}").write_text(str(step))
    distributed.destroy_process_group()


def learning_on_ranks(trial):
    """Train a line on several ranks with the random numbers of each; leave each rank's state."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    Path(f"pid-{rank}").write_text(str(os.getpid()))
    torch.manual_seed(trial.seed)
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * trial.lr, momentum=0.9)
    torch.manual_seed(trial.seed + rank)
    if saved := trial.checkpoint.load():
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    for step in range(trial.first_step, trial.steps):
        loss = (model(torch.rand(4, 3) * random.random() + np.random.rand()) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        trial.report(step, train_loss=loss)
        optimizer.step()
        trial.report(step + 1, val_loss=loss.detach())
        trial.checkpoint.save(
            {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
        )
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    drawn = torch.tensor([torch.rand(()), random.random(), np.random.rand()])
    torch.save([*model.module.state_dict().values(), *momenta, drawn], f"state-{rank}.pt")
    distributed.destroy_process_group()


def dying(trial):
    """End rank 1 by a signal, while the others go on."""
    distributed.init_process_group("gloo")
    Path(f"pid-{distributed.get_rank()}").write_text(str(os.getpid()))
    for step in range(trial.steps):
        if step == 2 and distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.all_reduce(torch.ones(1))
        trial.report(step, train_loss=1.0, val_loss=1.0)


def _leak() -> None:
    KEPT.append(torch.ones(1 << 25))
    threading.Thread(target=threading.Event().wait).start()


def _raise() -> None:
    nn.Linear(2, 2)(torch.ones(3))


def _interrupt() -> None:
    raise KeyboardInterrupt


FAULTS = {
    "none": lambda: None,
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(0),
    "sys.exit": lambda: sys.exit(3),
    "interrupt": _interrupt,
    "raise": _raise,
    "leak": _leak,
}
