"""Five houses and a straight line: small enough that all results are known exactly.

What it teaches. Price is 200 times size exactly, so the best line has loss 0, and the only
question is how fast gradient descent gets there. Its Hessian, [[13.5, 5], [5, 2]], has curvatures
15.37 and 0.130: a rate above 2/15.37 = 0.1301 grows without bound along the steep direction, and
every rate below it converges, at a speed that the flat direction limits. The best constant rate,
4/31 = 0.1290, is just below the limit. So 0.1 is not too high here, although it is large;
0.0001 is far too low, and its loss never falls below that of a constant guess; and between
the best rate and divergence there is less than one percent. A falling curve does not show
whether a higher rate would have been better: compare several.
"""

from __future__ import annotations

import torch
from torch import nn

from tuner.training.workloads import Workload, digest_of

SIZES = (1.5, 2.0, 2.5, 3.0, 3.5)
PRICES = (300.0, 400.0, 500.0, 600.0, 700.0)


def line() -> Workload:
    """Fit price = w · size + b by mean squared error, from w = b = 0 whatever the seed."""
    sizes = torch.tensor(SIZES, dtype=torch.float64)[:, None]  # [house, 1]
    prices = torch.tensor(PRICES, dtype=torch.float64)[:, None]  # [house, 1]
    return Workload(
        model=_line_from_zero,
        train_inputs=sizes,
        train_targets=prices,
        # the same five houses: this study is about optimization, not generalization
        validation_inputs=sizes,
        validation_targets=prices,
        loss=nn.functional.mse_loss,
        metrics={"mean_absolute_error": nn.functional.l1_loss},
        baseline_loss=float(prices.var(correction=0)),  # 20,000: always guess the mean price
        data_name="five houses",
        data_digest=digest_of(sizes, prices),
    )


def _line_from_zero(seed: int, dtype: torch.dtype) -> nn.Module:  # noqa: ARG001
    model = nn.Linear(1, 1, dtype=dtype)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model
