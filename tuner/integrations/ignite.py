"""PyTorch-Ignite: train a trial with an engine.

    import tuner.integrations.ignite

    trial = tuner.current_trial(lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, loss)
    evaluator = create_supervised_evaluator(model, metrics={"val_loss": Loss(loss)})
    tuner.integrations.ignite.attach(
        trial, trainer, optimizer, evaluator, validation_loader, model=model
    )
    trainer.run(loader, max_epochs=10)

A step of the trial is an iteration. Metrics are reported by their names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events
from torch.optim import Optimizer

from tuner.integrations.saving import SaveTimes
from tuner.training.trial import Trial


def attach(
    trial: Trial,
    trainer: Engine,
    optimizer: Optimizer,
    evaluator: Engine,
    validation: Any,
    *,
    loss: Callable[[Any], Any] = lambda output: output,
    **states: Any,
) -> None:
    """Let an engine train a trial, and evaluate it with the data `validation`.

    The trial sets the number of iterations, when to evaluate, and the rates. `loss` returns the
    training loss in the engine's output. `states` are the model, and whatever else has a
    `state_dict` that an interrupted trial needs. Call it after adding other handlers. Do nothing if
    no worker runs the program.
    """
    if trial.alone:
        return
    states["optimizer"] = optimizer
    if saved := trial.checkpoint.load():
        for name, one in states.items():
            one.load_state_dict(saved[name])
    schedule, times = trial.schedule(optimizer), SaveTimes(trial)

    def start(engine: Engine) -> None:
        state, length = engine.state, engine.state.epoch_length
        state.max_epochs, state.max_iters = None, trial.steps
        state.iteration = trial.first_step
        state.epoch = 0 if length is None else trial.first_step // length

    def set_rates(engine: Engine) -> None:
        schedule.move_to(engine.state.iteration - 1)

    def report(engine: Engine) -> None:
        step = engine.state.iteration
        trial.report(step - 1, train_loss=loss(engine.state.output))
        if trial.evaluates(step):
            trial.report(step, **evaluator.run(validation).metrics)
        length = engine.state.epoch_length
        if length is None or step % length:
            save(engine)

    def save(_: Engine, *, epoch_ended: bool = False) -> None:
        if times.due(epoch_ended=epoch_ended):
            trial.checkpoint.save({name: one.state_dict() for name, one in states.items()})

    trainer.add_event_handler(Events.STARTED, start)
    trainer.add_event_handler(Events.ITERATION_STARTED, set_rates)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, report)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, save, epoch_ended=True)
