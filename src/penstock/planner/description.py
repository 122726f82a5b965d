"""A decoder described by its Hugging Face config: parameters, FLOPs and bytes of a layer, by formula.

What is counted is what the matrix multiplications of a dense decoder take; norms, activations and softmax are left out
of the FLOPs, where they are below one part in a hundred, and counted in the activations, where they are not.

Sources: Narayanan et al. 2021, Efficient Large-Scale Language Model Training, section 3 (FLOPs); Korthikanti et al.
2022, Reducing Activation Recomputation in Large Transformer Models, section 4.1 (activations).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.errors import UserError, check_type

_FIELDS = {
    "num_layers": ("num_hidden_layers", "n_layer"),
    "hidden": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
}
"""What a config must say -> the names under which configs say it."""

_GATED = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3"})
"""Kinds of model whose feed-forward layer multiplies two projections, so that it has three matrices."""


@dataclass(frozen=True)
class ModelDescription:
    """The widths of a decoder.

    Attributes:
        num_layers: decoder layers.
        hidden: width of the residual stream.
        heads: attention heads.
        key_value_heads: heads of keys and values; equal to `heads` without grouped queries.
        head_width: width of one head.
        feed_forward: inner width of the feed-forward layer.
        feed_forward_matrices: 3 where it is gated, else 2.
        vocabulary: tokens.
        tied: whether the head is the embedding.
        positions: learned positions; 0 where they are computed.
    """

    num_layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_width: int
    feed_forward: int
    feed_forward_matrices: int
    vocabulary: int
    tied: bool
    positions: int = 0

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices and its two norms."""
        queries, keys = self.heads * self.head_width, self.key_value_heads * self.head_width
        attention = self.hidden * (queries + 2 * keys) + queries * self.hidden
        return attention + self.feed_forward_matrices * self.hidden * self.feed_forward + 2 * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Weights before the first layer."""
        return (self.vocabulary + self.positions) * self.hidden

    @property
    def head_parameters(self) -> int:
        """Weights behind the last layer: its norm, and the head where it is not the embedding."""
        return self.hidden + (0 if self.tied else self.vocabulary * self.hidden)

    @property
    def parameters(self) -> int:
        """All weights, a tied one once."""
        return self.num_layers * self.layer_parameters + self.embedding_parameters + self.head_parameters

    def layer_flops(self, sequence: int) -> int:
        """Returns the FLOPs of one layer's forward on one sequence; a full backward takes twice as many.

        Attention is counted whole, as the literature counts it, though a causal one needs half of it.
        """
        matrices = self.layer_parameters - 2 * self.hidden
        attention = 2 * 2 * sequence * self.heads * self.head_width
        return sequence * (2 * matrices + attention)

    def head_flops(self, sequence: int) -> int:
        """Returns the FLOPs of the head's forward on one sequence."""
        return 2 * sequence * self.hidden * self.vocabulary

    def step_flops(self, sequences: int, sequence: int) -> int:
        """Returns the FLOPs of forward and backward of a step on so many sequences: what MFU is counted by."""
        forward = self.num_layers * self.layer_flops(sequence) + self.head_flops(sequence)
        return 3 * sequences * forward

    def layer_activation_bytes(self, sequence: int, *, value_bytes: int = 2) -> int:
        """Returns what the forward of one layer on one sequence keeps for its backward, with fused attention.

        Kept are the inputs of both norms, of every matrix and of the attention, and its output; fused kernels compute
        the scores, and the activation function of a gated layer, again. There is no dropout.
        """
        queries, keys = self.heads * self.head_width, self.key_value_heads * self.head_width
        inner = self.feed_forward_matrices * self.feed_forward  # the projections, and their product where gated
        return value_bytes * sequence * (4 * self.hidden + 2 * queries + 2 * keys + inner)

    def boundary_bytes(self, sequence: int, *, value_bytes: int = 2) -> int:
        """Returns the bytes of what passes from layer to layer on one sequence."""
        return value_bytes * sequence * self.hidden


def describe(config: Mapping[str, object]) -> ModelDescription:
    """Returns what a Hugging Face config, as the dict in its `config.json`, describes.

    Raises:
        UserError: a width that is missing or no whole number of at least 1, or heads that do not divide the width.
    """
    check_type("config", config, Mapping, example="the dict in a model's config.json")
    found = {field: _number(config, *names) for field, names in _FIELDS.items()}
    hidden, heads = found["hidden"], found["heads"]
    if "head_dim" not in config and hidden % heads:
        raise UserError(f"hidden_size={hidden} is no multiple of num_attention_heads={heads}; state head_dim too")
    gated = config.get("model_type") in _GATED
    inner = _optional(config, "intermediate_size") or _optional(config, "n_inner") or 4 * hidden
    return ModelDescription(
        **found,
        key_value_heads=_optional(config, "num_key_value_heads") or heads,
        head_width=_optional(config, "head_dim") or hidden // heads,
        feed_forward=inner,
        feed_forward_matrices=3 if gated else 2,
        tied=bool(config.get("tie_word_embeddings", not gated)),
        positions=0 if gated else _optional(config, "n_positions") or 0,
    )


def _optional(config: Mapping[str, object], name: str) -> int | None:
    return None if config.get(name) is None else _number(config, name)


def _number(config: Mapping[str, object], *names: str) -> int:
    name = next((name for name in names if name in config), None)
    if name is None:
        raise UserError(f"the config has no {' or '.join(names)}; give the config.json of a decoder")
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value != int(value):
        raise UserError(f"config: {name}={value!r}; use a whole number of at least 1")
    return int(value)
