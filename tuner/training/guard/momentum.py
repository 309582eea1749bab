"""How momentum turns a learning rate into growth or decay along a direction of curvature.

Near a minimum with curvature λ the distance to it follows a linear recursion of order two. With
h = lr·λ its characteristic polynomial is z² - (1 + β - h)·z + β for heavy ball and
z² - (1 + β)·(1 - h)·z + β·(1 - h) for Nesterov's momentum; both are z·(z - 1 + h) at β = 0. Per
step the distance changes by the factor |z| of the largest root. Above the stable limit that root is
real and below -1: the steps alternate in sign and grow. Adam with a frozen preconditioner is heavy
ball and NAdam is Nesterov's momentum, both at (1 - β₁) times their rate, since their momentum is an
average, not a sum (Cohen et al., "Adaptive Gradient Methods at the Edge of Stability",
arXiv 2207.14484).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tuner.config import ParameterValue, own


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """Momentum of an optimizer."""

    beta: float = 0.0
    nesterov: bool = False

    def rate_times_curvature(self, growth: float) -> float:
        """Return the lr·λ at which the distance grows by a factor `growth` >= 1 per step.

        At `growth` 1 it is the stable limit: 2 + 2β for heavy ball, (2 + 2β)/(1 + 2β) for
        Nesterov's momentum.
        """
        beta = self.beta  # solve the polynomials above for h at the root z = -growth
        if self.nesterov:
            return 1 + growth / (1 + beta + beta / growth)
        return (1 + growth) * (1 + beta / growth)

    def growth_factors(self, products: np.ndarray) -> np.ndarray:  # float64 [...], both
        """Return the factor by which the distance changes per step at each lr·λ in `products`."""
        left = 1 - products
        trace = (1 + self.beta) * left if self.nesterov else left + self.beta
        product = self.beta * left if self.nesterov else np.full_like(left, self.beta)
        inside = trace**2 - 4 * product
        real = (np.abs(trace) + np.sqrt(np.maximum(inside, 0.0))) / 2
        roots: np.ndarray = np.where(inside < 0, np.sqrt(np.abs(product)), real)
        return roots


def momentum_of(params: Mapping[str, ParameterValue]) -> Momentum:
    """Return the momentum of a trial's optimizer from its flat parameters.

    Lion has none in this sense: its steps have a fixed length.
    """
    name = str(params["optimizer"])
    if name == "lion":
        return Momentum()
    settings = own(params, name)
    beta = float(settings.get("beta1", settings.get("momentum", 0.0)))
    return Momentum(beta=beta, nesterov=name == "nadam" or bool(settings.get("nesterov", False)))
