"""Fit a line on several ranks by DistributedDataParallel, with checkpoints of its own."""

import argparse
import time
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import tuner

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--folder", type=Path, default=Path())
parser.add_argument("--slow", type=Path, help="a folder: be slow while it has a file `slow`")
options = parser.parse_args()

distributed.init_process_group("gloo")
rank, ranks = distributed.get_rank(), distributed.get_world_size()
x = torch.linspace(-1.0, 1.0, 20)[rank::ranks, None]
y = 3.0 * x - 1.0
torch.manual_seed(0)
model = DistributedDataParallel(nn.Linear(1, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)
saved, first = options.folder / "model.pt", 0
if saved.exists():
    first, state = torch.load(saved)
    model.load_state_dict(state)

trial = tuner.current_trial()
epoch = first
try:
    for epoch in range(first, options.epochs):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        trial.report(epoch, train_loss=loss)
        optimizer.step()
        with torch.no_grad():
            mean = nn.functional.mse_loss(model(x), y)
        distributed.all_reduce(mean)
        trial.report(epoch + 1, val_loss=mean / ranks)
        if rank == 0:
            torch.save((epoch + 1, model.state_dict()), saved)
        trial.checkpoint.save({})
        time.sleep(0.2 if (options.slow / "slow").exists() else 0.0)
finally:
    print(f"rank {rank} leaves at epoch {epoch}")
distributed.destroy_process_group()
