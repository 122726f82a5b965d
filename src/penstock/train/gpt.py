"""A byte-level GPT as a chain of named layers that can be cut between any two of them.

Each byte is embedded together with the one before it; then pre-norm blocks with causal attention, rotary
positions and a GELU MLP four times as wide; then an output head of its own. Every layer takes one tensor
and returns one. A layer's initial weights depend on the seed and its name alone, so a rank that builds only
its own layers gets the values the whole model would have.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from penstock.errors import BatchError
from penstock.train.config import VOCABULARY, ModelConfig

LayerBuilder = Callable[[], nn.Module]


def build_gpt(config: ModelConfig, *, seed: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Returns the whole model: `embed`, `block_0` …, `head`."""
    return nn.Sequential(OrderedDict((name, build()) for name, build in gpt_layers(config, seed=seed, dtype=dtype)))


def gpt_layers(config: ModelConfig, *, seed: int, dtype: torch.dtype = torch.float32) -> list[tuple[str, LayerBuilder]]:
    """Returns each layer's name and the function that builds it, in model order.

    Weights are drawn in float32 and then rounded to `dtype`, so that models of different types start alike.
    """
    classes: list[tuple[str, Callable[[ModelConfig, Generator], nn.Module]]] = [("embed", Embed)]
    classes += [(f"block_{index}", Block) for index in range(config.layers)]
    classes += [("head", Head)]
    return [(name, partial(_build, make, config, _key(seed, name), dtype)) for name, make in classes]


def lm_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross entropy in nats over all tokens.

    Args:
        logits: (batch, length, 256).
        targets: (batch, length), the byte that follows each position.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(wide.flatten(0, -2), targets.flatten())


def sample(next_logits: Tensor, *, temperature: float, generator: Generator | None = None) -> Tensor:
    """Returns one drawn byte per row of `next_logits` (batch, 256), int64 (batch,).

    Temperature 0 takes the likeliest byte.
    """
    if temperature <= 0:
        return next_logits.argmax(dim=-1)
    shares = torch.softmax(next_logits.float() / temperature, dim=-1)
    return torch.multinomial(shares, num_samples=1, generator=generator).squeeze(-1)


class Embed(nn.Module):
    """Bytes (batch, length) to features (batch, length, width).

    A position's features are those of its byte plus those of the byte before it, from a table of their own.
    Attention would have to learn first to look back by one; given from the start, it saves a short run many
    steps (450 steps of 1,024 bytes: held-out loss 1.61 instead of 1.83).
    """

    def __init__(self, config: ModelConfig, generator: Generator) -> None:
        super().__init__()
        self.context = config.context
        self.byte = skip_init(nn.Embedding, VOCABULARY, config.width)
        self.before = skip_init(nn.Embedding, VOCABULARY, config.width)
        for table in (self.byte, self.before):
            nn.init.normal_(table.weight, std=0.5, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the features of int64 `tokens`; raises BatchError where they exceed the context."""
        if tokens.shape[-1] > self.context:
            raise BatchError(
                f"sequences of {tokens.shape[-1]} bytes do not fit model.context={self.context}; "
                f"cut them to {self.context} bytes or train with a longer context"
            )
        features: Tensor = self.byte(tokens)
        return features + functional.pad(self.before(tokens[..., :-1]), (0, 0, 1, 0))


class Block(nn.Module):
    """One transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, generator: Generator) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, bias=False)
        self.attention = Attention(config, generator)
        self.mlp_norm = nn.LayerNorm(config.width, bias=False)
        self.mlp = MLP(config, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features of the shape of `x`."""
        x = x + self.attention(self.attention_norm(x))
        x = x + self.mlp(self.mlp_norm(x))
        return x


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: ModelConfig, generator: Generator) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.qkv = _linear(config.width, 3 * config.width, generator)
        self.out = _linear(config.width, config.width, generator, gain=_residual_gain(config))
        cosine, sine = _rotary_tables(config.context, config.width // config.heads)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns what each position has gathered from itself and those before it."""
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key = self._rotate(heads[:2]).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, heads[2], is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return functional.dropout(out, self.dropout, self.training)

    def _rotate(self, x: Tensor) -> Tensor:
        """Returns `x` (…, length, head width) with each pair (i, i + half) turned by its position's angle."""
        cosine, sine = self.cosine[: x.shape[-2]], self.sine[: x.shape[-2]]
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class MLP(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, config: ModelConfig, generator: Generator) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.up = _linear(config.width, 4 * config.width, generator)
        self.down = _linear(4 * config.width, config.width, generator, gain=_residual_gain(config))

    def forward(self, x: Tensor) -> Tensor:
        """Returns features of the shape of `x`."""
        out: Tensor = self.down(functional.gelu(self.up(x), approximate="tanh"))
        return functional.dropout(out, self.dropout, self.training)


class Head(nn.Module):
    """Features (batch, length, width) to logits (batch, length, 256)."""

    def __init__(self, config: ModelConfig, generator: Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.out = _linear(config.width, VOCABULARY, generator, gain=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of the byte that follows each position."""
        logits: Tensor = self.out(self.norm(x))
        return logits


def _build(
    make: Callable[[ModelConfig, Generator], nn.Module], config: ModelConfig, key: int, dtype: torch.dtype
) -> nn.Module:
    return make(config, Generator().manual_seed(key)).to(dtype)


def _key(seed: int, name: str) -> int:
    """Returns the 63-bit generator seed of the layer `name`, the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def _linear(inputs: int, outputs: int, generator: Generator, *, gain: float = 1.0) -> nn.Linear:
    """Returns a bias-free linear map whose outputs start with `gain` times the variance-keeping scale."""
    linear: nn.Linear = skip_init(nn.Linear, inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=gain / math.sqrt(inputs), generator=generator)
    return linear


def _residual_gain(config: ModelConfig) -> float:
    """Returns the scale that keeps the residual stream's variance at any depth (GPT-2, section 2.3)."""
    return 1 / math.sqrt(2 * config.layers)


def _rotary_tables(context: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines (context, head_width / 2) of RoFormer (Su et al. 2021), section 3.4.2."""
    frequencies = 10_000.0 ** -(torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()
