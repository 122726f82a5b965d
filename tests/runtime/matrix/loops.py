"""Training loops of the matrix. Each returns what is to be equal: losses, gradients, weights, buffers, calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from tests.runtime.matrix.subjects import Found, Subject
from torch import Tensor, nn

import penstock as ps

STEPS = 3


def _state(subject: Subject) -> Found:
    grads = {f"gradient of {name}": grad.detach().clone() for name, grad in subject.grads().items()}
    return grads | {f"buffer {name}": value.clone() for name, value in subject.buffers().items()}


def _finite(found: Found) -> Found:
    wrong = [name for name, value in found.items() if not bool(value.isfinite().all())]
    assert not wrong, f"no numbers in {wrong}"
    return {name: value.clone() for name, value in found.items()}


def _weights(subject: Subject) -> Found:
    return {f"weight {name}": parameter.detach().clone() for name, parameter in subject.named().items()}


def accumulate(subject: Subject) -> Found:
    """Steps that add up, with evaluations of a ragged batch before, between and after."""
    found = {"evaluated before": subject.evaluate(9)}
    statistics = "buffers, evaluated" if subject.has_buffers() else "evaluated"
    for k in range(STEPS):
        found[f"loss {k}"] = subject.step(k)
        before = _finite(subject.grads())
        found[f"{statistics} after {k}"] = subject.evaluate(9)
        changed = [name for name, grad in subject.grads().items() if not torch.equal(before[name], grad)]
        assert not changed, f"an evaluation changed the gradients of {changed}"
    found |= _state(subject)
    return found if subject.alike else {what: value for what, value in found.items() if not what.startswith("buffer")}


def hooked(subject: Subject) -> Found:
    """Gradient hooks fire once a step on all of its gradient, and what they return counts."""
    seen: Found = {}
    calls: Counter[str] = Counter()

    def note(name: str, grad: Tensor) -> Tensor:
        calls[name] += 1
        seen[name] = seen[name] + grad if name in seen else grad.clone()
        return 2 * grad

    for name, parameter in subject.named().items():
        subject.on_grad(parameter, partial(note, name))
        subject.after_accumulation(parameter, lambda _, name=name: calls.update([f"{name} afterwards"]))
    losses = {f"loss {k}": subject.step(k) for k in range(STEPS)}
    counted = {f"calls for {name}": torch.tensor(count / subject.inside) for name, count in calls.items()}
    return (
        losses | counted | {f"seen of {name}": grad / subject.inside for name, grad in seen.items()} | _state(subject)
    )


def stepping_in_backward(subject: Subject) -> Found:
    """An optimizer of one parameter each that steps as soon as its gradient is there."""

    def step(parameter: nn.Parameter) -> None:
        torch.optim.SGD([parameter], lr=0.05).step()
        parameter.grad = None

    for parameter in subject.named().values():
        subject.after_accumulation(parameter, step)
    losses = {f"loss {k}": subject.step(k) for k in range(STEPS)}
    return losses | _state(subject) | _weights(subject)


def trained(subject: Subject) -> Found:
    """Five steps of AdamW with a clipped norm, some of two batches."""
    optimizer = torch.optim.AdamW(subject.named().values(), lr=0.01)
    found: Found = {}
    for k in range(5):
        for part in range(1 + k % 2):
            found[f"loss {k}.{part}"] = subject.step(k + 5 * part)
        found[f"norm {k}"] = subject.clip(0.3)
        optimizer.step()
        optimizer.zero_grad()
    return found | _weights(subject)


def thawed(subject: Subject) -> Found:
    """Layers are frozen and thawed between steps that add up."""
    found: Found = {}
    for k in range(4):
        for name, parameter in subject.named().items():
            parameter.requires_grad_(k % 2 == 0 or int(name.split(".")[0]) % 2 == k // 2)
        found[f"loss {k}"] = subject.step(k)
    return found | _state(subject)


def in_bf16(subject: Subject) -> Found:
    """The steps are in one autocast region, whose copies of the weights outlive a step."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = {f"loss {k}": subject.step(k) for k in range(STEPS)}
    return losses | _state(subject)


def scaled(subject: Subject) -> Found:
    """fp16: the step that overflows is skipped, everywhere, and the scale goes down and up again."""
    scaler = ps.LossScaler(initial=2.0**10, interval=2)
    optimizer = torch.optim.SGD(subject.named().values(), lr=0.1)
    found: Found = {}
    for k in range(4):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = subject.step(k, loss_scale=scaler.scale)
        finite = scaler.unscale_(subject.pipe)
        if finite:
            found[f"loss {k}"] = loss
            optimizer.step()
        found[f"scale {k}"] = torch.tensor([scaler.scale, float(finite)])
        optimizer.zero_grad()
    return found | _weights(subject)


Loop = Callable[[Subject], Found]
