"""What momentum makes of steps along one curvature: how they grow or shrink at which rate.

Near a minimum of curvature λ the distance to it follows a linear recursion of two steps. With
h = lr·λ its characteristic polynomial is z² - (1 + β - h)·z + β for heavy ball and
z² - (1 + β)·(1 - h)·z + β·(1 - h) for Nesterov's momentum; both are z·(z - 1 + h) at β = 0. The
distance changes by its largest root a step. Above the stable limit that root is real and below -1:
the steps alternate in sign and grow. Adam with its preconditioner frozen is heavy ball, NAdam is
Nesterov's, both at (1 - β₁) times their rate, since their momentum is an average and not a sum
(Cohen et al., "Adaptive Gradient Methods at the Edge of Stability", arXiv 2207.14484).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tuner.config import ParameterValue, own


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """How an optimiser remembers its gradients."""

    beta: float = 0.0
    nesterov: bool = False

    def steepness(self, growth: float) -> float:
        """Give the rate times curvature at which a distance grows by so much a step, 1 or more.

        At 1 it is the stable limit: 2 + 2β for heavy ball, (2 + 2β)/(1 + 2β) for Nesterov's.
        """
        beta = self.beta  # a root of -growth in the polynomials above
        if self.nesterov:
            return 1 + growth / (1 + beta + beta / growth)
        return (1 + growth) * (1 + beta / growth)

    def factors(self, steepness: np.ndarray) -> np.ndarray:  # both [step]
        """Give by how much the distance changes a step, at a rate times curvature: the root."""
        left = 1 - steepness
        trace = (1 + self.beta) * left if self.nesterov else left + self.beta
        product = self.beta * left if self.nesterov else np.full_like(left, self.beta)
        inside = trace**2 - 4 * product
        real = (np.abs(trace) + np.sqrt(np.maximum(inside, 0.0))) / 2
        roots: np.ndarray = np.where(inside < 0, np.sqrt(np.abs(product)), real)
        return roots


def momentum_of(params: Mapping[str, ParameterValue]) -> Momentum:
    """Give the momentum of a trial's optimiser from its flat parameters; none of these for Lion."""
    name = str(params["optimizer"])
    if name == "lion":
        return Momentum()
    settings = own(params, name)
    beta = float(settings.get("beta1", settings.get("momentum", 0.0)))
    return Momentum(beta=beta, nesterov=name == "nadam" or bool(settings.get("nesterov", False)))
