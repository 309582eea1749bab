"""PyTorch Lightning: train a trial with a `Trainer`.

    import tuner.integrations.lightning

    trial = tuner.current_trial(lr=1e-3)
    trainer = Trainer(max_epochs=10)
    tuner.integrations.lightning.attach(trial, trainer)
    trainer.fit(Module(lr=trial.lr), loader, validation_loader)

A step of the trial is an update of the parameters, or in manual optimization a batch with updates.
"""

from __future__ import annotations

import logging
import math
import sys
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, ModelSummary
from lightning.pytorch.trainer.states import TrainerFn

from tuner.integrations.ranks import expect_rates_without_feedback, on_first_rank
from tuner.integrations.saving import SavedFiles, SaveTimes
from tuner.training import random_state
from tuner.training.lr_scheduler import TrialSchedule
from tuner.training.random_state import NUMPY, PYTHON
from tuner.training.trial import Trial

FILE = "trial.ckpt"
NEVER = sys.maxsize

log = logging.getLogger(__name__)


def attach(trial: Trial, trainer: Trainer) -> None:
    """Let a trainer's next `fit` train a trial, from its checkpoint if it has one.

    The trial sets the number of steps, when to validate, and the rates: each parameter group's rate
    is multiplied by the study's schedule. A `LearningRateFinder` is removed, since the study chose
    the rate. Do nothing if no worker runs the program. Raise `ValueError` for schedule "plateau" on
    several ranks.
    """
    if trial.alone:
        return
    expect_rates_without_feedback(trial, trainer.world_size)
    callback = TrialCallback(trial)
    if any(isinstance(one, LearningRateFinder) for one in trainer.callbacks):
        log.warning("trial %d: LearningRateFinder is left out", trial.number)
    left_out = (LearningRateFinder, ModelSummary)
    kept = [one for one in trainer.callbacks if not isinstance(one, left_out)]
    trainer.callbacks = [callback, *kept]
    if callback.saved.found:
        trainer.ckpt_path = callback.saved.folder / FILE
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if trainer.progress_bar_callback is not None:
        trainer.progress_bar_callback.disable()


class TrialCallback(Callback):
    """Report losses, gradient norms and validations of a trainer; see `attach`."""

    def __init__(self, trial: Trial) -> None:
        self.saved = SavedFiles(trial)
        self._trial = trial
        self._step = trial.first_step  # the number of updates, as the trial counts them
        self._updates = 0  # as Lightning counts them: one for each optimizer
        self._losses: list[float] = []  # of the batches since the last update
        self._norms: list[float] = []  # of the optimizers since then
        self._schedules: list[TrialSchedule] = []
        self._random: dict[str, Any] | None = None  # states to resume with
        if self.saved.found:
            kinds = {"cpu", str(torch.device(trial.device)), NUMPY, PYTHON}
            self._random = random_state.get_states(dict.fromkeys(kinds))
        self._evaluated = -1  # the last step with metrics
        self._before: set[str] = set()  # names of metrics that no validation logs
        self._names: list[str] = []  # of metrics that validation logs
        self._times = SaveTimes(trial)

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning's checkpoint has of this callback."""
        return {"evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._evaluated = state_dict["evaluated"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the trainer's limits by the trial's."""
        if stage != TrainerFn.FITTING:
            return
        loop = trainer.fit_loop
        loop.min_epochs, loop.max_epochs = 0, -1
        steps = self._trial.steps if pl_module.automatic_optimization else -1
        loop.epoch_loop.min_steps, loop.epoch_loop.max_steps = None, steps
        trainer.check_val_every_n_epoch = None  # so EarlyStopping looks after each validation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the schedules of the optimizers. Raise `ValueError` if they have others."""
        self._updates = trainer.global_step
        given = [config.scheduler for config in trainer.lr_scheduler_configs]
        for one in given:
            if not isinstance(one, TrialSchedule):
                raise ValueError(  # noqa: TRY004 - the value is what configure_optimizers returned
                    "configure_optimizers: expected optimizers without a schedule, since the "
                    f"study's schedule sets the rates, got {type(one).__name__}; return it only "
                    "if trial.alone, or return trial.schedule(optimizer)"
                )
        scheduled = {id(one.optimizer) for one in given}
        self._schedules = given + [
            self._trial.schedule(one) for one in trainer.optimizers if id(one) not in scheduled
        ]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random states, before the loader draws an order."""
        self._restore_random_states()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rates of the step."""
        self._restore_random_states()
        for schedule in self._schedules:
            schedule.move_to(self._step)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure the gradient, before it is clipped."""
        parameters = (one for group in optimizer.param_groups for one in group["params"])
        gradients = [one.grad for one in parameters if one.grad is not None]
        self._norms.append(_norm(gradients))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Report the step if the batch had an update, and validate where the trial wants it."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is None:  # of manual optimization: what it logs
            loss = trainer.callback_metrics.get("train_loss")
        if loss is not None:
            self._losses.append(float(loss) * trainer.accumulate_grad_batches)
        trainer.val_check_batch = NEVER
        if trainer.global_step == self._updates:
            return
        self._updates = trainer.global_step
        step, self._step = self._step, self._step + 1
        losses, self._losses = self._losses, []
        norms, self._norms = self._norms, []
        if losses:
            mean, norm = sum(losses) / len(losses), math.hypot(*norms)
            self._report(trainer, step, train_loss=mean, grad_norm=norm)
        if self._step >= self._trial.steps:
            trainer.should_stop = True
        if self._trial.evaluates(self._step):
            trainer.val_check_batch = 1
        elif not trainer.is_last_batch:
            self._save_if_due(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note which metrics are those of training."""
        if _counts(trainer) and not self._names:
            self._before = set(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what the validation logged."""
        if not _counts(trainer) or self._step == self._evaluated:
            return
        found = trainer.callback_metrics
        self._names = self._names or [name for name in found if name not in self._before]
        self._evaluated = self._step
        self._report(trainer, self._step, **{name: found[name] for name in self._names})
        if not trainer.is_last_batch:
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where an epoch ends: in its middle, Lightning does not know which data is left."""
        self._save_if_due(trainer, epoch_ended=True)

    def _restore_random_states(self) -> None:
        """Restore those of the checkpoint once: until here Lightning has drawn numbers."""
        if self._random is not None:
            random_state.set_states(self._random)
            self._random = None

    def _report(self, trainer: Trainer, step: int, **values: Any) -> None:
        on_first_rank(
            lambda: self._trial.report(step, **values),
            is_first=trainer.is_global_zero,
            broadcast=trainer.strategy.broadcast,
        )

    def _save_if_due(self, trainer: Trainer, *, epoch_ended: bool = False) -> None:
        if not trainer.strategy.broadcast(self._times.due(epoch_ended=epoch_ended)):
            return
        self.saved.save(
            lambda folder: trainer.save_checkpoint(folder / FILE), is_first=trainer.is_global_zero
        )


def _norm(gradients: list[torch.Tensor]) -> float:
    """Return the norm of all gradients together."""
    if all(type(one) is torch.Tensor and one.device.type == "cpu" for one in gradients):
        # `get_total_norm` groups them by device, which takes longer than the norms of small ones
        return math.hypot(*(float(torch.linalg.vector_norm(one)) for one in gradients))
    return float(torch.nn.utils.get_total_norm(gradients))


def _counts(trainer: Trainer) -> bool:
    """Return whether a validation is one of training."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
