"""Classify digits in a loop of Hugging Face's Accelerate."""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import tuner.integrations.accelerate

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

trial = tuner.current_trial(lr=options.lr, steps=options.epochs)
accelerator = Accelerator(cpu=True)
set_seed(options.seed)
images, labels = load_digits(return_X_y=True)
digits = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
training, validation = random_split(digits, [1200, 597], torch.Generator().manual_seed(0))
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=trial.lr, momentum=0.9)
model, optimizer, loader, validation_loader = accelerator.prepare(
    model,
    optimizer,
    DataLoader(training, batch_size=300, shuffle=True),
    DataLoader(validation, batch_size=597),
)

for epoch in tuner.integrations.accelerate.epochs(trial, accelerator, optimizer):
    model.train()
    total = 0.0
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        total += loss.item()
    model.eval()
    with torch.no_grad():
        val_loss = sum(
            nn.functional.cross_entropy(model(inputs), targets).item()
            for inputs, targets in validation_loader
        )
    trial.report(epoch, train_loss=total / len(loader), val_loss=val_loss)
    accelerator.print(f"epoch {epoch}: loss {total / len(loader):.4f}, validation {val_loss:.4f}")
