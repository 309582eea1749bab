"""The same line in PyTorch; a trial of tuner is used if there is one."""

import argparse

import torch
from torch import nn

import tuner

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=10)
options = parser.parse_args()

trial = tuner.current_trial(lr=options.lr, steps=options.epochs)
x = torch.linspace(-1.0, 1.0, 21)[:, None]
y = 3.0 * x - 1.0
model = nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=trial.lr)
schedule = trial.schedule(optimizer)
if saved := trial.checkpoint.load():
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])

for epoch in range(trial.first_step, trial.steps):
    loss = nn.functional.mse_loss(model(x) + 0.01 * torch.randn(21, 1), y)
    optimizer.zero_grad()
    loss.backward()
    trial.report(epoch, train_loss=loss)
    optimizer.step()
    schedule.step()
    trial.report(epoch + 1, val_loss=nn.functional.mse_loss(model(x), y).detach())
    if trial.checkpoint.due:
        trial.checkpoint.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
print("done at rate", schedule.rate)
