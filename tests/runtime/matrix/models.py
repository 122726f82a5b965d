"""Models of the matrix: each takes how many layers it is to have, one a stage, and is the same on every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, VOCABULARY, LENGTH = 6, 2, 11, 5
RANK = 2  # of an adapter


class Body(nn.Module):
    """A residual layer, with whatever `inside` between its products."""

    def __init__(self, inside: Callable[[], nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.inside, self.down = nn.Linear(WIDTH, 5, bias=False), inside(), nn.Linear(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.inside(self.up(self.norm(x))))


def _seeded(layers: Callable[[], list[nn.Module]]) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return nn.Sequential(*layers()).double()


def dense(count: int) -> nn.Sequential:
    return _seeded(lambda: [Body() for _ in range(count)])


def dropped(count: int) -> nn.Sequential:
    return _seeded(lambda: [Body(lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.3))) for _ in range(count)])


def normed(count: int) -> nn.Sequential:
    """Batch norms, whose statistics are buffers, and dropout."""
    return _seeded(
        lambda: [Body(lambda: nn.Sequential(nn.Tanh(), nn.BatchNorm1d(5), nn.Dropout(0.2))) for _ in range(count)]
    )


def attending(count: int) -> nn.Sequential:
    """torch's own transformer layers, with nn.MultiheadAttention inside."""
    return _seeded(
        lambda: [nn.TransformerEncoderLayer(WIDTH, HEADS, 8, dropout=0.0, batch_first=True) for _ in range(count)]
    )


def worded(count: int) -> nn.Sequential:
    """A language model: embedding, bodies, head."""
    model = dense(count)
    with torch.random.fork_rng():
        torch.manual_seed(12)
        embedding, head = nn.Embedding(VOCABULARY, WIDTH).double(), nn.Linear(WIDTH, VOCABULARY, bias=False).double()
    model[0] = nn.Sequential(embedding, model[0])
    model[-1] = nn.Sequential(*([*model[-1]] if count == 1 else [model[-1]]), head)
    return model


def tied(count: int) -> nn.Sequential:
    """The embedding is the head."""
    model = worded(count)
    model[-1][-1].weight = model[0][0].weight
    return model


def tied_throughout(count: int) -> nn.Sequential:
    """One product and its bias in every layer."""
    model = dense(count)
    for body in model[1:]:
        body.up.weight, body.down.bias = model[0].up.weight, model[0].down.bias
    return model


def tied_inside(count: int) -> nn.Sequential:
    """Two pairs of layers share a product each, none of them at an end if there are enough."""
    model = dense(count)
    if count > 1:
        model[-1].down.weight = model[count // 2 - 1].down.weight
    if count > 2:
        model[-2].up.weight = model[1].up.weight
    return model


class Auxiliary(Body):
    """Adds a loss of its own, another one in each layer."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, value: Any) -> dict[str, Tensor]:
        value = value if isinstance(value, dict) else {"x": value, "loss": value.new_zeros(())}
        x = super().forward(value["x"])
        return {"x": x, "loss": value["loss"] + self.weight * self.up(x).square().mean()}


def auxiliary(count: int) -> nn.Sequential:
    return _seeded(lambda: [Auxiliary(0.1 * (1 + layer % 3)) for layer in range(count)])


class Tree(Body):
    """A boundary of tensors of several types, plain values, None, a skip over all stages, one without a gradient."""

    def forward(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            value = {"x": value, "first": value * self.down.bias, "plain": (1, None, [True, "tanh", 0.5])}
            value |= {"where": value["x"] > 0, "index": torch.arange(len(value["x"]))}
        count, _, rest = value["plain"]
        x = super().forward(value["x"]).where(value["where"], value["x"]) + rest[2] * value["index"][:, None] / 10
        fixed = x.detach() * 0.1
        return {**value, "x": x, "plain": (count + 1, None, rest), "fixed": fixed}


def trees(count: int) -> nn.Sequential:
    return _seeded(lambda: [Tree() for _ in range(count)])


class Adapted(nn.Module):
    """A frozen body with a trained adapter beside it, where there is one."""

    def __init__(self, *, adapter: bool) -> None:
        super().__init__()
        self.body = Body().requires_grad_(False)
        self.a = nn.Linear(WIDTH, RANK, bias=False) if adapter else None
        self.b = nn.Linear(RANK, WIDTH, bias=False) if adapter else None

    def forward(self, x: Tensor) -> Tensor:
        change = self.b(self.a(x)) if self.a is not None and self.b is not None else 0
        return self.body(x) + change


def adapted(count: int) -> nn.Sequential:
    """LoRA on the last half of a frozen trunk."""
    return _seeded(lambda: [Adapted(adapter=layer >= count // 2) for layer in range(count)])


def _freeze(model: nn.Sequential, chosen: Callable[[int, str], bool]) -> nn.Sequential:
    for layer, body in enumerate(model):
        for name, parameter in body.named_parameters():
            parameter.requires_grad_(not chosen(layer, name))
    return model


def frozen_start(count: int) -> nn.Sequential:
    return _freeze(dense(count), lambda layer, _: layer < count // 2)


def frozen_end(count: int) -> nn.Sequential:
    return _freeze(dense(count), lambda layer, _: layer >= max(1, count // 2))


def frozen_here_and_there(count: int) -> nn.Sequential:
    """Every second layer, and all products but one of the others."""
    return _freeze(dense(count), lambda layer, name: layer % 2 == 1 or name == "up.weight")


def biases_alone(count: int) -> nn.Sequential:
    return _freeze(dense(count), lambda _, name: name != "down.bias")


def single(count: int) -> nn.Sequential:
    """In fp32, for autocast."""
    return dense(count).float()


def single_attending(count: int) -> nn.Sequential:
    return attending(count).float()


def word_loss(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=-100)


def words(target: Tensor) -> float:
    return float((target != -100).sum())


def summed_loss(output: dict[str, Tensor], target: Tensor) -> Tensor:
    return functional.mse_loss(output["x"], target) + output["loss"]


def tree_loss(output: dict[str, Any], target: Tensor) -> Tensor:
    return functional.mse_loss(output["x"] + output["first"] + output["fixed"], target) * output["plain"][0]


def float_loss(output: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(output.float(), target.float())
