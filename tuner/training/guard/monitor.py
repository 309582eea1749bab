"""The divergence guard at work on one trial: calm losses in bulk, the others one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tuner.config import ParameterValue, StudySpec
from tuner.training.guard import rules
from tuner.training.guard.momentum import Momentum, momentum_of
from tuner.training.guard.recovery import back_in
from tuner.training.guard.rules import GuardState, Verdict
from tuner.training.pace import Pace


class Watch:
    """Sees every loss of a trial and says when to stop it."""

    def __init__(
        self,
        spec: StudySpec,
        params: Mapping[str, ParameterValue],  # the trial's, flat
        pace: Pace,
        baseline: float | None,
    ) -> None:
        self._evaluations = spec.evaluation_steps()
        # the others divide by what their gradients were, so their steps grow with no distance
        self._momentum = momentum_of(params) if params["optimizer"] == "sgd" else Momentum()
        self._horizon = spec.training.steps
        self._settings = spec.guard
        self._pace = pace
        self._baseline = baseline
        self._state = rules.start(1, spec.guard)
        self._calm = -math.inf  # losses from 0 to here need no judging
        self._unseen: list[float] = []  # [step], calm losses that the guard has not seen

    def began(self, val_loss: float) -> None:
        """Take in the workload's loss of all validation data, finite, before the first step.

        It tells how high a trial began, however lucky its first batch and far its first step.
        """
        self._state = replace(self._state, initial=np.array([val_loss]))

    def see(self, loss: float, grad_norm: float) -> str:
        """Take in a step; give the reason to stop the trial there, or nothing."""
        if 0.0 <= loss <= self._calm and math.isfinite(grad_norm):
            self._unseen.append(loss)
            return ""
        self.catch_up()
        self._state, verdicts = rules.observe(
            self._state,
            np.array([loss]),
            np.array([grad_norm]),
            horizon=self._horizon,
            warmup=self._pace.warmup,
            baseline=self._baseline,
            settings=self._settings,
            rate=self._pace.rate(int(self._state.step[0])),
        )
        self._calm = float(rules.calm_below(self._state, self._settings, self._baseline)[0])
        verdict = int(verdicts[0])
        if verdict == Verdict.GO or self._may_return(verdict):
            return ""
        return rules.sentence(
            verdict,
            self._state,
            loss=loss,
            grad_norm=grad_norm,
            horizon=self._horizon,
            baseline=self._baseline,
            settings=self._settings,
        )

    def _may_return(self, verdict: int) -> bool:
        """Ask the rates that are still to come, and note by when what exploded is to be back."""
        step = int(self._state.step[0]) - 1
        window = range(max(step + 1 - self._settings.window, 0), step + 1)
        steps = back_in(
            verdict,
            self._state,
            np.array([self._pace.rate(seen) for seen in window]),
            np.array(self._pace.ahead(step + 1, self._evaluations)),
            self._momentum,
            baseline=self._baseline,
            settings=self._settings,
        )
        if steps is None:
            return False
        if verdict != Verdict.LOST:
            self._state = replace(self._state, awaited=np.array([step + steps]))
        return True

    def pass_over(self, losses: Sequence[float], grad_norms: Sequence[float]) -> bool:
        """Take in steps if none of them needs judging; tell whether that is so."""
        # a sum is not finite where one of its numbers is not; and no minimum is to be had of nan
        calm = math.isfinite(sum(losses) + sum(grad_norms))
        if not calm or min(losses) < 0.0 or max(losses) > self._calm:
            return False
        self._unseen += losses
        return True

    def catch_up(self) -> None:
        """Let the guard see the calm losses that it has not seen."""
        self._state = rules.absorb(self._state, np.array([self._unseen]))
        self._unseen = []

    def state(self) -> dict[str, Tensor]:
        """Give the guard's state, for a checkpoint."""
        self.catch_up()
        return {key: torch.from_numpy(array) for key, array in self._state.arrays().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._state = GuardState.of({key: tensor.numpy() for key, tensor in state.items()})
        self._calm, self._unseen = -math.inf, []
