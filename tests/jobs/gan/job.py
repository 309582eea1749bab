"""Learn to draw points of a ring from noise: two networks, two optimizers, and two rates.

Lines that end with `# tuner` are those that tuning needs; the others are the program as it was.
"""

import torch
from torch import nn

from tuner.integrations.loops import epochs  # tuner


def network(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


def ring(rows):
    angles = torch.rand(rows) * 2 * torch.pi
    return 3.0 * torch.stack([angles.cos(), angles.sin()], dim=1)


def is_real(logits, answer):
    return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, answer))


def train(trial, critic_lr):  # tuner
    generator, critic = network(4, 2), network(2, 1)
    drawing = torch.optim.Adam(generator.parameters(), lr=trial.lr)  # tuner
    judging = torch.optim.SGD(critic.parameters(), lr=critic_lr)
    for step in epochs(trial, generator, critic, drawing, judging):  # tuner
        real, fake = ring(32), generator(torch.randn(32, 4))
        loss = is_real(critic(real), 1.0) + is_real(critic(fake.detach()), 0.0)
        distance = (fake.norm(dim=1) - 3.0).square().mean()
        trial.report(step, train_loss=loss, val_loss=distance)  # tuner
        judging.zero_grad()
        loss.backward()
        judging.step()
        drawing.zero_grad()
        is_real(critic(fake), 1.0).backward()
        drawing.step()
