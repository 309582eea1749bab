"""Maximal update parametrization (muP): the best rate of a narrow model is that of a wide one.

In the standard parametrization the best rate falls with the width, since every step changes the
outputs of wider layers by more. muP (Yang et al., Tensor Programs V, arXiv 2203.03466) scales the
initial parameters and the rate of each so that all layers learn equally fast at all widths. This is
its Table 3, which needs no factors in the forward pass, so modules, checkpoints and exports stay
plain. For a model whose fan-in and fan-out are `in` and `out` times those of a base model:

| parameter                                | initial deviation | rate, sgd  | rate, adam |
|------------------------------------------|-------------------|------------|------------|
| input: weights from inputs, embeddings,  | that of the base  | times out  | times 1    |
| biases, gains of normalizations          |                   |            |            |
| hidden: weights between wide layers      | times in^(-1/2)   | times      | times 1/in |
|                                          |                   | out/in     |            |
| output: weights from a wide layer        | times in^(-1)     | times 1/in | times 1/in |
| fixed: what has no wide side             | that of the base  | times 1    | times 1    |

"sgd" is for SGD with any momentum; "adam" for optimizers whose steps do not depend on the size of
gradients: Adam, AdamW, NAdam, Adagrad, RMSprop and Lion.

The base model itself is not changed, so tune it, and its rate holds for wider ones. What a
parametrization cannot see is up to the model: attention whose heads widen must divide its products
by the width of a head and not by its square root (`attention_divisor`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tuner.training.workloads import seeded

Family: TypeAlias = Literal["sgd", "adam"]
Kind: TypeAlias = Literal["input", "hidden", "output", "fixed"]

KINDS: tuple[Kind, ...] = ("input", "hidden", "output", "fixed")
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
USUAL = (*DENSE, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
"""Modules whose weights are [out, in, ...], or [in, out, ...] if transposed."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """How a parameter of a model is treated, compared with the base model's."""

    kind: Kind
    multiplier: float  # of its rate
    scale: float  # of its initial values, as the model draws them


@dataclass(frozen=True, kw_only=True)
class Parametrization:
    """The treatment of each parameter of a model, by name."""

    optimizer: Family
    roles: Mapping[str, Role]

    @property
    def rate_multipliers(self) -> dict[str, float]:
        """The multipliers of the rate that are not 1, for `Workload.rate_multipliers`."""
        return {name: one.multiplier for name, one in self.roles.items() if one.multiplier != 1}

    def initialize(self, model: nn.Module) -> nn.Module:
        """Scale the parameters of a newly made model, and return it. Call it once."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if self.roles[name].scale != 1:
                    parameter.mul_(self.roles[name].scale)
        return model

    def parameter_groups(
        self, model: nn.Module, lr: float, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Return the parameter groups of a torch optimizer, for a training loop of one's own.

        With the family "adam", the product of rate and `weight_decay` is that of the base model, as
        decoupled weight decay needs. Frozen parameters are left out.
        """
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(self.roles[name].multiplier, []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": lr * multiplier,
                "weight_decay": weight_decay / (multiplier if self.optimizer == "adam" else 1.0),
            }
            for multiplier, parameters in groups.items()
        ]


def between(
    base: nn.Module,
    model: nn.Module,
    *,
    optimizer: Family,
    kinds: Mapping[str, Kind] | None = None,
) -> Parametrization:
    """Return the parametrization of a model, from a base model that differs in its widths alone.

    `kinds` has the kinds of parameters of modules that are not torch's, by name, where their shapes
    do not show it. Raise `ValueError` if the models differ in anything else, if it is not known
    which side of a weight is the input, or if a weight is both an embedding and an output.
    """
    if optimizer not in ("sgd", "adam"):
        raise ValueError(f"optimizer: expected 'sgd' or 'adam', got {optimizer!r}")
    chosen = dict(kinds or {})
    of_base, of_model = dict(base.named_parameters()), dict(model.named_parameters())
    if of_base.keys() != of_model.keys():
        apart = sorted(of_base.keys() ^ of_model.keys())
        raise ValueError(f"expected a base model with the same parameters, got others: {apart}")
    unknown = sorted(chosen.keys() - of_model.keys())
    if unknown:
        raise ValueError(f"kinds: expected names of parameters, got {unknown}")
    _refuse_tied(model)
    owners, of_base_owners = _owners(model), _owners(base)
    return Parametrization(
        optimizer=optimizer,
        roles={
            name: _role(
                _Pair(
                    name=name,
                    base=of_base[name],
                    model=one,
                    base_owner=of_base_owners[name],
                    owner=owners[name],
                ),
                optimizer,
                chosen.get(name),
            )
            for name, one in of_model.items()
        },
    )


def of_width(
    build: Callable[[int], nn.Module],
    width: int,
    base: int,
    *,
    optimizer: Family,
    kinds: Mapping[str, Kind] | None = None,
) -> Parametrization:
    """Return the parametrization of `build(width)` with the base model `build(base)`.

    torch's random state is restored. Raise as `between` does.
    """
    with seeded(0):
        return between(build(base), build(width), optimizer=optimizer, kinds=kinds)


def family(parametrization: str) -> Family | None:
    """Return the family of "mup-sgd" or "mup-adam", and None for "standard"."""
    known: dict[str, Family | None] = {"standard": None, "mup-sgd": "sgd", "mup-adam": "adam"}
    if parametrization not in known:
        raise ValueError(
            f"parametrization: expected one of {', '.join(known)}, got {parametrization!r}"
        )
    return known[parametrization]


def attention_divisor(head: int, base: int) -> float:
    """Return the divisor of products of queries and keys for heads `head` wide.

    It is the usual sqrt(base) at the width of the base model, and grows with the width of a head
    and not its square root (Tensor Programs V, Definition 4.1).
    """
    return head / math.sqrt(base)


def _refuse_tied(model: nn.Module) -> None:
    """Raise `ValueError` if a weight is an embedding and a dense layer's."""
    embedded = {
        id(one.weight): path for path, one in model.named_modules() if isinstance(one, EMBEDDINGS)
    }
    for path, one in model.named_modules():
        if isinstance(one, DENSE) and id(one.weight) in embedded:
            raise ValueError(
                f"expected separate weights of {embedded[id(one.weight)]} and {path}, got tied "
                "ones: an input and an output need different rates"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pair:
    """A parameter of both models, and the modules that it is of."""

    name: str
    base: Tensor
    model: Tensor
    base_owner: nn.Module
    owner: nn.Module

    def unclear(self) -> ValueError:
        """Return the error of a weight whose input side is not known."""
        return ValueError(
            f"{self.name}: expected to know which side of a {type(self.owner).__name__}'s "
            f"{tuple(self.model.shape)} is the input; name its kind, such as "
            f"kinds={{{self.name!r}: 'input'}} or 'output'"
        )


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    """Return the module of each parameter."""
    return {
        f"{path}.{name}" if path else name: module
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }


def _role(pair: _Pair, optimizer: Family, kind: Kind | None) -> Role:
    """Return the role of a parameter; its kind follows from the shapes where it is None."""
    base, model, name = pair.base, pair.model, pair.name
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kinds: {name}: expected one of {', '.join(KINDS)}, got {kind!r}")
    if base.ndim != model.ndim:
        raise ValueError(
            f"{name}: expected {base.ndim} dimensions as in the base model, got {model.ndim}"
        )
    ratios = [wide / narrow for wide, narrow in zip(model.shape, base.shape, strict=True)]
    wide = [axis for axis, ratio in enumerate(ratios) if ratio != 1]
    usual = isinstance(pair.owner, (*USUAL, *EMBEDDINGS))
    swapped = isinstance(pair.owner, (*EMBEDDINGS, *TRANSPOSED))  # [in, out, ...]
    fan_in = fan_out = 1.0
    if not wide:
        found: Kind = "fixed"
    elif model.ndim == 1:
        found, fan_out = "input", ratios[0]
    elif len(wide) == 1 and (usual or kind in ("input", "output")):
        found = kind or ("output" if (wide[0] == 0) == swapped else "input")
        fan_in, fan_out = (ratios[wide[0]], 1.0) if found == "output" else (1.0, ratios[wide[0]])
    elif wide == [0, 1] and (usual or ratios[0] == ratios[1]):
        found, (fan_out, fan_in) = "hidden", ratios[1::-1] if swapped else ratios[:2]
    else:
        raise pair.unclear()
    of_sgd = {"input": fan_out, "hidden": fan_out / fan_in, "output": 1 / fan_in, "fixed": 1.0}
    of_adam = {"input": 1.0, "hidden": 1 / fan_in, "output": 1 / fan_in, "fixed": 1.0}
    deviation = {"input": 1.0, "hidden": fan_in**-0.5, "output": 1 / fan_in, "fixed": 1.0}
    return Role(
        kind=found,
        multiplier=(of_sgd if optimizer == "sgd" else of_adam)[found],
        scale=deviation[found] / _drawn(pair, max(fan_in, fan_out)),
    )


def _drawn(pair: _Pair, ratio: float) -> float:
    """Return the initial deviation that a wider model draws, in those of the base model.

    It is a power of the ratio of widths in most initializations; the measured one is rounded to it
    if it is that near.
    """
    base, model = pair.base.detach().double(), pair.model.detach().double()
    before, after = float(base.square().mean().sqrt()), float(model.square().mean().sqrt())
    if not (before and after):
        return 1.0
    if isinstance(pair.owner, DENSE) and model.ndim == 1:
        # a bias: torch draws it by the fan-in of its weight
        narrow, wide = _fan_in(pair.base_owner), _fan_in(pair.owner)
        usual = float(model.abs().max()) <= wide**-0.5 and float(base.abs().max()) <= narrow**-0.5
        return math.sqrt(narrow / wide) if usual else 1.0
    if ratio == 1:
        return 1.0
    measured = after / before
    error = math.sqrt(1 / (2 * base.numel()) + 1 / (2 * model.numel()))
    power = min((1.0, ratio**-0.5, 1 / ratio), key=lambda one: abs(math.log(one / measured)))
    return power if abs(math.log(power / measured)) < 4 * error else measured


def _fan_in(layer: nn.Module) -> int:
    assert isinstance(layer, DENSE)
    weight = layer.weight
    return weight[0].numel() if not isinstance(layer, TRANSPOSED) else weight[:, 0].numel()
