"""Hugging Face Accelerate: a loop over epochs whose objects an `Accelerator` has prepared.

    import tuner.integrations.accelerate

    trial = tuner.current_trial(lr=0.1, steps=10)
    for epoch in tuner.integrations.accelerate.epochs(trial, accelerator, optimizer):
        ...
        trial.report(epoch, train_loss=loss, val_loss=validation_loss)

A step of the trial is an epoch. On several ranks all of them report, and the values are those
of the first one.
"""

from __future__ import annotations

from collections.abc import Iterator

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from tuner.integrations.saving import SavedFiles
from tuner.training.trial import Trial


def epochs(
    trial: Trial, accelerator: Accelerator, *optimizers: AcceleratedOptimizer
) -> Iterator[int]:
    """Yield the epochs of a trial, from its checkpoint on if it has one.

    The rates of the prepared optimizers are those of the study's schedule, or
    the program's own if no worker runs it. All that the accelerator
    has prepared or registered is saved, by `Accelerator.save_state`.
    """
    saved = SavedFiles(trial)
    if saved.found:
        accelerator.load_state(str(saved.folder))
    schedules = [] if trial.alone else [trial.schedule(one.optimizer) for one in optimizers]
    for epoch in range(trial.first_step, trial.steps):
        yield epoch
        for schedule in schedules:
            schedule.step()
        if trial.checkpoint.due:
            saved.save(lambda folder: accelerator.save_state(str(folder)))
