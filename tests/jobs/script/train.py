"""Fit a line with noise by gradient descent."""

import argparse

import torch
from torch import nn

import tuner

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=10)
options = parser.parse_args()

trial = tuner.current_trial(lr=options.lr, steps=options.epochs)
torch.manual_seed(0)
x = torch.linspace(-1.0, 1.0, 21)[:, None]
y = 3.0 * x - 1.0
model = nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=trial.lr)

for epoch in range(options.epochs):
    loss = nn.functional.mse_loss(model(x) + 0.01 * torch.randn(21, 1), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        val_loss = nn.functional.mse_loss(model(x), y)
    trial.report(epoch, train_loss=loss, val_loss=val_loss)
    print(f"epoch {epoch}: loss {loss:.4f}, validation {val_loss:.4f}")
