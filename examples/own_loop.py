"""A training loop of your own, as processes or as threads.

torchrun --nproc-per-node 2 examples/own_loop.py     two processes over gloo
python examples/own_loop.py                          two ranks as threads: set a breakpoint anywhere
"""

import os

import torch
from torch import distributed as dist
from torch import nn

import penstock as ps

STEPS, SAMPLES = 30, 32


def build_model() -> nn.Sequential:
    """Returns a small residual network; every rank builds the same one."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), *[Residual(64) for _ in range(6)], nn.Linear(64, 1))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of the shape of x."""
        return x + self.body(x)


def make_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns inputs (samples, 8) and their targets (samples, 1)."""
    inputs = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(step))
    return inputs, inputs.square().sum(dim=1, keepdim=True).sqrt()


def train(model: nn.Sequential, transport: ps.Transport | None = None) -> float:
    """Returns the last loss, having run the same lines as every other rank."""
    pipe = ps.Pipeline(model, nn.functional.mse_loss, transport=transport, schedule="1F1B", num_microbatches=8)
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=3e-3)
    for step in range(STEPS):
        loss = pipe.step(*make_batch(step))
        norm = pipe.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if pipe.rank == 0 and step % 10 == 9:
            print(f"step {step + 1}  loss {loss.item():.4f}  gradient norm {norm.item():.3f}")
    held_out = pipe.evaluate(*make_batch(STEPS)).item()
    timeline = pipe.trace()[0]
    if pipe.rank == 0:
        print(f"held-out loss {held_out:.4f}; bubble {timeline.bubble_fraction:.1%} of the last step")
    pipe.close()
    return held_out


if __name__ == "__main__":
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        train(build_model())
        dist.destroy_process_group()
    else:
        network = build_model()
        first, *others = ps.run_ranks(lambda transport: train(network, transport), num_ranks=2)
        print("the same on every rank:", all(other == first for other in others))
