"""The optimisers of a study, as torch has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from tuner.spec import ParameterValue


def make(params: Mapping[str, ParameterValue], parameters: Iterable[Tensor]) -> Optimizer:
    """Build the optimiser of a trial from its flat parameters.

    `params` has `lr`, `optimizer`, and that optimiser's own, as in {"lr": 0.1, "optimizer": "sgd",
    "sgd.momentum": 0.9, "sgd.nesterov": False, "sgd.weight_decay": 0.0}; others are passed over.

    torch's defaults for `foreach` stand: its kernels go element by element, so they repeat to the
    bit. `fused` is never asked for: it rounds differently from one build of torch to the next.
    """
    name = str(params["optimizer"])
    own = {
        key.removeprefix(f"{name}."): float(value)
        for key, value in params.items()
        if key.startswith(f"{name}.")
    }
    lr = float(params["lr"])
    if name == "sgd":
        momentum = own["momentum"]
        return SGD(
            parameters,
            lr=lr,
            momentum=momentum,
            # without momentum there is nothing to look ahead along, and torch refuses
            nesterov=bool(own["nesterov"]) and momentum > 0,
            weight_decay=own["weight_decay"],
        )
    assert name == "adamw", name
    return AdamW(
        parameters,
        lr=lr,
        betas=(own["beta1"], own["beta2"]),
        eps=own["eps"],
        weight_decay=own["weight_decay"],
    )
