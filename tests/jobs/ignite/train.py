"""Classify digits with PyTorch-Ignite."""

import argparse

import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Accuracy, Loss
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import tuner
from tuner.integrations.ignite import attach

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

trial = tuner.current_trial(lr=options.lr)
torch.manual_seed(options.seed)
images, labels = load_digits(return_X_y=True)
digits = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
training, validation = random_split(digits, [1200, 597], torch.Generator().manual_seed(0))
loader = DataLoader(training, batch_size=300, shuffle=True)
validation_loader = DataLoader(validation, batch_size=597)

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=trial.lr, momentum=0.9)
trainer = create_supervised_trainer(model, optimizer, criterion)
metrics = {"val_loss": Loss(criterion), "accuracy": Accuracy()}
evaluator = create_supervised_evaluator(model, metrics)


@trainer.on(Events.EPOCH_COMPLETED)
def validate(engine):
    found = evaluator.run(validation_loader).metrics
    print(f"epoch {engine.state.epoch}: {found}")


attach(trial, trainer, optimizer, evaluator, validation_loader, model=model)
trainer.run(loader, max_epochs=options.epochs)
