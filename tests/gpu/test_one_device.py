"""Several ranks on one GPU, over the loopback transport: right, and never waiting for the device on the host."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.runtime.runs import mse
from torch import Tensor, nn

import penstock as ps
from penstock.testing import reference_gradients

pytestmark = pytest.mark.gpu

WIDTH = 64
SCHEDULES: dict[str, tuple[int, int]] = {
    "gpipe": (2, 4),
    "one_f_one_b": (4, 8),
    "interleaved_1f1b": (2, 4),
    "zb_h1": (2, 4),
    "zb_v": (2, 6),
    "dualpipe_v": (2, 6),
    "chimera": (2, 4),
}


def model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True) for _ in range(8)]
    return nn.Sequential(*layers).to("cuda", dtype)


def data(dtype: torch.dtype, samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(1)
    return tuple(torch.randn(samples, 16, WIDTH, dtype=dtype, device="cuda", generator=generator) for _ in range(2))


@pytest.mark.parametrize("name", SCHEDULES)
def test_gradients_are_those_of_the_unsplit_model(name: str) -> None:
    num_ranks, num_microbatches = SCHEDULES[name]
    whole, batch = model(torch.float64), data(torch.float64, 2 * num_microbatches)
    loss, grads = reference_gradients(whole, mse, *batch, num_microbatches=num_microbatches)

    def rank(transport: ps.LoopbackTransport) -> tuple[Tensor, dict[str, Tensor]]:
        pipe = ps.Pipeline(whole, mse, transport=transport, schedule=name, num_microbatches=num_microbatches)
        for _ in range(2):  # the second step receives into rings
            for parameter in pipe.parameters():
                parameter.grad = None
            found = pipe.step(*batch)
        return found, {key: parameter.grad for key, parameter in pipe.named_parameters()}

    for found, own in ps.run_ranks(rank, num_ranks, timeout_seconds=60):
        torch.testing.assert_close(found, loss, rtol=1e-12, atol=0)
        for key, grad in own.items():
            torch.testing.assert_close(grad, grads[key], rtol=1e-12, atol=1e-14, msg=key)


def on_one_rank(schedule: ps.Schedule, whole: nn.Sequential, use: Callable[[ps.Pipeline], object]) -> object:
    def rank(transport: ps.LoopbackTransport) -> object:
        pipe = ps.Pipeline(copy.deepcopy(whole), mse, transport=transport, schedule=schedule)
        return use(pipe)

    return ps.run_ranks(rank, 1, timeout_seconds=120)[0]


SPLIT = ps.parse_grid("split p=1 m=4 weights=flush placement=0\nrank 0: F0 I0 F1 I1 W0 F2 I2 W1 F3 I3 W2 W3")


@pytest.mark.parametrize("schedule", [ps.one_f_one_b(1, 8), SPLIT], ids=lambda schedule: schedule.name)
def test_the_host_never_waits_for_the_device_in_a_step(schedule: ps.Schedule) -> None:
    batch = data(torch.float32, 16)

    def use(pipe: ps.Pipeline) -> bool:
        pipe.step(*batch)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = pipe.step(*batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return bool(torch.isfinite(loss))

    assert on_one_rank(schedule, model(torch.float32), use)


def test_a_timeline_tells_when_the_device_ran_an_op_not_when_it_was_launched() -> None:
    """A kernel of 50 ms is launched in microseconds."""
    cycles = 100_000_000  # 50 to 100 ms at the clocks of today's devices

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            torch.cuda._sleep(cycles)
            return self.linear(x)

    def use(pipe: ps.Pipeline) -> list[float]:
        pipe.step(*data(torch.float32, 2))
        (timeline,) = pipe.trace()
        return [span.end - span.start for span in timeline.spans if span.op.kind.name == "F"]

    found = on_one_rank(ps.gpipe(1, 2), nn.Sequential(Slow().cuda()), use)
    assert all(seconds > 0.03 for seconds in found)
