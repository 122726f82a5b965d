"""Stages begin where the user says, by the names of layers."""

import pytest
import torch
from tests.models.traced_models import batch_of, loss_of, made

import penstock as ps
from penstock.errors import PartitionError
from penstock.models.cut_points import partition_at

NAMES = ["embed", *(f"blocks.{index}" for index in range(6)), "norm", "head.0", "head.1"]


@pytest.mark.parametrize(
    ("points", "boundaries"),
    [
        (["blocks.2", "norm"], (0, 3, 7, 10)),
        (["norm", "blocks.2"], (0, 3, 7, 10)),
        ([r"blocks\.[024]"], (0, 1, 3, 5, 10)),
        (["blocks", "head"], (0, 1, 8, 10)),
        ([r"blocks\.3", "head.1"], (0, 4, 9, 10)),
    ],
)
def test_a_stage_begins_at_each_point(points: list[str], boundaries: tuple[int, ...]):
    assert partition_at(NAMES, points).boundaries == boundaries


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (["embed"], "'embed' is the first layer, where stage 0 begins anyway"),
        (["norm", "nor."], r"names norm twice"),
        (["block.2"], r"partition='block\.2'; give layers per stage.* Did you mean \"blocks\.2\"\?"),
        (["blocks.2.mlp"], r"blocks\.2\.mlp lies inside blocks\.2, which stays whole; begin a stage at 'blocks\.2'"),
        (["blocks.(2"], "neither a layer nor a regular expression"),
    ],
)
def test_a_point_that_is_none_is_told(points: list[str], message: str):
    with pytest.raises(PartitionError, match=message):
        partition_at(NAMES, points)


def test_a_pipeline_takes_points_and_says_how_many_it_needs():
    def rank(transport: ps.LoopbackTransport) -> list[int]:
        model, arguments = made("ResNet"), {"transport": transport, "num_microbatches": 2}
        pipe = ps.Pipeline(model, loss_of, partition=["layer1.1", "layer2.0"], **arguments)
        pipe.step(batch_of("ResNet"), torch.ones(4, dtype=torch.float64))
        with pytest.raises(PartitionError, match=r"has 2 stages; the schedule has 3"):
            ps.Pipeline(made("ResNet"), partition="layer2", **arguments)
        return list(pipe.plan.partition.boundaries)

    assert ps.run_ranks(rank, 3, timeout_seconds=20) == [[0, 2, 3, 6]] * 3
