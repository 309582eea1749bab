# ruff: noqa: PLC0415 - each program imports its own library
"""The programs that `programs.py` times: a loop for each way into tuner, each also without tuner.

    python doors.py NAME FOLDER STEPS [alone]

A step computes matrix products, as many as the file `products` in FOLDER says. The program waits
for its turns at the socket in FOLDER.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from tuner.training.workloads import Workload

SIDE = 256
ROWS, BATCH = 512, 8

MATRIX = torch.ones(SIDE, SIDE)
PRODUCT = torch.empty(SIDE, SIDE)


def compute(products: int) -> None:
    for _ in range(products):
        torch.mm(MATRIX, MATRIX, out=PRODUCT)


class Turns:
    """The steps of a program, some in each turn; ranks other than the first follow it."""

    def __init__(self, folder: str, steps: int) -> None:
        self._products = int((Path(folder) / "products").read_text())
        self._steps, self._left, self._done = steps, 0, 0
        self._socket: socket.socket | None = None
        if os.environ.get("RANK", "0") == "0":
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(str(Path(folder) / "socket"))
            self._lines = self._socket.makefile("r")

    def step(self) -> float:
        """Compute, and return a loss. The turn begins and ends with a message at such a call."""
        if self._left == 0 and self._socket is not None:
            self._send()
            self._left = int(self._lines.readline() or "1000000000")
            self._began = time.monotonic()
        self._left -= 1
        compute(self._products)
        self._done += 1
        if self._done == self._steps and self._socket is not None:
            self._send()
        return 1.0 / (1 + self._done)

    def _send(self) -> None:
        assert self._socket is not None
        now = time.monotonic()
        took = now - self._began if self._done else 0.0
        self._socket.sendall(json.dumps({"at": now, "took": took}).encode() + b"\n")


# --- without a library


def alone(turns: Turns, steps: int) -> None:
    for _ in range(steps):
        turns.step()


def reporting(trial: Any, folder: str) -> None:
    """Train function."""
    turns = Turns(folder, trial.steps)
    for step in range(trial.steps):
        trial.report(step, train_loss=turns.step())
    trial.report(trial.steps, val_loss=0.5)


def printing(turns: Turns, steps: int) -> None:
    for step in range(steps):
        print(f"step {step} loss {turns.step():.6f}")
    print("validation 0.5")


def printing_json(turns: Turns, steps: int) -> None:
    for step in range(steps):
        print(json.dumps({"step": step, "train_loss": turns.step()}))
    print(json.dumps({"step": steps, "val_loss": 0.5}))


def on_ranks(turns: Turns, steps: int, trial: Any) -> None:
    """Meet the other rank at each step."""
    torch.distributed.init_process_group("gloo")
    for step in range(steps):
        loss = torch.tensor(turns.step())
        torch.distributed.all_reduce(loss)
        if trial is not None:
            trial.report(step, train_loss=loss)
    if trial is not None:
        trial.report(steps, val_loss=0.5)
    torch.distributed.destroy_process_group()


# --- with loaders and libraries: a small model, whose forward passes in training are the steps


class Network(nn.Module):
    """A line whose forward pass computes a step of the benchmark; in training only."""

    def __init__(self, turns: Callable[[], Turns]) -> None:
        super().__init__()
        self.line = nn.Linear(4, 1)
        self._turns, self._made = turns, [None]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:  # [row, 4] -> [row, 1]
        if torch.is_grad_enabled() and self.training:
            self._made[0] = self._made[0] or self._turns()
            self._made[0].step()
        outputs: torch.Tensor = self.line(inputs)
        return outputs


def data(rows: int = ROWS) -> torch.utils.data.TensorDataset:
    return torch.utils.data.TensorDataset(torch.randn(rows, 4), torch.zeros(rows, 1))


def loaders() -> Iterator[Any]:
    """Yield loaders of training and validation data."""
    for rows in (ROWS, BATCH):
        yield torch.utils.data.DataLoader(data(rows), batch_size=BATCH, shuffle=rows == ROWS)


def batches(loader: Any, steps: int) -> Iterator[Any]:
    step = 0
    while True:
        for batch in loader:
            yield batch
            step += 1
            if step == steps:
                return


def from_loaders(turns: Turns, steps: int) -> None:
    loader, _ = loaders()
    model = Network(lambda: turns)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets in batches(loader, steps):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def workload(folder: str, steps: int) -> Workload:
    """Factory."""
    from tuner.training.workloads import Workload

    train, validation = loaders()
    return Workload(
        model=lambda _seed, _dtype: Network(lambda: Turns(folder, steps)),
        train=train,
        validation=validation,
        loss=nn.functional.mse_loss,
        data_name="zeros",
        data_digest="0",
    )


def in_lightning(turns: Turns, steps: int, trial: Any) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network(lambda: turns)

        def loss(self, batch: Any) -> torch.Tensor:
            return nn.functional.mse_loss(self.network(batch[0]), batch[1])

        def training_step(self, batch: Any, _index: int) -> torch.Tensor:
            return self.loss(batch)

        def validation_step(self, batch: Any, _index: int) -> None:
            self.log("val_loss", self.loss(batch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        max_steps=steps,
        max_epochs=-1,
        check_val_every_n_epoch=10**6,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if trial is not None:
        import tuner.integrations.lightning

        tuner.integrations.lightning.attach(trial, trainer)
    trainer.fit(Module(), *loaders())


def in_transformers(turns: Turns, steps: int, trial: Any) -> None:
    import transformers

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network(lambda: turns)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            outputs = self.network(x)
            return {"loss": nn.functional.mse_loss(outputs, labels), "logits": outputs}

    sets = [[{"x": x, "labels": y} for x, y in data(rows)] for rows in (ROWS, BATCH)]
    arguments = transformers.TrainingArguments(
        "output",
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        label_names=["labels"],
    )
    trainer = transformers.Trainer(Model(), arguments, train_dataset=sets[0], eval_dataset=sets[1])
    found = None
    if trial is not None:
        import tuner.integrations.transformers

        found = tuner.integrations.transformers.attach(trial, trainer)
    trainer.train(resume_from_checkpoint=found)


def in_accelerate(turns: Turns, steps: int, trial: Any) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    made = Network(lambda: turns)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(data(BATCH), batch_size=BATCH)
    model, optimizer, loader = accelerator.prepare(made, optimizer, loader)
    epochs: Any = range(steps)
    if trial is not None:
        import tuner.integrations.accelerate

        epochs = tuner.integrations.accelerate.epochs(trial, accelerator, optimizer)
    for epoch in epochs:
        for inputs, targets in loader:
            loss = nn.functional.mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        if trial is not None:
            trial.report(epoch, train_loss=loss, val_loss=loss)


def in_skorch(turns: Turns, steps: int, trial: Any) -> None:
    from skorch import NeuralNetRegressor

    callbacks: list[Any] = []
    if trial is not None:
        from tuner.integrations.skorch import TrialCallback

        callbacks = [TrialCallback(trial)]
    net = NeuralNetRegressor(
        Network(lambda: turns), max_epochs=steps, lr=0.1, batch_size=-1, verbose=0,
        callbacks=callbacks,
    )  # fmt: skip
    inputs, targets = data(2 * BATCH).tensors
    net.fit(inputs.numpy(), targets.numpy())


def in_ignite(turns: Turns, steps: int, trial: Any) -> None:
    from ignite.engine import create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Loss

    loader, validation = loaders()
    model, loss = Network(lambda: turns), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, loss)
    if trial is not None:
        from tuner.integrations.ignite import attach

        evaluator = create_supervised_evaluator(model, {"val_loss": Loss(loss)})
        attach(trial, trainer, optimizer, evaluator, validation, model=model)
    trainer.run(loader, max_iters=steps)


WITHOUT_TRIAL = {
    "alone": alone,
    "printing": printing,
    "printing_json": printing_json,
    "from_loaders": from_loaders,
}
WITH_TRIAL = {
    "on_ranks": on_ranks,
    "in_lightning": in_lightning,
    "in_transformers": in_transformers,
    "in_accelerate": in_accelerate,
    "in_skorch": in_skorch,
    "in_ignite": in_ignite,
}


def main() -> None:
    name, folder, steps, *more = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    trial = None
    if name not in WITHOUT_TRIAL and not more:
        import tuner

        trial = tuner.current_trial()
    if name == "reporting":
        reporting(trial, folder)
        return
    turns = Turns(folder, int(steps))
    if name in WITHOUT_TRIAL:
        WITHOUT_TRIAL[name](turns, int(steps))
    else:
        WITH_TRIAL[name](turns, int(steps), trial)


if __name__ == "__main__":
    main()
