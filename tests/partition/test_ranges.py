"""Partitions: contiguous layer ranges that cover every layer once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Partition
from penstock.errors import PartitionError


@given(num_stages=st.integers(1, 20), more=st.integers(0, 50))
def test_a_uniform_partition_covers_every_layer_once_in_order(num_stages: int, more: int) -> None:
    partition = Partition.uniform(num_stages + more, num_stages)
    layers = [layer for stage in range(partition.num_stages) for layer in partition.layers_of(stage)]
    assert layers == list(range(num_stages + more))
    assert partition.num_stages == num_stages
    assert partition.num_layers == num_stages + more


@given(num_stages=st.integers(1, 20), more=st.integers(0, 50))
def test_uniform_stages_differ_by_one_layer_at_most_and_the_longer_come_first(num_stages: int, more: int) -> None:
    partition = Partition.uniform(num_stages + more, num_stages)
    sizes = [len(partition.layers_of(stage)) for stage in range(num_stages)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_sizes_add_up_to_boundaries() -> None:
    assert Partition.of_sizes([3, 5]) == Partition((0, 3, 8))
    assert list(Partition.of_sizes([3, 5]).layers_of(1)) == [3, 4, 5, 6, 7]


def test_a_partition_that_fits_is_returned() -> None:
    partition = Partition.of_sizes([1, 3])
    assert partition.check(4, 2) is partition


@pytest.mark.parametrize(
    ("boundaries", "said"),
    [
        ((), "partition () does not run from layer 0 to the last; write e.g. (0, 3, 6)"),
        ((0,), "partition (0,) does not run from layer 0 to the last; write e.g. (0, 3, 6)"),
        ((1, 3), "partition (1, 3) does not run from layer 0"),
        ((0, 2, 2, 4), "partition (0, 2, 2, 4) leaves stage 1 without layers: it would hold 0; give every stage one"),
        ((0, 4, 2), "partition (0, 4, 2) leaves stage 1 without layers: it would hold -2"),
        ((0, 1.5, 3), "partition (0, 1.5, 3): layers are whole numbers, e.g. (0, 3, 6)"),
        ((False, True), "partition (False, True): layers are whole numbers"),
    ],
)  # fmt: skip
def test_boundaries_that_are_no_partition_are_refused(boundaries: tuple[int, ...], said: str) -> None:
    with pytest.raises(PartitionError) as refused:
        Partition(boundaries)
    assert said in str(refused.value)


@pytest.mark.parametrize("sizes", [[], [2, 0], [0], [3, -1, 2], [1.5, 2], ["2"]])
def test_sizes_that_leave_a_stage_empty_or_are_no_numbers_are_refused(sizes: list[int]) -> None:
    """Symptom for words: a TypeError. Cause: they were summed before they were looked at."""
    with pytest.raises(PartitionError, match=r"^partition "):
        Partition.of_sizes(sizes)


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "said"),
    [
        (3, 4, "3 layers cannot fill 4 stages; use at most 3 stages, or more layers"),
        (0, 1, "0 layers cannot fill 1 stages"),
        (3, 0, "num_stages=0; use at least 1"),  # symptom: ZeroDivisionError
        (3, -2, "num_stages=-2; use at least 1"),
    ],
)
def test_sizes_without_a_uniform_partition_are_refused(num_layers: int, num_stages: int, said: str) -> None:
    with pytest.raises(PartitionError) as refused:
        Partition.uniform(num_layers, num_stages)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "said"),
    [
        (5, 3, "partition [3, 2] has 2 stages; the schedule has 3, so give 3 sizes"),
        (7, 2, "partition [3, 2] leaves out layers [5, 6] of 7; sizes must add up to 7"),
        (4, 2, "partition [3, 2] takes 5 layers; the model has 4, and sizes must add up to it"),
    ],
)
def test_a_partition_of_another_model_is_refused(num_layers: int, num_stages: int, said: str) -> None:
    with pytest.raises(PartitionError) as refused:
        Partition.of_sizes([3, 2]).check(num_layers, num_stages)
    assert said == str(refused.value)
