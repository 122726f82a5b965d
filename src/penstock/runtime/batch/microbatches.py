"""Splitting a batch into microbatches, argument by argument.

Without a rule of the user's: tensors along their first dimension, plain values to every microbatch, the block masks of
torch's flex_attention by their batch. A rule is found by the path of its argument: `inputs["mask"]`, `inputs[1]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from penstock.errors import BatchError, UserError, check_type
from penstock.runtime.batch.block_masks import is_block_mask, split_block_mask

BatchRule = int | str | Callable[[Any, list[int]], Sequence[Any]]
"""How one argument is split: along a dimension, "replicate", "list", or by a function of the argument and the sizes."""

REPLICATE, LIST = "replicate", "list"

_PLAIN = (bool, int, float, str, type(None))
_EXAMPLE = 'e.g. {\'inputs["mask"]\': 1} for its second dimension, or "replicate", "list", or a function'


class BatchRules:
    """The rules of one pipeline.

    Args:
        rules: path of an argument -> its rule.

    Raises:
        UserError: a path that is none, or a rule that is none.
    """

    def __init__(self, rules: Mapping[str, BatchRule] | None = None) -> None:
        check_type("batch_rules", rules or {}, Mapping, example=_EXAMPLE)
        self._rules = dict(rules or {})
        for path, rule in self._rules.items():
            if not isinstance(path, str) or path.partition("[")[0] not in ("inputs", "targets"):
                raise UserError(f"batch rule for {path!r}; a path begins with inputs or targets, {_EXAMPLE}")
            if isinstance(rule, bool) or not (isinstance(rule, int) or rule in (REPLICATE, LIST) or callable(rule)):
                raise UserError(f"batch rule {rule!r} for {path}; give a dimension, {_EXAMPLE}")

    @property
    def told(self) -> dict[str, str]:
        """The rules in words, to be compared between ranks."""
        return {path: "function" if callable(rule) else str(rule) for path, rule in sorted(self._rules.items())}

    def size(self, batch: Any, *, name: str) -> int:
        """Returns how many samples the tree `batch` holds, as all its tensors that are split say.

        Raises:
            BatchError: no such tensor, a tensor without dimensions, different sizes, a value of an unknown kind without
                a rule, or a rule for an argument that is not there.
        """
        sizes: dict[str, int] = {}
        met: set[str] = set()
        self._measure(batch, name, sizes, met)
        strange = [path for path in self._rules if path.partition("[")[0] == name and path not in met]
        if strange:
            raise BatchError(f"there is a batch rule for {strange[0]}, but no such argument; there are {sorted(met)}")
        if not sizes:
            raise BatchError(f"{name} holds no tensor that is split; give one with the batch as its first dimension")
        if len(set(sizes.values())) > 1:
            raise BatchError(
                f"{name} mixes batch sizes {sizes}; the first dimension is the batch in all of them, unless Pipeline's "
                f"batch_rules say otherwise, {_EXAMPLE}"
            )
        size = next(iter(sizes.values()))
        if size == 0:
            raise BatchError(f"{name} is empty (batch size 0); give at least one sample")
        return size

    def sizes(self, batch: Any, *, name: str, divide: Callable[[int], list[int]], num_microbatches: int) -> list[int]:
        """Returns how many samples each microbatch of the tree `batch` holds.

        A batch that is a list of microbatches, by the rule "list" for `name` itself, has those of its items, which may
        differ from one another in every dimension.

        Args:
            batch: as for `size`.
            name: "inputs" or "targets".
            divide: samples in the batch -> samples in each microbatch.
            num_microbatches: items of such a list.

        Raises:
            BatchError: as `size`; what `divide` raises; a list of another length.
        """
        if self._rules.get(name) != LIST:
            return divide(self.size(batch, name=name))
        if type(batch) not in (tuple, list) or len(batch) != num_microbatches:
            what = f"holds {len(batch)} items" if type(batch) in (tuple, list) else f"is a {type(batch).__name__}"
            raise BatchError(
                f'{name} {what}; its batch rule is "list": give a list of num_microbatches={num_microbatches} items'
            )
        plain = BatchRules()
        return [plain.size(item, name=path) for path, item in _items(batch, name)]

    def split(self, batch: Any, sizes: list[int], *, name: str) -> list[Any]:
        """Returns the microbatches of these sizes, tensors as views of `batch`."""
        rule = self._rules.get(name)
        if rule is not None:
            return _by_rule(rule, batch, sizes, name)
        if isinstance(batch, torch.Tensor):
            return _narrowed(batch, sizes, 0)
        if type(batch) in (tuple, list):
            columns = [self.split(item, sizes, name=path) for path, item in _items(batch, name)]
            return [type(batch)(column[i] for column in columns) for i in range(len(sizes))]
        if isinstance(batch, Mapping):
            named = {key: self.split(item, sizes, name=f'{name}["{key}"]') for key, item in batch.items()}
            return [{key: column[i] for key, column in named.items()} for i in range(len(sizes))]
        return split_block_mask(batch, sizes) if is_block_mask(batch) else [batch] * len(sizes)

    def _measure(self, value: Any, path: str, sizes: dict[str, int], met: set[str]) -> None:
        met.add(path)
        rule = self._rules.get(path)
        if rule is not None and not (isinstance(rule, int) and isinstance(value, torch.Tensor)):
            if isinstance(rule, int):
                raise BatchError(f"{path} is a {type(value).__name__}; the batch rule {rule} is for a tensor")
        elif isinstance(value, torch.Tensor):
            dim = rule if isinstance(rule, int) else 0
            if value.dim() == 0:
                raise BatchError(f"{path} is a tensor without dimensions; give it the batch as its first dimension")
            if not -value.dim() <= dim < value.dim():
                raise BatchError(f"{path} has {value.dim()} dimensions; its batch rule names dimension {dim}")
            sizes[path] = value.shape[dim]
        elif type(value) in (tuple, list) or isinstance(value, Mapping):
            for inner, item in _items(value, path):
                self._measure(item, inner, sizes, met)
        elif type(value) not in _PLAIN and not is_block_mask(value):
            raise BatchError(
                f"{path} is a {type(value).__name__}, for which there is no rule how to split it; tensors are split "
                "along their first dimension, None, bool, int, float and str go to every microbatch; else give "
                f"Pipeline batch_rules, {_EXAMPLE}"
            )


def even_sizes(size: int, num_microbatches: int) -> list[int]:
    """Returns num_microbatches equal sizes.

    Raises:
        BatchError: `size` is not a multiple of num_microbatches; the message gives values that work.
    """
    each, rest = divmod(size, num_microbatches)
    if rest or each == 0:
        up = -(-size // num_microbatches) * num_microbatches
        down = size - rest
        batch = f"{down} or {up}" if down else f"{up}"
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        nearest = min(divisors, key=lambda n: (abs(n - num_microbatches), n))
        raise BatchError(
            f"a batch of {size} samples does not divide into num_microbatches={num_microbatches}; use a batch of "
            f"{batch}, or num_microbatches={nearest}"
        )
    return [each] * num_microbatches


def ragged_sizes(size: int, num_microbatches: int) -> list[int]:
    """Returns up to num_microbatches sizes that differ by at most one and leave no microbatch empty."""
    count = min(size, num_microbatches)
    each, longer = divmod(size, count)
    return [each + (index < longer) for index in range(count)]


def to_device(batch: Any, device: torch.device) -> Any:
    """Returns `batch` with its tensors and block masks on `device`; what is of another kind stays as it is."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if type(batch) in (tuple, list):
        return type(batch)(to_device(item, device) for item in batch)
    if isinstance(batch, Mapping):
        return {key: to_device(item, device) for key, item in batch.items()}
    return batch.to(device) if is_block_mask(batch) else batch


def _items(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f'{path}["{key}"]', item) for key, item in value.items()]
    return [(f"{path}[{i}]", item) for i, item in enumerate(value)]


def _narrowed(tensor: torch.Tensor, sizes: list[int], dim: int) -> list[torch.Tensor]:
    if dim == 0:
        return [tensor[start : start + size] for start, size in _bounds(sizes)]
    return [tensor.narrow(dim, start, size) for start, size in _bounds(sizes)]


def _bounds(sizes: list[int]) -> list[tuple[int, int]]:
    return list(zip(accumulate(sizes, initial=0), sizes, strict=False))


def _by_rule(rule: BatchRule, value: Any, sizes: list[int], path: str) -> list[Any]:
    if isinstance(rule, int):
        return _narrowed(value, sizes, rule)
    if rule == REPLICATE:
        return [value] * len(sizes)
    pieces = list(rule(value, sizes)) if callable(rule) else value
    what = "its rule returned" if callable(rule) else "it holds"
    if type(pieces) not in (tuple, list) or len(pieces) != len(sizes):
        count = len(pieces) if type(pieces) in (tuple, list) else f"a {type(pieces).__name__}"
        raise BatchError(f"{path}: {what} {count} for {len(sizes)} microbatches; give one item for each")
    return list(pieces)
