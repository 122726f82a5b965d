"""A decoder described by its Hugging Face config: parameters, FLOPs and bytes of a layer, by formula.

What is counted is what the matrix multiplications of a dense decoder take; norms, activations and softmax are left out
of the FLOPs, where they are below one part in a hundred, and counted in the activations, where they are not.

Sources: Narayanan et al. 2021, Efficient Large-Scale Language Model Training, section 3 (FLOPs); Korthikanti et al.
2022, Reducing Activation Recomputation in Large Transformer Models, section 4.1 (activations).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from penstock.errors import UserError, check_type, nearest

_FIELDS = {
    "num_layers": ("num_hidden_layers", "n_layer"),
    "hidden": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
}
"""What a config must say -> the names under which configs say it."""

_GATED, _PLAIN = 3, 2
"""Matrices of a feed-forward layer: a gated one multiplies two projections."""


class _Kind(NamedTuple):
    """A kind of model.

    Attributes:
        matrices: of its feed-forward layer.
        tied: whether its head is the embedding where the config does not say.
        positions: the name of the number of learned positions; empty where they are computed.
    """

    matrices: int
    tied: bool
    positions: str = ""


_ALIKE: dict[_Kind, tuple[str, ...]] = {
    _Kind(_GATED, False): (
        *("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo", "olmo2", "olmo3", "granite", "stablelm"),
        *("glm", "glm4", "exaone4", "seed_oss", "helium", "diffllama"),
    ),
    _Kind(_GATED, True): ("gemma", "gemma2", "gemma3_text", "vaultgemma", "smollm3", "cohere", "cohere2", "ernie4_5"),
    _Kind(_PLAIN, True): ("bloom", "starcoder2"),
    _Kind(_PLAIN, False): ("gpt_neox", "gptj", "codegen", "phi", "persimmon", "arcee", "apertus"),
    _Kind(_PLAIN, True, "n_positions"): ("gpt2", "gpt_bigcode"),
    _Kind(_PLAIN, True, "max_position_embeddings"): ("opt", "biogpt"),
}
_KINDS = {name: kind for kind, names in _ALIKE.items() for name in names}
"""By `model_type`; tests hold their parameters against the models that transformers builds."""

_INNER = ("intermediate_size", "n_inner", "ffn_dim")
"""Under what names configs say the feed-forward width."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Under what names configs say that a layer has experts."""


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
        fused_attention: whether the scores of attention stay on the chip. Where they are written out they pass through
            memory, and are computed again in the backward; none are kept either way.
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
    fused_attention: bool = True

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
        UserError: a kind of model that is not described, a width that is missing or no whole number of at least 1, or
            heads that do not divide the width.
    """
    check_type("config", config, Mapping, example="the dict in a model's config.json")
    num_layers, hidden, heads, vocabulary = (_number(config, *names) for names in _FIELDS.values())
    kind = _kind(config)
    if "head_dim" not in config and hidden % heads:
        raise UserError(f"hidden_size={hidden} is no multiple of num_attention_heads={heads}; state head_dim too")
    inner = next(filter(None, (_optional(config, name) for name in _INNER)), 4 * hidden)
    return ModelDescription(
        num_layers,
        hidden,
        heads,
        key_value_heads=_optional(config, "num_key_value_heads") or heads,
        head_width=_optional(config, "head_dim") or hidden // heads,
        feed_forward=inner,
        feed_forward_matrices=kind.matrices,
        vocabulary=vocabulary,
        tied=bool(config.get("tie_word_embeddings", kind.tied)),
        positions=_optional(config, kind.positions) or 0,
    )


def _kind(config: Mapping[str, object]) -> _Kind:
    way = "state the widths of another decoder by a ModelDescription, or plan with what penstock profile --hf measures"
    experts = next((name for name in _EXPERTS if isinstance(config.get(name), int) and config[name] > 1), None)  # type: ignore[operator]
    if experts is not None:
        raise UserError(f"config: {experts}={config[experts]}; mixtures of experts are not described, {way}")
    name = config.get("model_type")
    if not isinstance(name, str) or name not in _KINDS:
        guess = nearest(name, _KINDS) if isinstance(name, str) else ""
        raise UserError(f"config: model_type={name!r} is not described.{guess} docs/plan.md lists what is; {way}")
    return _KINDS[name]


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
