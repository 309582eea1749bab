"""A small transformer that predicts the next character: when warm-up and decay help.

What it teaches. The layers are normalized after each addition, as in the first transformers
(arXiv 1706.03762; arXiv 2002.04745 says why that needs a warm-up): at the start the gradients of
the last layers are large, and AdamW, whose averages contain only a few of them, takes steps that
damage the model permanently. With six layers at 0.01 a constant rate ends at 3.21, hardly below the
loss of predicting by the frequency of each character. That is finite and flat, so it looks as if
the rate were too low. A warm-up over a fifth of the steps brings it to 2.46, and a cosine decay to
zero after it to 2.22. At 0.003 neither is needed, and the decay costs: it ends at 2.32, the
constant rate at 2.24. So warm-up and decay make a three times higher rate work. Whether it ends a
little above or below the low one depends on the seed.

The text is the one behind Python's `help()`, in `pydoc_data.topics`: half a million characters
that every Python has. It differs between versions of Python, and so does the data's digest, so a
study that was begun on one version is not continued on another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tuner.core.errors import WorkloadError
from tuner.training import mup
from tuner.training.workloads import Workload, digest_of, seeded

BLOCK, EVERY = 8, 100
"""Of every 100 blocks of 8 rows, the last is validation data."""


def transformer(
    context: int = 16,
    width: int = 32,
    heads: int = 4,
    layers: int = 6,
    parametrization: str = "standard",
    base_width: int = 32,
) -> Workload:
    """Predict each next character from up to `context` previous ones, with `layers` layers.

    With the parametrization "mup-sgd" or "mup-adam", the best rate for `base_width` is that for any
    width.
    """
    if width % heads:
        raise ValueError(f"width: expected a multiple of heads, {heads}, got {width}")
    text = python_help()
    alphabet = {character: code for code, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[character] for character in text])  # [character]
    rows = (len(codes) - 1) // context
    inputs = codes[: rows * context].reshape(rows, context)  # [row, position]
    targets = codes[1 : rows * context + 1].reshape(rows, context)  # [row, position]
    # blocks from all over the text, since its end is about other things than its beginning
    validation = (torch.arange(rows) // BLOCK) % EVERY == EVERY - 1  # [row]
    train = ~validation
    frequencies = torch.bincount(targets[train].flatten()).double() / targets[train].numel()

    family = mup.family(parametrization)

    def build(width: int) -> CharacterModel:
        divisor = math.sqrt(width // heads)
        if family is not None:
            divisor = mup.attention_divisor(width // heads, base_width // heads)
        return CharacterModel(len(alphabet), context, width, heads, layers, divisor)

    scaled = None if family is None else mup.of_width(build, width, base_width, optimizer=family)

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        with seeded(seed):
            made = build(width)
        return (made if scaled is None else scaled.initialize(made)).to(dtype)

    return Workload(
        model=model,
        train_inputs=inputs[train],
        train_targets=targets[train],
        validation_inputs=inputs[validation],
        validation_targets=targets[validation],
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        rate_multipliers={} if scaled is None else scaled.rate_multipliers,
        # knowing only how frequent each character is
        baseline_loss=float(torch.special.entr(frequencies).sum()),
        data_name=f"Python's own help, {len(codes)} characters",
        data_digest=digest_of(inputs, targets),
    )


def python_help() -> str:
    """Return the text behind `help()`, topics in alphabetical order. Raises `WorkloadError`."""
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte, for this study only
    except ImportError as error:
        raise WorkloadError(
            "expected the module pydoc_data.topics of the standard library, which this Python "
            "does not have; install your system's full Python (on Debian: libpython3-stdlib)"
        ) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


class CharacterModel(nn.Module):
    """A transformer from characters to scores of the next one."""

    def __init__(
        self,
        characters: int,
        context: int,
        width: int,
        heads: int,
        layers: int,
        divisor: float,  # of products of queries and keys
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.positions = nn.Embedding(context, width)
        self.layers = nn.Sequential(*(Layer(width, heads, divisor) for _ in range(layers)))
        self.scores = nn.Linear(width, characters)

    def forward(self, codes: Tensor) -> Tensor:  # int64 [row, position] -> [row, position, code]
        """Return scores of the character that follows each position."""
        found: Tensor = self.characters(codes) + self.positions.weight
        scores: Tensor = self.scores(self.layers(found))
        return scores


class Layer(nn.Module):
    """Causal self-attention, then two dense layers; each added, then normalized."""

    def __init__(self, width: int, heads: int, divisor: float) -> None:
        super().__init__()
        self.heads = heads
        self.divisor = divisor
        self.attend = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.dense = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.after_attention = nn.LayerNorm(width)
        self.after_dense = nn.LayerNorm(width)

    def forward(self, inputs: Tensor) -> Tensor:  # [row, position, width], both ways
        """Return the outputs of the layer."""
        rows, positions, width = inputs.shape
        parts = self.attend(inputs).reshape(rows, positions, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [row, head, position, part]
        match = query @ key.transpose(-1, -2) / self.divisor
        future = torch.ones(positions, positions, dtype=torch.bool, device=inputs.device).triu(1)
        looked = match.masked_fill(future, -math.inf).softmax(dim=-1) @ value
        joined = self.join(looked.transpose(1, 2).reshape(rows, positions, width))
        attended = self.after_attention(inputs + joined)
        result: Tensor = self.after_dense(attended + self.dense(attended))
        return result


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the next characters, in nats per character.

    `outputs` are [row, position, code], `targets` are int64 [row, position].
    """
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of next characters that had the highest score."""
    return (outputs.argmax(dim=-1) == targets).double().mean()
