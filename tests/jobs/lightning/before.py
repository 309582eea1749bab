"""Classify digits with PyTorch Lightning: a body at a low rate, a head at a higher one."""

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--head-lr", type=float, default=0.05)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()


class Digits(lightning.LightningModule):
    def __init__(self, lr: float, head_lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def training_step(self, batch, index):
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self.head(self.body(inputs)), targets)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        inputs, targets = batch
        outputs = self.head(self.body(inputs))
        self.log("val_loss", nn.functional.cross_entropy(outputs, targets))
        self.log("accuracy", (outputs.argmax(dim=1) == targets).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        body = {"params": self.body.parameters(), "lr": self.hparams.lr}
        head = {"params": self.head.parameters(), "lr": self.hparams.head_lr}
        return torch.optim.SGD([body, head], momentum=0.9)


lightning.seed_everything(options.seed)
images, labels = load_digits(return_X_y=True)
digits = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
training, validation = random_split(digits, [1200, 597], torch.Generator().manual_seed(0))
model = Digits(options.lr, options.head_lr)
trainer = lightning.Trainer(max_epochs=options.epochs, gradient_clip_val=10.0)
trainer.fit(
    model,
    DataLoader(training, batch_size=300, shuffle=True),
    DataLoader(validation, batch_size=597),
)
