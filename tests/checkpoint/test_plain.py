"""What a scheduler or a data loader has in its state comes back from JSON as it was, types included."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.checkpoint.host_copy import HostCopy
from penstock.checkpoint.plain import decoded, encoded
from penstock.errors import CheckpointError

NUMPY = st.sampled_from(["u1", "i8", "f4", "f8", "c8", "?"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
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


@given(NUMPY, st.lists(st.integers(0, 3), max_size=3))
def test_numbers_and_arrays_of_numpy_come_back_as_such(kind: str, shape: list[int]) -> None:
    array = np.random.default_rng(0).integers(0, 200, shape).astype(kind)
    values = {"array": array, "turned": array.T, "number": np.ones((), kind)[()]}
    found = decoded(json.loads(msgspec.json.encode(encoded(values, where="state"))))
    for name, value in values.items():
        assert (type(found[name]), found[name].dtype) == (type(value), value.dtype)
        assert found[name].shape == value.shape
        assert np.array_equal(found[name], value)


def test_a_generator_of_numpy_goes_on() -> None:
    """Symptom: a loader could not be saved. Cause: there are arrays and numbers of numpy's in its state."""
    generator, other = np.random.default_rng(5), np.random.default_rng(6)
    generator.random(3)
    text = msgspec.json.encode(encoded(generator.bit_generator.state, where="state"))
    other.bit_generator.state = decoded(json.loads(text))
    assert other.random() == generator.random()
    old, fresh = np.random.RandomState(1), np.random.RandomState(2)
    fresh.set_state(decoded(json.loads(msgspec.json.encode(encoded(old.get_state(), where="state")))))
    assert fresh.random() == old.random()


def test_a_counter_stays_one() -> None:
    found = decoded(json.loads(msgspec.json.encode(encoded(Counter({30: 2, 80: 1}), where="milestones"))))
    assert type(found) is Counter
    assert sorted(found.elements()) == [30, 30, 80]


def test_anything_else_is_refused_with_its_place() -> None:
    with pytest.raises(CheckpointError, match=r"state\['worker'\]\[1\] is a function, which cannot be saved without a"):
        encoded({"worker": [1, shown]}, where="state")
    with pytest.raises(CheckpointError, match=r"state\['names'\] is an array of object"):
        encoded({"names": np.array([shown], dtype=object)}, where="state")


@pytest.mark.gpu
def test_a_copy_from_an_accelerator_is_of_the_moment_it_was_asked_for() -> None:
    tensor = torch.zeros(1 << 24, device="cuda")
    copies, ready = HostCopy().take({"own": tensor})
    tensor.fill_(1)
    ready()
    assert copies["own"].is_pinned()
    assert not copies["own"].any()
