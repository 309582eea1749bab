"""Loops over epochs, with data loaders or anything else.

    import tuner.integrations.loops

    trial = tuner.current_trial(lr=0.1, steps=10)
    for epoch in tuner.integrations.loops.epochs(trial, model, optimizer):
        ...
        trial.report(epoch, train_loss=loss, val_loss=validation_loss)

It needs no other library. A step of the trial is an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer

from tuner.training.trial import Trial


def epochs(trial: Trial, *states: Any) -> Iterator[int]:
    """Yield the epochs of a trial, from its checkpoint on if it has one.

    `states` are the model, the optimizers, and whatever else has a `state_dict` that an interrupted
    trial needs. The rates of each optimizer are those of the study's schedule, or the
    program's own if no worker runs it.
    """
    if saved := trial.checkpoint.load():
        for number, one in enumerate(states):
            one.load_state_dict(saved[str(number)])
    optimizers = [one for one in states if isinstance(one, Optimizer)]
    schedules = [] if trial.alone else [trial.schedule(one) for one in optimizers]
    for epoch in range(trial.first_step, trial.steps):
        yield epoch
        for schedule in schedules:
            schedule.step()
        if trial.checkpoint.due:
            trial.checkpoint.save(
                {str(number): one.state_dict() for number, one in enumerate(states)}
            )
