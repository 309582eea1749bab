"""Fit a line by gradient descent: a script that knows nothing of tuner, as many people have one."""

import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

POINTS = [(x / 10, 3.0 * x / 10 - 1.0) for x in range(-10, 11)]

weight, bias = 0.1 * options.seed % 1.0, 0.0
for epoch in range(1, options.epochs + 1):
    errors = [weight * x + bias - y for x, y in POINTS]
    loss = sum(error**2 for error in errors) / len(POINTS)
    weight -= options.lr * 2 * sum(e * x for e, (x, _) in zip(errors, POINTS, strict=True)) / 21
    bias -= options.lr * 2 * sum(errors) / len(POINTS)
    val_loss = sum((weight * x + bias - y) ** 2 for x, y in POINTS) / len(POINTS)
    print(f"Epoch {epoch}/{options.epochs}")
    print(f"  train loss: {loss:.6g}, val loss: {val_loss:.6g}")
