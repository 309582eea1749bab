"""Classify digits with skorch."""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

torch.manual_seed(options.seed)
images, labels = load_digits(return_X_y=True)
net = NeuralNetClassifier(
    nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    criterion=nn.CrossEntropyLoss,
    optimizer__momentum=0.9,
    lr=options.lr,
    max_epochs=options.epochs,
    batch_size=300,
    iterator_train__shuffle=True,
)
net.fit((images / 16).astype(np.float32), labels)
print("accuracy", net.history[-1]["valid_acc"])
