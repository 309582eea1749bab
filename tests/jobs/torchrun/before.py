"""Fit a line by DistributedDataParallel: torchrun --nproc-per-node=2 train.py."""

import argparse

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=10)
options = parser.parse_args()

distributed.init_process_group("gloo")
rank, ranks = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(0)
x = torch.linspace(-1.0, 1.0, 20)[rank::ranks, None]
y = 3.0 * x - 1.0
model = DistributedDataParallel(nn.Linear(1, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)

for epoch in range(options.epochs):
    loss = nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        losses = torch.stack([loss, nn.functional.mse_loss(model(x), y)])
    distributed.all_reduce(losses)
    train_loss, val_loss = (losses / ranks).tolist()
    if rank == 0:
        print(f"epoch {epoch}: loss {train_loss:.4f}, validation {val_loss:.4f}")

distributed.destroy_process_group()
