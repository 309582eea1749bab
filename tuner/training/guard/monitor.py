"""The divergence guard on one trial: calm losses are absorbed in bulk, others judged one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tuner.config import ParameterValue, StudySpec, TrialSettings
from tuner.training.guard import rules
from tuner.training.guard.momentum import Momentum, momentum_of
from tuner.training.guard.recovery import steps_to_recovery
from tuner.training.guard.rules import GuardState, Rule
from tuner.training.rate_source import RateSource


class GuardMonitor:
    """Observe the losses of one trial and decide when to stop it."""

    def __init__(
        self,
        spec: StudySpec,
        settings: TrialSettings,
        params: Mapping[str, ParameterValue],  # of the trial, flat
        rate_source: RateSource,
        baseline: float | None,  # training loss of the best constant predictor
    ) -> None:
        self._evaluations = settings.evaluation_steps
        # other optimizers normalize the gradient, so their steps do not grow with the distance
        self._momentum = momentum_of(params) if params["optimizer"] == "sgd" else Momentum()
        self._horizon = settings.steps
        self._settings = spec.guard
        self._rate_source = rate_source
        self._baseline = baseline
        self._state = rules.start(1, spec.guard)
        self._calm = -math.inf  # losses from 0 up to this cannot stop the trial
        self._pending: list[float] = []  # [step], calm losses not yet in the state

    def set_initial_loss(self, val_loss: float) -> None:
        """Set the validation loss before the first step; it must be finite.

        It shows the level at which the trial began, whatever its first batch and first step.
        """
        self._state = replace(self._state, initial_val_loss=np.array([val_loss]))

    def observe(self, loss: float, grad_norm: float) -> str:
        """Observe a step and return the reason to stop the trial there, or an empty string."""
        if 0.0 <= loss <= self._calm and math.isfinite(grad_norm):
            self._pending.append(loss)
            return ""
        self.absorb_calm()
        self._state, stopped_by = rules.observe(
            self._state,
            np.array([loss]),
            np.array([grad_norm]),
            horizon=self._horizon,
            warmup=self._rate_source.warmup,
            baseline=self._baseline,
            settings=self._settings,
            rate=self._rate_source.rate(int(self._state.step[0])),
        )
        self._calm = float(rules.calm_below(self._state, self._settings, self._baseline)[0])
        rule = int(stopped_by[0])
        if rule == Rule.NONE or self._may_recover(rule):
            return ""
        return rules.explain(
            rule,
            self._state,
            loss=loss,
            grad_norm=grad_norm,
            horizon=self._horizon,
            baseline=self._baseline,
            settings=self._settings,
        )

    def _may_recover(self, rule: int) -> bool:
        """Return whether the rates ahead may bring the trial back; record by which step."""
        step = int(self._state.step[0]) - 1
        window = range(max(step + 1 - self._settings.window, 0), step + 1)
        steps = steps_to_recovery(
            rule,
            self._state,
            np.array([self._rate_source.rate(seen) for seen in window]),
            np.array(self._rate_source.ahead(step + 1, self._evaluations)),
            self._momentum,
            baseline=self._baseline,
            settings=self._settings,
        )
        if steps is None:
            return False
        if rule != Rule.LOST:
            self._state = replace(self._state, recovery_deadline=np.array([step + steps]))
        return True

    def observe_if_calm(self, losses: Sequence[float], grad_norms: Sequence[float]) -> bool:
        """Observe steps if no rule can apply to any; return whether they were observed."""
        # a sum is non-finite if a term is, which also keeps nan away from min()
        calm = math.isfinite(sum(losses) + sum(grad_norms))
        if not calm or min(losses) < 0.0 or max(losses) > self._calm:
            return False
        self._pending += losses
        return True

    def absorb_calm(self) -> None:
        """Absorb the pending calm losses into the state."""
        self._state = rules.absorb(self._state, np.array([self._pending]))
        self._pending = []

    def state(self) -> dict[str, Tensor]:
        """Return the state of the guard, for a checkpoint."""
        self.absorb_calm()
        return {key: torch.from_numpy(array) for key, array in self._state.arrays().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state that `state` returned."""
        self._state = GuardState.of({key: tensor.numpy() for key, tensor in state.items()})
        self._calm, self._pending = -math.inf, []


class SparseMonitor:
    """A guard on a trial that reports the losses of only some of its steps.

    The guard counts steps, so it observes one loss for each. For a step that was not reported it is
    the lower of the losses around it, so that a single high loss stays a single one.
    """

    def __init__(self, monitor: GuardMonitor) -> None:
        self._monitor = monitor
        self.loss = math.nan  # the last one reported; nan: none yet
        self.unjudged = 0  # steps without a loss since then

    def observe(self, loss: float, grad_norm: float) -> str:
        """Observe a reported step; return the reason to stop there, or an empty string."""
        between = self.loss if math.isnan(loss) or loss > self.loss else loss
        reason = ""
        if math.isfinite(between):
            for _ in range(self.unjudged):
                reason = reason or self._monitor.observe(between, 0.0)
        self.unjudged, self.loss = 0, loss
        # a gradient norm that was not measured is not judged
        return reason or self._monitor.observe(loss, 0.0 if math.isnan(grad_norm) else grad_norm)
