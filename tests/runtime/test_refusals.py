"""What cannot work is refused by every rank, in the user's words, before any message between stages."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from tests.runtime.runs import Counting, mse
from torch import nn

import penstock as ps
from penstock.errors import HandshakeError, ModelError, PartitionError, ScheduleError, UserError


def layers(count: int) -> list[nn.Module]:
    return [nn.Linear(2, 2) for _ in range(count)]


def refusals(num_ranks: int = 2, **arguments: Any) -> list[Exception]:
    """Returns what each rank raised; an argument given as a list of `each(…)` differs by rank."""
    told: dict[int, Exception] = {}

    def rank(transport: ps.LoopbackTransport) -> None:
        counting = Counting(transport)
        mine = {name: value[transport.rank] if isinstance(value, Each) else value for name, value in arguments.items()}
        try:
            ps.Pipeline(
                mine.pop("model"), mine.pop("loss_fn", mse), transport=counting, **{"num_microbatches": 2, **mine}
            )
        except Exception as error:
            told[transport.rank] = error
        assert not counting.sent

    ps.run_ranks(rank, num_ranks, timeout_seconds=5)
    assert sorted(told) == list(range(num_ranks)), "every rank refuses"
    return [told[number] for number in range(num_ranks)]


class Each(list):
    """One value a rank."""


class Asking(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else x


class Scaled(nn.Sequential):
    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.scale = nn.Parameter(torch.ones(()))


def tied() -> nn.Sequential:
    model = nn.Sequential(*layers(4))
    model[3].weight = model[0].weight
    return model


ONE = nn.Linear(2, 2)
CASES: list[tuple[type[UserError], str, dict[str, Any]]] = [
    (PartitionError, r"\[1, 2\] leaves out layers \[3\] of 4", {"model": layers(4), "partition": [1, 2]}),
    (PartitionError, r"takes 5 layers; the model has 4", {"model": layers(4), "partition": [1, 4]}),
    (PartitionError, r"3 stages; the schedule has 2", {"model": layers(4), "partition": [1, 2, 1]}),
    (PartitionError, r"leaves stage 1 without layers", {"model": layers(4), "partition": [4, 0]}),
    (PartitionError, r"give layers per stage", {"model": layers(4), "partition": ["2", "2"]}),
    (PartitionError, r"1 layers cannot fill 2 stages", {"model": layers(1)}),
    (ModelError, r"layers 0 and 2 are the same module", {"model": [ONE, *layers(1), ONE]}),
    (ModelError, r"layer 1 is a int, not an nn\.Module", {"model": [nn.Linear(2, 2), 3]}),
    (ModelError, r"a dict cannot be cut", {"model": {"a": nn.Linear(2, 2)}}),
    (ModelError, r"a Linear cannot be cut", {"model": nn.Linear(2, 2)}),
    (ModelError, r"the model has no layers", {"model": []}),
    (ModelError, r"the forward of Asking cannot be followed", {"model": Asking(*layers(2))}),
    (ModelError, r"Scaled itself holds scale", {"model": Scaled(*layers(2))}),
    (ScheduleError, r'unknown schedule "1f2b"', {"model": layers(2), "schedule": "1f2b"}),
    (ScheduleError, r"needs num_microbatches", {"model": layers(2), "num_microbatches": None}),
    (ScheduleError, r"num_microbatches=0", {"model": layers(2), "num_microbatches": 0}),
    (ScheduleError, r"is for 3 ranks and this pipeline has 2", {"model": layers(3), "schedule": ps.gpipe(3, 2)}),
    (ScheduleError, r"num_microbatches=2 and a schedule of 4", {"model": layers(2), "schedule": ps.gpipe(2, 4)}),
]


@pytest.mark.parametrize(("kind", "text", "arguments"), CASES, ids=[text for _, text, _ in CASES])
def test_every_rank_refuses_in_the_users_words(kind: type[UserError], text: str, arguments: dict[str, Any]):
    for error in refusals(**arguments):
        assert isinstance(error, kind)
        with pytest.raises(kind, match=text):
            raise error


def test_a_tie_within_one_stage_is_fine():
    def rank(transport: ps.LoopbackTransport) -> list[str]:
        pipe = ps.Pipeline(tied(), mse, transport=transport, num_microbatches=2, partition=[4])
        assert "20 parameters" in pipe.summary()  # 4 layers of 4 + 2, but for the tied 4
        return [name for name, _ in pipe.named_parameters()]

    assert "3.weight" not in ps.run_ranks(rank, 1)[0]


def named(modules: list[nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(zip("abc", modules, strict=True)))


DIFFERENT: list[tuple[str, dict[str, Any]]] = [
    (
        r"different values of num_microbatches: rank 2 has 8; the other ranks have 4",
        {"model": layers(3), "num_microbatches": Each([4, 4, 8])},
    ),
    (r"of schedule: rank 1 has gpipe; .* one_f_one_b", {"schedule": Each(["1F1B", "gpipe", "1F1B"])}),
    (
        r"of partition: rank 0 has \[0, 2, 3, 4\]",
        {"model": layers(4), "partition": Each([[2, 1, 1], *[[1, 1, 2]] * 2])},
    ),
    (r"of layers: rank 1 has", {"model": Each([layers(3), named(layers(3)), layers(3)])}),
    (r"shapes of parameters", {"model": Each([layers(3), layers(3), [*layers(2), nn.Linear(2, 3)]])}),
    (r"of seed: rank 1 has 4", {"seed": Each([3, 4, 3])}),
    (r"of loss_fn: rank 0 has None", {"loss_fn": Each([None, mse, mse])}),
    (r"rank 1: unknown schedule", {"schedule": Each(["gpipe", "gpip", "gpipe"])}),
    (r"rank 2: partition=3; give layers per stage", {"partition": Each([None, None, 3])}),
]


@pytest.mark.parametrize(("text", "arguments"), DIFFERENT, ids=[text for text, _ in DIFFERENT])
def test_ranks_that_differ_are_named_with_both_values(text: str, arguments: dict[str, Any]):
    errors = refusals(3, **{"model": layers(3), **arguments})
    assert any(isinstance(error, HandshakeError) for error in errors)
    with pytest.raises(HandshakeError, match=text):
        raise next(error for error in errors if isinstance(error, HandshakeError))
