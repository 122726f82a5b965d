"""What each layer of a described model takes on a device, by microbatch size and tensor degree.

A matrix multiplication of n tokens, K features in and N out takes

    2·n·K·N / (peak · efficiency)  +  value_bytes · (n·K + K·N + n·N) / memory bandwidth

which is the efficiency curve: few tokens a device and slices of matrices that a high tensor degree leaves are slow.
With tensor degree T each device has 1/T of the heads and of the feed-forward width, and of the tokens between them
(sequence parallelism): a layer gathers its input twice and scatters its output twice, each way.

Sources: Narayanan et al. 2021, Efficient Large-Scale Language Model Training, section 3; Korthikanti et al. 2022,
Reducing Activation Recomputation, sections 4.2 and 5 (what is kept and sent under tensor and sequence parallelism).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from penstock.cluster import Link
from penstock.planner.description import ModelDescription
from penstock.planner.fleet import DeviceKind
from penstock.simulator.orders import Floats

_VALUE_BYTES = 2
"""Of an activation."""
_PASSES_FORWARD, _PASSES_BACKWARD = 2, 3
"""How often what is kept passes through memory beside the multiplications: norms, activation functions, residuals."""
_SCORES_FORWARD, _SCORES_BACKWARD = 13, 34
"""Bytes that pass through memory for each score where attention is written out, in 16 bits with dropout: products,
softmax and dropout read and write it, its mask is a byte; the backward does all this again before its own."""
_COLLECTIVES = 4
"""Gathers and scatters of a layer's activations, each way."""


@dataclass(frozen=True)
class StateBytes:
    """Bytes a parameter: by default weights in bf16, gradients in fp32, and Adam's fp32 weights and two moments.

    Attributes:
        parameter: of the weight that is multiplied with.
        gradient: of its gradient.
        optimizer: of everything that the optimizer keeps.
    """

    parameter: float = 2
    gradient: float = 4
    optimizer: float = 12


class LayerTable(NamedTuple):
    """One microbatch on each layer of one device; each field is [layers], bytes of a device.

    Attributes:
        seconds: [3, layers], of F, I and W, collectives included.
        collective: [2, layers], of these in F and I what the tensor degree's collectives take.
        parameter: bytes of weights.
        gradient: bytes of weight gradients.
        optimizer: bytes of the optimizer's state.
        activation: what F keeps, the layer's input included.
        deferred: what I keeps for W.
        again: what F keeps where the forward runs again: the layer's input.
        boundary: its output.
    """

    seconds: Floats
    collective: Floats
    parameter: Floats
    gradient: Floats
    optimizer: Floats
    activation: Floats
    deferred: Floats
    again: Floats
    boundary: Floats


Table = Callable[[int, int, DeviceKind, Link], LayerTable]
"""(sequences a microbatch, tensor degree, kind of device, link of the tensor group) -> what the layers take."""


class ModelWork(NamedTuple):
    """A model as the planner sees it.

    Attributes:
        names: of its layers.
        table: what they take.
        tensor_width: what a tensor degree must divide; 1 where layers cannot be divided.
        sequence_flops: forward and backward of one sequence; 0 where not known.
        tied: whether the last layer's weights are the first one's.
        input_apart: whether what F keeps leaves out the input of its stage, which a rank keeps too.
    """

    names: tuple[str, ...]
    table: Table
    tensor_width: int
    sequence_flops: float
    tied: bool
    input_apart: bool = False


def described_work(model: ModelDescription, sequence: int, state: StateBytes) -> ModelWork:
    """Returns the work of a described decoder: embedding, layers, head."""

    def table(size: int, tensor: int, kind: DeviceKind, link: Link) -> LayerTable:
        return _described(_Shape(model, size * sequence, sequence, tensor), state, kind, link)

    names = ("embedding", *(f"layer {number}" for number in range(model.num_layers)), "head")
    width = int(np.gcd(model.heads, model.feed_forward))
    return ModelWork(names, table, width, model.step_flops(1, sequence), model.tied)


class _Shape(NamedTuple):
    """Widths on one device of a tensor group."""

    model: ModelDescription
    tokens: int
    sequence: int
    tensor: int

    @property
    def queries(self) -> float:
        return self.model.heads * self.model.head_width / self.tensor

    @property
    def keys(self) -> float:
        # A device has at least one head of keys and values: with more devices than such heads they are copied.
        return max(self.model.key_value_heads / self.tensor, 1) * self.model.head_width

    @property
    def inner(self) -> float:
        return self.model.feed_forward / self.tensor

    @property
    def vocabulary(self) -> float:
        return self.model.vocabulary / self.tensor

    @property
    def matrices(self) -> list[tuple[float, float]]:
        """Features in and out of the matrices of a layer."""
        hidden, gates = self.model.hidden, self.model.feed_forward_matrices - 1
        return [
            (hidden, self.queries + 2 * self.keys),
            (self.queries, hidden),
            (hidden, gates * self.inner),
            (self.inner, hidden),
        ]


def _described(shape: _Shape, state: StateBytes, kind: DeviceKind, link: Link) -> LayerTable:
    """Returns the columns of embedding and head around those of equal layers."""
    layers = [_layer(shape, kind, link)] * shape.model.num_layers
    columns = np.array([_embedding(shape, kind, link), *layers, _head(shape, kind, link)], float).T
    forward, backward, weights, sent_forward, sent_backward, parameters, *kept = columns
    return LayerTable(
        np.array([forward, backward, weights]),
        np.array([sent_forward, sent_backward]),
        parameters * state.parameter,
        parameters * state.gradient,
        parameters * state.optimizer,
        *kept,
    )


_Column = tuple[float, ...]
"""F, I, W, collectives of F and of I, parameters; bytes: activation, deferred, again, boundary."""


def _layer(shape: _Shape, kind: DeviceKind, link: Link) -> _Column:
    model, tokens, tensor = shape.model, shape.tokens, shape.tensor
    multiplied = sum(_matmul(tokens, wide, high, kind) for wide, high in shape.matrices)
    attention = 4 * tokens * shape.sequence * shape.queries / _rate(kind)
    written = 0 if model.fused_attention else tokens * shape.sequence * model.heads / tensor
    scores = written / kind.memory_bytes_per_second
    kept = model.layer_activation_bytes(tokens) / tensor
    passed = kept / kind.memory_bytes_per_second
    sent = _COLLECTIVES * _ring_seconds(_boundary(shape) * tensor, tensor, link)
    parameters = sum(wide * high for wide, high in shape.matrices) + 2 * model.hidden
    between = sum(wide + high for wide, high in shape.matrices)
    hidden_copies = sum((wide == model.hidden) + (high == model.hidden) for wide, high in shape.matrices)
    # Between layers tokens are spread over the group, inside them features are.
    spread = between - hidden_copies * model.hidden * (1 - 1 / tensor)
    return (
        multiplied + attention + _SCORES_FORWARD * scores + _PASSES_FORWARD * passed + sent,
        multiplied + 2 * attention + _SCORES_BACKWARD * scores + _PASSES_BACKWARD * passed + sent,
        multiplied,
        sent,
        sent,
        parameters,
        kept,
        _VALUE_BYTES * tokens * spread,
        _boundary(shape),
        _boundary(shape),
    )


def _embedding(shape: _Shape, kind: DeviceKind, link: Link) -> _Column:
    looked_up = 2 * _boundary(shape) / kind.memory_bytes_per_second
    sent = _ring_seconds(_boundary(shape) * shape.tensor, shape.tensor, link)
    parameters = shape.model.embedding_parameters / shape.tensor
    return (looked_up + sent, sent, looked_up, sent, sent, parameters, 0, 0, 0, _boundary(shape))


def _head(shape: _Shape, kind: DeviceKind, link: Link) -> _Column:
    model, tokens = shape.model, shape.tokens
    multiplied = _matmul(tokens, model.hidden, shape.vocabulary, kind)
    logits = 4 * tokens * shape.vocabulary  # in fp32: the loss is computed from them, and their gradient in their place
    passed = logits / kind.memory_bytes_per_second
    sent = _ring_seconds(_boundary(shape) * shape.tensor, shape.tensor, link)
    parameters = model.vocabulary * model.hidden / shape.tensor + model.hidden
    kept = logits + 2 * _boundary(shape)
    return (
        multiplied + _PASSES_FORWARD * passed + sent,
        multiplied + passed + sent,
        multiplied,
        sent,
        sent,
        parameters,
        kept,
        logits + _boundary(shape),
        kept,
        0,
    )


def _matmul(tokens: float, wide: float, high: float, kind: DeviceKind) -> float:
    touched = _VALUE_BYTES * (tokens * wide + wide * high + tokens * high)
    return 2 * tokens * wide * high / _rate(kind) + touched / kind.memory_bytes_per_second


def _rate(kind: DeviceKind) -> float:
    return kind.flops_per_second * kind.efficiency


def _boundary(shape: _Shape) -> float:
    return _VALUE_BYTES * shape.tokens * shape.model.hidden / shape.tensor


def _ring_seconds(num_bytes: float, members: int, link: Link) -> float:
    """Returns how long a ring takes to gather or to scatter `num_bytes` over `members`."""
    if members == 1:
        return 0.0
    return (members - 1) * link.latency_seconds + (members - 1) / members * link.busy_seconds(num_bytes)
