"""What passes between stages: trees of tensors and plain values, and their shape as a message.

A boundary is flattened into its tensors, which travel, and a spec (the tree, with every tensor's shape, dtype
and whether a gradient comes back), which both ends know. Specs are JSON; nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from penstock.errors import ModelError

_ONE_TENSOR = '{"tensor": 0}'
"""The tree of nearly every boundary."""

_PLAIN = (bool, int, float, str, type(None))
_CONTAINERS: dict[str, type[Any]] = {"tuple": tuple, "list": list}


class TensorSpec(NamedTuple):
    """Shape and dtype of one travelling tensor, and whether its gradient travels back."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    needs_grad: bool

    def empty(self, device: torch.device) -> torch.Tensor:
        """Returns an uninitialised tensor of this shape."""
        return torch.empty(self.shape, dtype=self.dtype, device=device)


class BoundarySpec(NamedTuple):
    """A tree without its tensors.

    Attributes:
        tree: the tree as JSON text; a tensor is `{"tensor": index}`.
        tensors: the tensors in the order in which they travel.
    """

    tree: str
    tensors: tuple[TensorSpec, ...]

    def is_of(self, value: Any) -> bool:
        """Returns whether `value` is one tensor, and this its spec; a quick look that spares `flatten`."""
        if self.tree != _ONE_TENSOR or not isinstance(value, torch.Tensor):
            return False
        shape, dtype, needs_grad = self.tensors[0]
        return value.shape == shape and value.dtype == dtype and value.requires_grad == needs_grad

    def encode(self) -> bytes:
        """Returns the spec as bytes; `decode` is its inverse."""
        rows = [[list(spec.shape), str(spec.dtype).removeprefix("torch."), spec.needs_grad] for spec in self.tensors]
        return json.dumps([self.tree, rows]).encode()

    @staticmethod
    def decode(data: bytes) -> BoundarySpec:
        """Returns the spec that `encode` wrote."""
        tree, rows = json.loads(data)
        return BoundarySpec(
            tree,
            tuple(TensorSpec(tuple(shape), getattr(torch, dtype), needs_grad) for shape, dtype, needs_grad in rows),
        )

    def __str__(self) -> str:
        tensors = ", ".join(f"{list(spec.shape)} {str(spec.dtype).removeprefix('torch.')}" for spec in self.tensors)
        return f"{self.tree} with {tensors or 'no tensors'}"


def flatten(value: Any) -> tuple[BoundarySpec, list[torch.Tensor]]:
    """Returns the spec of `value` and its tensors in order.

    Raises:
        ModelError: something in the tree can neither travel as a tensor nor as a plain value.
    """
    if isinstance(value, torch.Tensor):  # the common case, without a walk
        return BoundarySpec(_ONE_TENSOR, (_spec(value),)), [value]
    tensors: list[torch.Tensor] = []
    tree = json.dumps(_encode(value, tensors, "boundary"))
    return BoundarySpec(tree, tuple(map(_spec, tensors))), tensors


def unflatten(spec: BoundarySpec, tensors: Sequence[torch.Tensor]) -> Any:
    """Returns the tree of `spec` with these tensors in it."""
    if spec.tree == _ONE_TENSOR:
        return tensors[0]
    return _decode(json.loads(spec.tree), tensors)


def _spec(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), tensor.dtype, tensor.requires_grad)


def _encode(value: Any, tensors: list[torch.Tensor], path: str) -> Any:
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if type(value) in _PLAIN:
        return {"value": value}
    for name, container in _CONTAINERS.items():
        if type(value) is container:
            return {name: [_encode(item, tensors, f"{path}[{i}]") for i, item in enumerate(value)]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _encode(item, tensors, f'{path}["{key}"]') for key, item in value.items()}}
    raise ModelError(
        f"{path} is a {type(value).__name__}, which cannot pass between stages; use tensors, None, bool, int, float, "
        "str, and tuples, lists or dicts (with text keys) of them"
    )


def _decode(node: dict[str, Any], tensors: Sequence[torch.Tensor]) -> Any:
    (kind, content), *_ = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "value":
        return content
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content.items()}
    return _CONTAINERS[kind](_decode(item, tensors) for item in content)
