"""Small models that are no list of layers: residual networks, U-Nets, several inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """A residual block with an `if` of its own and an activation that writes into its input."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, out, 3, padding=1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(width, out, 1) if width != out else None

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        return self.conv(self.act(self.norm(x))) + skip


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Bottleneck(4, 4), Bottleneck(4, 4))
        self.layer2 = nn.Sequential(Bottleneck(4, 6), Bottleneck(6, 6))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.stem(x).relu(), 2)
        x = self.pool(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(x, 1))


class Up(nn.Module):
    def __init__(self, width: int, skip: int, out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, skip, 2, stride=2)
        self.conv = nn.Conv2d(2 * skip, out, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        if x.shape[-1] != skip.shape[-1]:  # an odd size: a block may look at it
            x = functional.pad(x, [0, skip.shape[-1] - x.shape[-1], 0, skip.shape[-2] - x.shape[-2]])
        return functional.silu(self.conv(torch.cat([skip, x], 1)))


class UNet(nn.Module):
    """Three levels, so two skips, the outer one over every block of the inner ones; one pool for all levels."""

    def __init__(self) -> None:
        super().__init__()
        self.inc = nn.Conv2d(2, 4, 3, padding=1)
        self.downs = nn.ModuleList([nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)])
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.0)
        self.ups = nn.ModuleList([Up(8, 6, 6), Up(6, 4, 4)])
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        x = self.inc(x)
        for down in self.downs:
            skips.append(x)
            x = functional.silu(down(self.pool(x)))
        x = self.drop(x)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = up(x, skip=skip)
        return self.out(x)


class TwoTowers(nn.Module):
    """Two inputs, a mask by default, a parameter of the model itself, three outputs, one of them a number."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
        self.right = nn.Linear(3, 6)
        self.mix = nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.rand(6))
        self.register_buffer("shift", torch.rand(6))
        self.heads = nn.ModuleDict({"mean": nn.Linear(6, 2), "spread": nn.Linear(6, 2)})

    def forward(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        x, (rows, width) = a, a.shape
        for layer in self.left:
            x = torch.tanh(layer(x)) * self.scale
        y = self.right(b) + self.shift
        if mask is not None:
            y = y * mask
        z = self.mix(torch.cat([x, y.to(x.dtype)], dim=-1)) + self.scale * a
        z = z + torch.arange(width, device=b.device, dtype=b.dtype)
        return {"mean": self.heads["mean"](z), "spread": (self.heads["spread"](z) * rows, b), "width": width}


class Tied(nn.Module):
    """An embedding that is the head, and a block that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.norm = nn.LayerNorm(6)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.block(self.embed(ids))
        x = self.block(self.norm(x))
        return functional.linear(x, self.embed.weight)


class Wrapped(nn.Module):
    """A backbone in a wrapper, dropout by function, and a second head in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet()
        self.aux = nn.Linear(5, 5)
        self.head = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(self.backbone(x), 0.3, training=self.training)
        if self.training:
            return self.head(x) + 0.1 * self.aux(x)
        return self.head(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    model.__name__: model for model in (ResNet, UNet, TwoTowers, Tied, Wrapped)
}


def made(name: str) -> nn.Module:
    """Returns a model in fp64, the same on each call."""
    torch.manual_seed(3)
    return MODELS[name]().double()


def batch_of(name: str, rows: int = 4) -> Any:
    """Returns inputs for it."""
    rng = torch.Generator().manual_seed(5)
    shapes = {"ResNet": (3, 8, 8), "Wrapped": (3, 8, 8), "UNet": (2, 10, 10)}
    if name in shapes:
        return torch.randn(rows, *shapes[name], generator=rng, dtype=torch.float64)
    if name == "Tied":
        return torch.randint(11, (rows, 7), generator=rng)
    return tuple(torch.randn(rows, width, generator=rng, dtype=torch.float64) for width in (6, 3))


def loss_of(output: Any, target: Tensor) -> Tensor:
    """Returns a loss of every tensor of an output, whatever its form."""
    if isinstance(output, dict):
        mean, (spread, kept) = output["mean"], output["spread"]
        return (mean * target.mean()).square().mean() + spread.sin().mean() + kept.mean() * output["width"]
    return (output.flatten(1) * target.mean()).cos().mean()
