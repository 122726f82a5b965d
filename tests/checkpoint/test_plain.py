"""What a scheduler or a data loader has in its state comes back from JSON as it was, types included."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.checkpoint.host_copy import HostCopy
from penstock.checkpoint.plain import decoded, encoded
from penstock.errors import CheckpointError

LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary()
KEYS = st.text() | st.integers(-9, 9) | st.tuples(st.integers(0, 3), st.text())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


def shown(value: Any) -> str:
    """Types and bits alike; NaN equals NaN."""
    return repr(value)


@given(VALUES)
def test_any_plain_value_comes_back(value: Any) -> None:
    text = msgspec.json.encode(encoded(value, where="state"))
    assert shown(decoded(json.loads(text))) == shown(value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(2.5),
        torch.arange(6).reshape(2, 3),
        torch.ones(0, 4),
        torch.tensor([math.nan]).bfloat16(),
        torch.tensor([True]),
    ],
    ids=str,
)
def test_tensors_come_back_bit_for_bit(tensor: torch.Tensor) -> None:
    found = decoded(json.loads(msgspec.json.encode(encoded({"own": tensor}, where="state"))))["own"]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    flat = [each.reshape(-1).view(torch.uint8).tolist() for each in (found, tensor)]
    assert flat[0] == flat[1]


def test_a_counter_stays_one() -> None:
    found = decoded(json.loads(msgspec.json.encode(encoded(Counter({30: 2, 80: 1}), where="milestones"))))
    assert type(found) is Counter
    assert sorted(found.elements()) == [30, 30, 80]


def test_anything_else_is_refused_with_its_place() -> None:
    with pytest.raises(CheckpointError, match=r"state\['worker'\]\[1\] is a function, which cannot be saved without a"):
        encoded({"worker": [1, shown]}, where="state")


@pytest.mark.gpu
def test_a_copy_from_an_accelerator_is_of_the_moment_it_was_asked_for() -> None:
    tensor = torch.zeros(1 << 24, device="cuda")
    copies, ready = HostCopy().take({"own": tensor})
    tensor.fill_(1)
    ready()
    assert copies["own"].is_pinned()
    assert not copies["own"].any()
