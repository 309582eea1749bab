"""Hugging Face transformers: train a trial with a `Trainer`.

    import tuner.integrations.transformers

    trial = tuner.current_trial(lr=5e-5)
    trainer = Trainer(model, arguments, train_dataset=..., eval_dataset=...)
    checkpoint = tuner.integrations.transformers.attach(trial, trainer)
    trainer.train(resume_from_checkpoint=checkpoint)

A step of the trial is an update of the parameters. `eval_loss` is reported as `val_loss`, and other
metrics by their names without `eval_`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.optim import Optimizer
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils.logging import disable_progress_bar

from tuner.integrations.ranks import expect_rates_without_feedback, on_first_rank
from tuner.integrations.saving import SavedFiles
from tuner.training.lr_scheduler import TrialSchedule
from tuner.training.trial import Trial

LOSS, PREFIX = "eval_loss", "eval_"
NOT_METRICS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
NOT_SAVED = "training_args.bin"
"""A pickle that `Trainer.train` does not read."""


def optimizers(trial: Trial, model: nn.Module) -> tuple[Optimizer, TrialSchedule]:
    """Return the study's optimizer and schedule, for `Trainer(optimizers=...)`.

    As by `Trainer`, weight decay does not apply to biases and to the weights of normalization.
    """
    names = set(Trainer.get_decay_parameter_names(None, model))
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    made: Optimizer = trial.optimizer(
        [
            {"params": [one for name, one in trained if name in names]},
            {"params": [one for name, one in trained if name not in names], "weight_decay": 0.0},
        ]
    )
    return made, trial.schedule(made)


def attach(trial: Trial, trainer: Trainer) -> str | None:
    """Let a trainer train a trial; return the checkpoint to resume from, if there is one.

    The trial sets the number of steps, when to evaluate, the rate and the schedule. The optimizer
    is the one that was passed to the trainer, else the one that its arguments name. Do nothing if
    no worker runs the program. Raise `ValueError` if the trainer was passed another schedule, and
    for schedule "plateau" on several ranks.
    """
    if trial.alone:
        return None
    if trainer.lr_scheduler is not None and not isinstance(trainer.lr_scheduler, TrialSchedule):
        raise ValueError(
            "Trainer(optimizers=...): expected no schedule, since the study's sets the rates, got "
            f"{type(trainer.lr_scheduler).__name__}; pass None, or optimizers(trial, model)"
        )
    arguments = trainer.args
    expect_rates_without_feedback(trial, arguments.world_size)
    arguments.max_steps = trial.steps
    arguments.learning_rate = trial.lr
    arguments.logging_nan_inf_filter = False  # the guard must see them
    callback = TrialCallback(trial)
    trainer.add_callback(callback)
    for one in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(one)
    disable_progress_bar()
    if trainer.lr_scheduler is None:
        trainer.lr_scheduler = trial.schedule(trainer.create_optimizer())
    return str(callback.saved.folder) if callback.saved.found else None


class TrialCallback(TrainerCallback):
    """Report what a trainer logs and evaluates; see `attach`."""

    def __init__(self, trial: Trial) -> None:
        self.saved = SavedFiles(trial)
        self._trial = trial
        self._training = False
        self._evaluated = -1  # the last step with metrics
        self._is_ours = False  # the next checkpoint was not asked for by the arguments

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin to report."""
        self._training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Report no later evaluation."""
        self._training = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log each step, and evaluate and save when the trial wants it."""
        control.should_log = True
        control.should_evaluate = self._trial.evaluates(state.global_step)
        self._is_ours = not control.should_save
        due = state.is_world_process_zero and self._trial.checkpoint.due
        control.should_save = control.should_save or _broadcast(due)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Evaluate at the steps that the trial wants only."""
        control.should_evaluate = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Report the loss of a step."""
        if self._training and logs is not None and "loss" in logs:
            norm = logs.get("grad_norm")
            self._report(state, state.global_step - 1, train_loss=logs["loss"], grad_norm=norm)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any],
        **_: Any,
    ) -> None:
        """Report metrics."""
        step = state.global_step
        if not self._training or step == self._evaluated:
            return
        self._evaluated = step
        named = {
            "val_loss" if name == LOSS else name.removeprefix(PREFIX): value
            for name, value in metrics.items()
            if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in NOT_METRICS
        }
        self._report(state, step, **named)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep the checkpoint that was just written."""
        PartialState().wait_for_everyone()  # each rank has written its random states
        if not state.is_world_process_zero:
            return
        assert args.output_dir is not None
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if self._trial.checkpoint.due:
            ignored = shutil.ignore_patterns(NOT_SAVED)
            self.saved.save(
                lambda to: shutil.copytree(folder, to, ignore=ignored, dirs_exist_ok=True)
            )
        if self._is_ours:
            shutil.rmtree(folder, ignore_errors=True)

    def _report(self, state: TrainerState, step: int, **values: Any) -> None:
        on_first_rank(
            lambda: self._trial.report(step, **values),
            is_first=state.is_world_process_zero,
            broadcast=_broadcast,
        )


def _broadcast(value: bool) -> bool:
    """Return the first rank's value."""
    return bool(broadcast_object_list([value])[0])
