"""Several pipelines over the same ranks and modules, each with its optimizer, in the user's own loop."""

from __future__ import annotations

import copy

import torch
from tests.runtime.runs import mse
from tests.runtime.zoo import WIDTH
from torch import Tensor, nn

import penstock as ps

STEPS, SIZE = 4, 8


def layer() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())


def adversaries() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(3)
    return nn.Sequential(layer(), layer()).double(), nn.Sequential(layer(), nn.Linear(WIDTH, 1)).double()


def draws() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [
        tuple(torch.randn(SIZE, WIDTH, dtype=torch.float64, generator=generator) for _ in range(2))
        for _ in range(STEPS)
    ]


REAL, FAKE = torch.ones(SIZE, 1, dtype=torch.float64), torch.zeros(SIZE, 1, dtype=torch.float64)


def unsplit() -> dict[str, Tensor]:
    generator, critic = adversaries()
    making, judging = (torch.optim.Adam(model.parameters(), lr=0.01) for model in (generator, critic))
    for noise, real in draws():
        fake = generator(noise).detach()
        judging.zero_grad()
        mse(critic(torch.cat([real, fake])), torch.cat([REAL, FAKE])).backward()
        judging.step()
        making.zero_grad()
        mse(critic(generator(noise)), REAL).backward()
        making.step()
    return {f"{i}.{name}": p.detach() for i, m in enumerate((generator, critic)) for name, p in m.named_parameters()}


def split(transport: ps.LoopbackTransport, generator: nn.Sequential, critic: nn.Sequential) -> dict[str, Tensor]:
    """The generator's layers and the critic's on the same ranks in three pipelines, of three schedules."""
    made = ps.Pipeline(generator, transport=transport, schedule="gpipe", num_microbatches=4)
    judge = ps.Pipeline(critic, mse, transport=transport, schedule="zb_h1", num_microbatches=4)
    both = ps.Pipeline([*generator, *critic], mse, transport=transport, schedule="interleaved_1f1b", num_microbatches=4)
    making, judging = (torch.optim.Adam(pipe.parameters(), lr=0.01) for pipe in (made, judge))
    for noise, real in draws():
        fake = made.forward(noise, broadcast=True)
        judge.step(torch.cat([real, fake]), torch.cat([REAL, FAKE]))
        judging.step()
        for parameter in judge.parameters():
            parameter.requires_grad_(False)
        both.step(noise, REAL)
        making.step()
        for parameter in judge.parameters():
            parameter.requires_grad_(True)
        for optimizer in (making, judging):
            optimizer.zero_grad()
    return {f"{i}.{name}": p.detach() for i, pipe in enumerate((made, judge)) for name, p in pipe.named_parameters()}


def test_adversaries_train_as_in_one_process() -> None:
    models = adversaries()
    expected = unsplit()
    found = {}
    for part in ps.run_ranks(lambda transport: split(transport, *models), 2, timeout_seconds=20):
        found |= part
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_a_student_learns_from_its_teacher() -> None:
    """Distillation: what one pipeline returns is what the other is to give."""
    torch.manual_seed(5)
    teacher, student = nn.Sequential(layer(), layer()).double(), nn.Sequential(layer(), layer()).double()
    alone = copy.deepcopy(student)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    for inputs, _ in draws():
        optimizer.zero_grad()
        mse(alone(inputs), teacher(inputs).detach()).backward()
        optimizer.step()

    def rank(transport: ps.LoopbackTransport) -> dict[str, Tensor]:
        asked = ps.Pipeline(teacher, transport=transport, schedule="chimera", num_microbatches=4)
        pipe = ps.Pipeline(student, mse, transport=transport, schedule="zb_h2", num_microbatches=4)
        own = torch.optim.SGD(pipe.parameters(), lr=0.1)
        for inputs, _ in draws():
            own.zero_grad()
            pipe.step(inputs, asked.forward(inputs, broadcast=True))
            own.step()
        return {name: p.detach() for name, p in pipe.named_parameters()}

    for part in ps.run_ranks(rank, 2, timeout_seconds=20):
        for name, value in part.items():
            torch.testing.assert_close(value, alone.get_parameter(name), rtol=1e-10, atol=1e-13, msg=name)
