"""skorch: train a trial with a net.

    from tuner.integrations.skorch import TrialCallback

    trial = tuner.current_trial(lr=0.1)
    net = NeuralNetClassifier(Module, lr=trial.lr, callbacks=[TrialCallback(trial)])
    net.fit(inputs, targets)

A step of the trial is an epoch. `valid_loss` is reported as `val_loss`, and other values of the
history that begin with `valid_` by their names.
"""

from __future__ import annotations

from typing import Any

from skorch import NeuralNet
from skorch.callbacks import Callback

from tuner.training.lr_scheduler import TrialSchedule
from tuner.training.trial import Trial

LOSS, PREFIX, BEST = "valid_loss", "valid_", "_best"
STATES = ("module_", "optimizer_")


class TrialCallback(Callback):
    """Report a net's epochs to a trial, which sets their number and their rates.

    It does nothing if no worker runs the program.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial = trial  # named as the argument, for sklearn's `get_params`
        self._schedule: TrialSchedule | None = None
        self._epoch = 0

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **_: Any) -> None:  # noqa: N803
        """Continue from the trial's checkpoint, if it has one."""
        if self.trial.alone:
            return
        if saved := self.trial.checkpoint.load():
            for name in STATES:
                getattr(net, name).load_state_dict(saved[name])
        self._epoch = self.trial.first_step
        self._schedule = self.trial.schedule(net.optimizer_)
        net.max_epochs, net.verbose = self.trial.steps - self._epoch, 0

    def on_epoch_begin(self, net: NeuralNet, **_: Any) -> None:
        """Set the rates of an epoch."""
        if self._schedule is not None:
            self._schedule.move_to(self._epoch)

    def on_epoch_end(self, net: NeuralNet, **_: Any) -> None:
        """Report an epoch."""
        if self.trial.alone:
            return
        row = net.history[-1]
        self.trial.report(self._epoch, train_loss=row["train_loss"])
        self._epoch += 1
        metrics = {
            "val_loss" if name == LOSS else name: value
            for name, value in row.items()
            if name.startswith(PREFIX) and not name.endswith(BEST)
        }
        if metrics:
            self.trial.report(self._epoch, **metrics)
        if self.trial.checkpoint.due:
            self.trial.checkpoint.save({name: getattr(net, name).state_dict() for name in STATES})
