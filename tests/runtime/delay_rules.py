"""One process that trains by an asynchronous rule: plain loops over microbatches and a list of old weights.

Nothing here knows a schedule or a pipeline. A rule says in closed form which version of a stage's weights microbatch i
meets; the literature's formulas, stages and microbatches counted from 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

Optimizers = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
Weights = dict[str, Tensor]


class Rule(NamedTuple):
    """Microbatch i meets `version(stage, i)`; `every(stage)` microbatches make the next."""

    version: Callable[[int, int], int]
    every: Callable[[int], int] = lambda _: 1


def stashing(num_ranks: int) -> Rule:
    """PipeDream: w(t+1) = w(t) - η∇f(w_1(t-p+1), …, w_p(t))."""
    return Rule(lambda stage, i: max(0, i - (num_ranks - 1 - stage)))


def vertical_sync(num_ranks: int) -> Rule:
    """PipeDream with vertical sync: every stage meets what the input stage meets."""
    return Rule(lambda _, i: max(0, i - (num_ranks - 1)))


def double_buffered(per_version: int) -> Rule:
    """2BW: W(t+1) = W(t) - η∇f(W(t-1))."""
    return Rule(lambda _, i: max(0, i // per_version - 1), lambda _: per_version)


def replicated(replicas: Sequence[int]) -> Rule:
    """PipeDream with n_k ranks a stage: ⌈N_k / n_k⌉ in flight on each, N_k ranks from stage k on; n_k make a step."""

    def version(stage: int, i: int) -> int:
        in_flight = -(-sum(replicas[stage:]) // replicas[stage])
        return max(0, i // replicas[stage] - (in_flight - 1))

    return Rule(version, lambda stage: replicas[stage])


def trained(
    model: nn.Sequential,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    microbatches: Sequence[tuple[Tensor, Tensor]],
    *,
    sizes: Sequence[int],
    rule: Rule,
    optimizer: Optimizers,
    weights: Sequence[float] | None = None,
) -> tuple[Weights, list[Tensor]]:
    """Returns the model's weights after all microbatches, and the loss of each.

    Args:
        model: stays as it is.
        loss_fn: as for a pipeline.
        microbatches: inputs and targets.
        sizes: layers of each stage.
        rule: which weights a microbatch meets.
        optimizer: makes one for every stage.
        weights: w_i; None for all the same.
    """
    model = copy.deepcopy(model)
    layers = list(model)
    bounds = [sum(sizes[:stage]) for stage in range(len(sizes) + 1)]
    stages = [nn.Sequential(*layers[a:b]) for a, b in pairwise(bounds)]
    optimizers = [optimizer(list(stage.parameters())) for stage in stages]
    history = [[_copy(stage)] for stage in stages]
    sums: list[list[Weights]] = [[] for _ in stages]
    losses = []
    w = list(weights or [1.0] * len(microbatches))
    alike = len({rule.every(stage) for stage in range(len(stages))}) == 1
    for i, (inputs, targets) in enumerate(microbatches):
        met = [
            {name: value.clone().requires_grad_() for name, value in history[k][rule.version(k, i)].items()}
            for k in range(len(stages))
        ]
        value = inputs
        for stage, own in zip(stages, met, strict=True):
            value = functional_call(stage, own, (value,))
        loss = loss_fn(value, targets)
        first = i - i % rule.every(0)
        share = w[i] / sum(w[first : first + rule.every(0)]) if alike else w[i] / (sum(w) / len(w))
        (loss * share).backward()
        losses.append(loss.detach())
        for k, own in enumerate(met):
            sums[k].append({name: value.grad for name, value in own.items()})
            if (i + 1) % rule.every(k) == 0:
                group = w[i + 1 - rule.every(k) : i + 1]
                divisor = 1.0 if alike else sum(each / (sum(w) / len(w)) for each in group)
                for name, parameter in stages[k].named_parameters():
                    total = sums[k][0][name]
                    for more in sums[k][1:]:
                        total = total + more[name]
                    parameter.grad = total if divisor == 1 else total / divisor
                optimizers[k].step()
                sums[k] = []
                history[k].append(_copy(stages[k]))
    return model.state_dict(), losses


def _copy(stage: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in stage.named_parameters()}


def trained_without_stash(
    model: nn.Sequential,
    microbatches: Sequence[tuple[Tensor, Tensor]],
    *,
    num_stages: int,
    per_version: int,
    optimizer: Optimizers,
    decay: float | None = None,
) -> Weights:
    """Returns the weights of (Linear, Tanh) stages after training by PipeMare's rule, layer by layer.

    Microbatch i's forward on stage k meets version max(0, i - 2(p-1-k)) // n, its backward version i // n; n
    microbatches make a version. With `decay`, the backward meets w - d·δ.
    """
    model = copy.deepcopy(model)
    linears: list[nn.Linear] = list(model)[::2]
    optimizers = [optimizer(list(linear.parameters())) for linear in linears]
    history = [[_copy(linear)] for linear in linears]
    movement = [{name: torch.zeros_like(value) for name, value in _copy(linear).items()} for linear in linears]
    sums: list[list[Weights]] = [[] for _ in linears]
    apart = [2 * (num_stages - 1 - k) for k in range(num_stages)]
    for i, (inputs, targets) in enumerate(microbatches):
        value, kept = inputs, []
        for k, ahead in enumerate(apart):
            old = history[k][max(0, i - ahead) // per_version]
            out = torch.tanh(nn.functional.linear(value, old["weight"], old["bias"]))
            kept.append((value, out))
            value = out
        last = value.clone().requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.mse_loss(last, targets) * (1 / per_version), last)
        for k in reversed(range(num_stages)):
            entered, out = kept[k]
            newest = history[k][i // per_version]
            if decay and apart[k]:
                moved = i // per_version - max(0, i - apart[k]) // per_version
                newest = {name: value.add(movement[k][name], alpha=-float(moved)) for name, value in newest.items()}
            grad = torch.ops.aten.tanh_backward(grad, out)
            x, w, b = (each.clone().requires_grad_() for each in (entered, newest["weight"], newest["bias"]))
            grad, dw, db = torch.autograd.grad(nn.functional.linear(x, w, b), (x, w, b), grad)
            sums[k].append({"weight": dw, "bias": db})
            if (i + 1) % per_version == 0:
                for name, parameter in linears[k].named_parameters():
                    total = sums[k][0][name]
                    for more in sums[k][1:]:
                        total = total + more[name]
                    parameter.grad = total
                optimizers[k].step()
                sums[k] = []
                before, after = history[k][-1], _copy(linears[k])
                history[k].append(after)
                if decay and apart[k]:
                    gamma = decay ** (1 / -(-apart[k] // per_version))
                    for name, moved in movement[k].items():
                        moved.mul_(gamma).add_(after[name] - before[name], alpha=1 - gamma)
    return model.state_dict()
