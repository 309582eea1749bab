"""Classify digits with loaders: persistent workers, augmentation, a ragged last batch."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

import tuner.integrations.loops

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()


class Digits(Dataset):
    """Images of digits, shifted at random by up to a pixel if they are augmented."""

    def __init__(self, rows: slice, augmented: bool) -> None:
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images[rows], dtype=torch.float32).view(-1, 1, 8, 8) / 16
        self.labels = torch.tensor(labels[rows])
        self.augmented = augmented

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = self.images[index]
        if self.augmented:
            right, down = torch.randint(-1, 2, (2,)).tolist()
            image = image.roll((right, down), dims=(-1, -2))
        return {"image": image, "label": self.labels[index]}


trial = tuner.current_trial(lr=options.lr, steps=options.epochs)
torch.manual_seed(options.seed)
loader = DataLoader(
    Digits(slice(0, 1000), augmented=True),
    batch_size=300,
    shuffle=True,
    num_workers=1,
    persistent_workers=True,
)
validation_loader = DataLoader(Digits(slice(1000, None), augmented=False), batch_size=300)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=trial.lr, momentum=0.9)


def total_loss(batches, update: bool) -> float:
    total = 0.0
    for batch in batches:
        loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
        if update:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        total += loss.item() * len(batch["label"])
    return total / len(batches.dataset)


for epoch in tuner.integrations.loops.epochs(trial, model, optimizer):
    train_loss = total_loss(loader, update=True)
    with torch.no_grad():
        val_loss = total_loss(validation_loader, update=False)
    trial.report(epoch, train_loss=train_loss, val_loss=val_loss)
    print(f"epoch {epoch}: loss {train_loss:.4f}, validation {val_loss:.4f}")
