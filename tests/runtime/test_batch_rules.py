"""Every argument follows its microbatch by a rule that is stated, or is refused."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from tests.runtime.runs import mse
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, create_mask

import penstock as ps
from penstock.errors import BatchError, UserError
from penstock.runtime.batch.microbatches import BatchRules
from penstock.testing import reference_gradients

WIDTH, LENGTH, SAMPLES, MICROBATCHES = 4, 6, 8, 4


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Entry(nn.Module):
    """Uses every argument, so that one of a wrong microbatch changes the gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH).double()

    def forward(self, batch: dict[str, Any]) -> Tensor:
        lengths, table = batch["lengths"], batch["table"]
        x = self.linear(batch["x"] + batch["positions"]) * batch["mask"].transpose(0, 1)
        rows = [row[:length].mean(0) for row, length in zip(x, lengths, strict=True)]
        return torch.stack(rows) @ table * batch["packed"][0].sum() * batch["scale"]


def halves(value: Tensor, sizes: list[int]) -> list[Tensor]:
    """cu_seqlens of the whole batch -> the lengths of each microbatch's samples."""
    return list(value.diff().split(sizes))


RULES: dict[str, Any] = {
    'inputs["mask"]': 1,
    'inputs["positions"]': "replicate",
    'inputs["table"]': "replicate",
    'inputs["packed"]': "list",
    'inputs["lengths"]': halves,
}


def arguments() -> tuple[dict[str, Any], Tensor]:
    inputs = {
        "x": numbers(SAMPLES, LENGTH, WIDTH, seed=1),
        "mask": numbers(LENGTH, SAMPLES, 1, seed=2),
        "positions": numbers(1, LENGTH, WIDTH, seed=3),
        "table": numbers(WIDTH, WIDTH, seed=4),
        "packed": [(numbers(1 + i, seed=i), None) for i in range(MICROBATCHES)],
        "lengths": torch.tensor([0, 1, 3, 6, 8, 9, 14, 18, 20]),
        "scale": 0.5,
    }
    return inputs, numbers(SAMPLES, WIDTH, seed=5)


@pytest.mark.parametrize("schedule", ["one_f_one_b", "zb_v", "chimera"])
def test_each_argument_follows_its_microbatch(schedule: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Entry(), *(nn.Linear(WIDTH, WIDTH).double() for _ in range(3)))
    data = arguments()
    loss, grads = reference_gradients(model, mse, *data, num_microbatches=MICROBATCHES, batch_rules=RULES)

    def rank(transport: ps.LoopbackTransport) -> tuple[Tensor, dict[str, Tensor]]:
        pipe = ps.Pipeline(
            model, mse, transport=transport, schedule=schedule, num_microbatches=MICROBATCHES, batch_rules=RULES
        )
        first = pipe.step(*data)
        assert torch.equal(pipe.step(*data), first), "the second step, whose shapes are known, is the first one"
        return first, {name: parameter.grad / 2 for name, parameter in pipe.named_parameters()}

    for found, own in ps.run_ranks(rank, 2, timeout_seconds=20):
        torch.testing.assert_close(found, loss, rtol=1e-12, atol=0)
        for name, grad in own.items():
            torch.testing.assert_close(grad, grads[name], rtol=1e-12, atol=1e-15, msg=name)


@pytest.mark.parametrize("schedule", ["gpipe", "zb_v", "dualpipe_v"])
def test_microbatches_of_a_list_may_differ_in_length_and_in_size(schedule: str) -> None:
    """Packed sequences: no two microbatches alike, and none is padded. Steps of other shapes before and after."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH).double() for _ in range(4)))
    rules = {"inputs": "list", "targets": "list"}

    def pieces(seed: int) -> list[Tensor]:
        return [numbers(1 + (i + seed) % 3, 2 + (i * seed) % 4, WIDTH, seed=seed + i) for i in range(MICROBATCHES)]

    calls = [(pieces(seed), pieces(seed)) for seed in (1, 2, 1)]
    expected = [
        reference_gradients(model, mse, *call, num_microbatches=MICROBATCHES, batch_rules=rules) for call in calls
    ]

    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        pipe = ps.Pipeline(
            model, mse, transport=transport, schedule=schedule, num_microbatches=MICROBATCHES, batch_rules=rules
        )
        for call, (loss, _) in zip(calls, expected, strict=True):
            torch.testing.assert_close(pipe.step(*call), loss, rtol=1e-12, atol=0)
            torch.testing.assert_close(pipe.evaluate(*call), loss, rtol=1e-12, atol=0)
        with pytest.raises(
            BatchError, match=r'inputs holds 3 items; its batch rule is "list": give a list of .*=4 items'
        ):
            pipe.step(calls[0][0][:3], calls[0][1])
        with pytest.raises(BatchError, match="inputs is a Tensor; its batch rule"):
            pipe.step(numbers(4, 3, WIDTH, seed=1), calls[0][1])
        return {name: parameter.grad for name, parameter in pipe.named_parameters()}

    for own in ps.run_ranks(rank, 2, timeout_seconds=20):
        for name, grad in own.items():
            total = sum(grads[name] for _, grads in expected)
            torch.testing.assert_close(grad, total, rtol=1e-12, atol=1e-15, msg=name)


class Attention(nn.Module):
    """What flex_attention computes, whose backward torch has for GPUs only: by the mask's blocks and its function."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 3 * WIDTH).double()

    def forward(self, batch: tuple[Tensor, Any]) -> Tensor:
        x, mask = batch
        allowed = create_mask(mask.mask_mod, len(x), 1, *mask.seq_lengths, device="cpu")
        blocks = mask.to_dense().bool().repeat_interleave(32, -1).repeat_interleave(32, -2)
        queries, keys, values = self.linear(x)[:, None].chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed & blocks)[:, 0]


@pytest.mark.parametrize("rows", [1, 4])
def test_block_masks_are_split_by_their_samples(rows: int) -> None:
    """Documents of other lengths in every sample; the mask's own function counts samples of the whole batch."""
    documents = torch.randint(5, (4, 128), generator=torch.Generator().manual_seed(0)).sort().values

    def same_document(sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = sample if rows > 1 else 0
        return documents[row, query] == documents[row, key]

    mask = create_block_mask(same_document, rows, None, 128, 128, device="cpu", BLOCK_SIZE=32)
    assert not mask.to_dense().all(), "some blocks are empty"
    torch.manual_seed(0)
    model = nn.Sequential(Attention(), nn.Linear(WIDTH, WIDTH).double())
    x, targets = numbers(4, 128, WIDTH, seed=1), numbers(4, 128, WIDTH, seed=2)
    loss = mse(model((x, mask)), targets)
    grads = torch.autograd.grad(loss, list(model.parameters()))

    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        pipe = ps.Pipeline(model, mse, transport=transport, num_microbatches=2)
        torch.testing.assert_close(pipe.step((x, mask), targets), loss.detach(), rtol=1e-12, atol=0)
        return {name: parameter.grad for name, parameter in pipe.named_parameters()}

    found = [grad for own in ps.run_ranks(rank, 2, timeout_seconds=60) for grad in own.values()]
    for grad, expected in zip(found, grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-15)


class Unknown:
    """A value of a kind that nobody has heard of."""


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "an unknown kind": ({"x": torch.ones(4, 2), "y": Unknown()}, {}, r'inputs\["y"\] is a Unknown, .* no rule how'),
    "a rule for nothing": (
        {"x": torch.ones(4, 2)},
        {'inputs["mask"]': 1},
        r'batch rule for inputs\["mask"\], but no such argument; there are .*inputs\["x"\]',
    ),
    "sizes that differ": (
        {"x": torch.ones(4, 2), "mask": torch.ones(2, 4)},
        {},
        r"mixes batch sizes .* unless Pipeline's batch_rules say otherwise",
    ),
    "a dimension too many": (
        {"x": torch.ones(4, 2)},
        {'inputs["x"]': 2},
        r'inputs\["x"\] has 2 dimensions; its batch rule names dimension 2',
    ),
    "a dimension of no tensor": (
        {"x": torch.ones(4, 2), "y": 3},
        {'inputs["y"]': 0},
        r'inputs\["y"\] is a int; the batch rule 0 is for a tensor',
    ),
    "a list too short": (
        {"x": torch.ones(4, 2), "y": [1, 2, 3]},
        {'inputs["y"]': "list"},
        r'inputs\["y"\]: it holds 3 for 2 microbatches; give one item for each',
    ),
    "a list that is none": (
        {"x": torch.ones(4, 2), "y": 3},
        {'inputs["y"]': "list"},
        r'inputs\["y"\]: it holds a int for 2 microbatches',
    ),
    "a function that returns too few": (
        {"x": torch.ones(4, 2), "y": 3},
        {'inputs["y"]': lambda value, sizes: [value]},
        r'inputs\["y"\]: its rule returned 1 for 2 microbatches',
    ),
    "nothing to split": ({"x": torch.ones(4, 2)}, {'inputs["x"]': "replicate"}, "inputs holds no tensor that is split"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_has_no_rule_is_an_error_and_never_a_silent_slice(case: str) -> None:
    batch, rules, message = WRONG[case]
    rules_of = BatchRules(rules)
    with pytest.raises(BatchError, match=message):
        size = rules_of.size(batch, name="inputs")
        rules_of.split(batch, [size // 2, size - size // 2], name="inputs")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"mask": 1}, "batch rule for 'mask'; a path begins with inputs or targets"),
        ({"inputs": "every"}, "batch rule 'every' for inputs; give a dimension"),
        ({"inputs": True}, "batch rule True for inputs"),
    ],
)
def test_rules_that_are_none_are_refused_when_the_pipeline_is_made(rules: dict[str, Any], message: str) -> None:
    def rank(transport: ps.LoopbackTransport) -> None:
        with pytest.raises(UserError, match=message):
            ps.Pipeline([nn.Linear(2, 2)], mse, transport=transport, num_microbatches=2, batch_rules=rules)

    ps.run_ranks(rank, 1)


def test_mappings_of_other_kinds_become_dicts() -> None:
    batch = OrderedDict(x=torch.arange(4), y=(torch.arange(4), None))
    first, second = BatchRules().split(batch, [1, 3], name="inputs")
    assert first["x"].tolist() == [0]
    assert second["y"][0].tolist() == [1, 2, 3]
