"""What stages compute, keep and hand on, skips included, is told and can be simulated."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.models.traced_models import batch_of, loss_of, made
from tests.runtime.runs import mse
from torch import nn

import penstock as ps
from penstock.errors import HandshakeError
from penstock.runtime.stage_sizes import StageSizes

FLOAT = 8


def unet_sizes(**arguments: object) -> list[tuple[StageSizes, str]]:
    model = made("UNet")
    before = copy.deepcopy(model.state_dict())

    def rank(transport: ps.LoopbackTransport) -> tuple[StageSizes, str]:
        pipe = ps.Pipeline(model, loss_of, transport=transport, num_microbatches=2, **arguments)
        sizes = pipe.sizes(batch_of("UNet", 2) if transport.rank == 0 else None)
        assert all(parameter.grad is None for parameter in pipe.parameters())
        return sizes, pipe.summary()

    parts = ps.run_ranks(rank, 3, timeout_seconds=20)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return parts


def test_a_boundary_counts_each_skip_that_passes_it():
    parts = unet_sizes(partition=["downs.1", "ups.1"])
    sizes = parts[0][0]
    assert all(other == sizes for other, _ in parts), "the same on every rank"
    first, second, last = sizes.stages
    outer, inner = 2 * 4 * 10 * 10 * FLOAT, 2 * 6 * 5 * 5 * FLOAT
    assert first.boundary == {"inc": "[2, 4, 10, 10] float64", "silu": "[2, 6, 5, 5] float64"}
    assert first.boundary_bytes == outer + inner
    assert second.boundary_bytes == outer + inner, "the outer skip passes on, the inner one has ended"
    assert last.boundary_bytes == 0
    assert [each.rank for each in sizes.stages] == [0, 1, 2]
    assert sum(each.parameters for each in sizes.stages) == sum(p.numel() for p in made("UNet").parameters())
    # Convolutions: 2 · outputs · (entries of one filter). inc: 2·4·100 outputs of 2·9; downs.0: 2·6·25 of 4·9.
    assert first.flops == 2 * (2 * 4 * 100 * 18 + 2 * 6 * 25 * 36)


def test_the_simulator_moves_what_really_passes():
    sizes = unet_sizes(partition=["downs.1", "ups.1"])[0][0]
    schedule = ps.one_f_one_b(3, 4)
    cluster = ps.Cluster((ps.Device(),) * 3, ((3, ps.Link(0.0, 1e9)),))
    with_skips = ps.simulate(schedule, sizes.costs, cluster=cluster)
    seconds = [each.end - each.start for each in with_skips.transmissions]
    assert seconds == pytest.approx([sizes.stages[0].boundary_bytes / 1e9] * 16)
    assert with_skips.makespan > ps.simulate(schedule, sizes.costs).makespan


def test_the_summary_shows_them_once_they_are_known():
    _, summary = unet_sizes(partition=["downs.1", "ups.1"])[2]
    head, titles, first, *_ = summary.splitlines()
    assert head == "one_f_one_b: 3 ranks, 2 microbatches"
    assert titles.split() == ["stage", "rank", "layers", "parameters", "bytes", "F", "kept", "boundary", "values"]
    assert first.split()[:6] == ["0", "0", "2", "(inc", "…", "downs.0)"]
    assert "8.594 KiB" in first
    assert "inc [2, 4, 10, 10] float64, silu [2, 6, 5, 5] float64" in first


def test_the_summary_counts_parameters_of_the_model_itself():
    model = made("TwoTowers")

    def rank(transport: ps.LoopbackTransport) -> str:
        return ps.Pipeline(model, loss_of, transport=transport, num_microbatches=1).summary()

    summary = ps.run_ranks(rank, 1, timeout_seconds=5)[0]
    entries = sum(parameter.numel() for parameter in model.parameters())
    assert f" {entries:,} parameters, {8 * entries / 1024:.4g} KiB, 100%" in summary


def test_before_anything_ran_the_summary_shows_shares_of_memory_in_bytes():
    """A stage of half the numbers in a type of twice the width holds half of the memory."""
    model = [nn.Linear(32, 16, bias=False), nn.Linear(16, 16, bias=False).double()]

    def rank(transport: ps.LoopbackTransport) -> str:
        return ps.Pipeline(model, mse, transport=transport, num_microbatches=1).summary()

    _, first, second = ps.run_ranks(rank, 2, timeout_seconds=5)[1].splitlines()
    assert first.endswith("512 parameters, 2 KiB, 50%")
    assert second.endswith("256 parameters, 2 KiB, 50%")


def test_what_is_kept_is_what_autograd_saves_beside_parameters_and_input():
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))

    def rank(transport: ps.LoopbackTransport) -> StageSizes:
        return ps.Pipeline(model, mse, transport=transport, num_microbatches=1).sizes(torch.ones(8, 4))

    (stage,) = ps.run_ranks(rank, 1, timeout_seconds=5)[0].stages
    assert stage.activation_bytes == 8 * 16 * 4, "the output of tanh, once, though the last layer keeps it too"
    assert stage.flops == 2 * 8 * (4 * 16 + 16 * 2)
    assert stage.parameter_bytes == 4 * stage.parameters == 4 * (80 + 34)


def test_a_stage_that_fails_is_told_on_every_rank():
    def rank(transport: ps.LoopbackTransport) -> None:
        pipe = ps.Pipeline([nn.Linear(4, 4), nn.Linear(3, 3)], mse, transport=transport, num_microbatches=1)
        with pytest.raises((RuntimeError, HandshakeError), match="mat1 and mat2 shapes cannot be multiplied"):
            pipe.sizes(torch.ones(2, 4))

    ps.run_ranks(rank, 2, timeout_seconds=5)
