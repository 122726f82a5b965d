"""Models for the runtime's tests: every kind of boundary a stage may have. Each takes and gives (4, 6) rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 6


def dense() -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())))


class Attention(nn.Module):
    """A pre-norm block over (batch, WIDTH) rows taken as one sequence of 1-wide heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).reshape(len(x), 3, 2, 3, 1).unbind(1)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.reshape(len(x), WIDTH))


def attention() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), Attention(), Attention(), nn.Linear(WIDTH, WIDTH))


class Part(nn.Module):
    """A layer with weights of its own whose boundary is what `function(linear, value)` makes of it."""

    def __init__(self, function: Callable[[nn.Linear, Any], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.function = function

    def forward(self, value: Any) -> Any:
        return self.function(self.linear, value)


def parts(*functions: Callable[[nn.Linear, Any], Any]) -> nn.Sequential:
    return nn.Sequential(*map(Part, functions))


def tuples() -> nn.Sequential:
    return parts(
        lambda f, x: (f(x).tanh(), x),
        lambda f, v: (f(v[0]), v[0], (v[1],)),
        lambda f, v: (f(v[0] * v[1]), v[2][0]),
        lambda f, v: f(v[0]).tanh() + v[1],
    )


def plain_values() -> nn.Sequential:
    """Dicts, lists with None, bools, ints, floats and text beside the tensors."""
    return parts(
        lambda f, x: {"hidden": f(x), "rest": [None, 3, True, "tanh", 0.5, []]},
        lambda f, v: {"rest": [*v["rest"], {}], "hidden": f(v["hidden"]) * v["rest"][1]},
        lambda f, v: [f(v["hidden"]) if v["rest"][2] is True else None, v["rest"][3], v["rest"][0], len(v["rest"])],
        lambda f, v: getattr(torch, v[1])(f(v[0])) * v[3] if v[2] is None else None,
    )


def mixed_dtypes() -> nn.Sequential:
    """Whole numbers, truth values and an empty tensor beside the floats."""
    return parts(
        lambda f, x: (f(x), (x > 0).long().argmax(1), x > 0, x[:0].to(torch.bfloat16)),
        lambda f, v: (f(v[0]).where(v[2], v[0]), v[1] + 1, v[2], v[3]),
        lambda f, v: (v[1], f(v[0]) * v[1][:, None] + len(v[3]), v[2].all()),
        lambda f, v: f(v[1]) * (v[0][:, None] + v[2]),
    )


def no_gradient_needed() -> nn.Sequential:
    """An output that is detached, one that nobody uses, one that needs its gradient."""
    return parts(
        lambda f, x: (f(x), f(x).detach(), f(x) * 2),
        lambda f, v: (f(v[0]), v[1]),
        lambda f, v: (v[1].detach(), f(v[0])),
        lambda f, v: f(v[1]) + v[0],
    )


def passed_through() -> nn.Sequential:
    """The input of a stage comes out of it as it is, alone, in another shape, and the same tensor twice."""
    return parts(
        lambda f, x: f(x),
        lambda f, x: x,
        lambda f, x: (x, x, x.reshape(-1)),
        lambda f, v: f(v[0]) * v[1] + v[2].reshape(v[0].shape),
    )


def skips() -> nn.Sequential:
    """Skip connections over several stages, in the boundary's tree."""
    return parts(
        lambda f, x: {"x": f(x), "first": x},
        lambda f, v: {**v, "x": f(v["x"]).tanh(), "second": v["x"]},
        lambda f, v: {**v, "x": f(v["x"]).tanh()},
        lambda f, v: f(v["x"]) * v["first"] + v["second"],
    )


def frozen_start() -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4)))
    model[:3].requires_grad_(False)
    return model


def frozen_middle() -> nn.Sequential:
    model = dense()
    model[2].requires_grad_(False)
    return model


def dropout() -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.4)) for _ in range(4)))


MODELS: dict[str, Callable[[], nn.Sequential]] = {
    model.__name__: model
    for model in (
        dense,
        attention,
        tuples,
        plain_values,
        mixed_dtypes,
        no_gradient_needed,
        passed_through,
        skips,
        frozen_start,
        frozen_middle,
    )
}


def made(name: str, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Returns a model of the zoo, the same on each call."""
    torch.manual_seed(7)
    return ({**MODELS, "dropout": dropout}[name])().to(dtype)


def batch(size: int = 8, dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Returns inputs and targets."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, WIDTH, generator=generator, dtype=dtype) for _ in range(2))
