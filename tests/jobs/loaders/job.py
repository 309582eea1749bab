"""Classify images of bars: loaders with workers that persist, augmentation, and a ragged rest.

Lines that end with `# tuner` are those that tuning needs; the others are the program as it was.
"""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tuner.training.workloads import Workload, digest_of  # tuner


class Bars(Dataset):
    """Images of a bar that stands or lies, in noise, moved and flipped anew each time."""

    def __init__(self, rows, seed, augment):
        numbers = np.random.default_rng(seed)
        self.augment = augment
        self.kinds = numbers.integers(2, size=rows)
        self.images = numbers.normal(scale=0.3, size=(rows, 8, 8)).astype(np.float32)
        for image, kind, place in zip(
            self.images, self.kinds, numbers.integers(8, size=rows), strict=True
        ):
            image.T[place] += 1.0 - kind
            image[place] += kind

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        image = self.images[row]
        if self.augment:
            image = np.roll(image, random.randrange(8), axis=random.randrange(2))
            image = image + np.random.normal(scale=0.1, size=image.shape).astype(np.float32)
            if torch.rand(()) < 0.5:
                image = image[::-1].copy()
        return {"image": image, "kind": self.kinds[row]}


seen, unseen = Bars(75, 0, augment=True), Bars(40, 1, augment=False)
batches = DataLoader(seen, batch_size=16, shuffle=True, num_workers=2, persistent_workers=True)
others = DataLoader(unseen, batch_size=25)


def network(*_):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2)
    )


def step(model, batch):
    outputs = model(batch["image"])
    accuracy = (outputs.argmax(dim=1) == batch["kind"]).double().mean()
    return nn.functional.cross_entropy(outputs, batch["kind"]), {"accuracy": accuracy}


def job() -> Workload:  # tuner
    own = {"data_name": "bars", "data_digest": digest_of(torch.from_numpy(seen.images))}  # tuner
    return Workload(model=network, train=batches, validation=others, forward=step, **own)  # tuner


if __name__ == "__main__":
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(8):
        for batch in batches:
            loss, _ = step(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print([step(model.eval(), batch)[1]["accuracy"].item() for batch in others])
