"""What all ranks must agree on: once at the start in full, and a row of numbers before every call."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from penstock.errors import BatchError, HandshakeError, UserError
from penstock.runtime.transport.protocol import Transport, gather_bytes, gather_json

CALLS = (
    "step",
    "evaluate",
    "forward",
    "forward(broadcast=True)",
    "trace",
    "clip_grad_norm_",
    "save_pretrained",
    "sizes",
    "run",
    "drain",
)
_UNKNOWN = -1


def check_same(transport: Transport, facts: Mapping[str, Any], problem: Exception | None) -> None:
    """Refuses a pipeline whose ranks hold different plans, or one of which could not make its own.

    Args:
        transport: all ranks call this.
        facts: what every rank must hold alike, the most telling first; plain values.
        problem: why this rank could not make its plan.

    Raises:
        Exception: `problem`, on the rank that has it.
        HandshakeError: another rank's problem, or the first fact that differs with the ranks that differ.
    """
    replies = gather_json(transport, {"facts": facts, "problem": _told(problem)})
    if problem is not None:
        raise problem
    for rank, reply in enumerate(replies):
        if reply["problem"]:
            raise HandshakeError(f"rank {rank}: {reply['problem']}")
    for name in facts:
        values = [str(reply["facts"].get(name)) for reply in replies]
        usual, count = Counter(values).most_common(1)[0]
        if count < len(values):
            others = ", ".join(f"rank {rank} has {value}" for rank, value in enumerate(values) if value != usual)
            raise HandshakeError(
                f"ranks hold different values of {name}: {others}; the other ranks have {usual}. Give every rank the "
                "same model and arguments"
            )


class Offer(NamedTuple):
    """What one rank knows about a call; a rank without data leaves the defaults.

    Attributes:
        inputs: samples in the inputs, on each rank of the first stage.
        targets: samples in the targets, on each rank of the last stage.
        signature: what decides the shapes of boundaries: structure, shapes and dtypes of all input microbatches on
            the rank of the first stage, and on every rank which of its parameters are trained.
    """

    inputs: int = _UNKNOWN
    targets: int = _UNKNOWN
    signature: int = _UNKNOWN


def agree(transport: Transport, call: str, *, number: int, offer: Offer, problem: Exception | None = None) -> Offer:
    """Returns what the ranks know together about this call, once all of them make the same one.

    Args:
        transport: all ranks call this.
        call: what the user called, one of CALLS.
        number: how many calls this rank has made.
        offer: what this rank knows.
        problem: why this rank cannot go on with its arguments.

    Raises:
        Exception: `problem`, on the rank that has it; BatchError with its text on the others.
        HandshakeError: the ranks made different calls; the message names them.
        BatchError: inputs and targets, or those of two ranks, of different sizes.
    """
    row = torch.tensor([CALLS.index(call), number, problem is not None, *offer])
    rows: list[list[int]] = transport.gather(row).tolist()
    calls = [CALLS[row[0]] for row in rows]
    if len(set(calls)) > 1 or len({row[1] for row in rows}) > 1:
        made = ", ".join(f"rank {rank} {calls[rank]} (its call {row[1]})" for rank, row in enumerate(rows))
        raise HandshakeError(f"ranks called different things: {made}; every rank runs the same lines of the loop")
    if any(row[2] for row in rows):
        texts = gather_bytes(transport, _told(problem).encode())
        if problem is not None:
            raise problem
        raise BatchError(next(f"rank {rank}: {text.decode()}" for rank, text in enumerate(texts) if text))
    offers = [Offer(*row[3:]) for row in rows]
    inputs = _one_size("inputs", [offer.inputs for offer in offers])
    targets = _one_size("targets", [offer.targets for offer in offers])
    if targets not in (_UNKNOWN, inputs):
        first = next(rank for rank, offer in enumerate(offers) if offer.inputs != _UNKNOWN)
        last = next(rank for rank, offer in enumerate(offers) if offer.targets != _UNKNOWN)
        raise BatchError(
            f"inputs on rank {first} hold {inputs} samples and "
            f"targets on rank {last} hold {targets}; give as many of both"
        )
    return Offer(inputs, targets, _digest(repr([offer.signature for offer in offers])))


def _one_size(what: str, sizes: Sequence[int]) -> int:
    """Returns the number of samples that all ranks with data have; several have it where the placement has replicas."""
    known = {size: rank for rank, size in reversed(list(enumerate(sizes))) if size != _UNKNOWN}
    if len(known) > 1:
        told = " and ".join(
            f"{size} samples on rank {rank}" for size, rank in sorted(known.items(), key=lambda i: i[1])
        )
        raise BatchError(f"{what} hold {told}; give the same whole batch to every rank that needs it")
    return next(iter(known), _UNKNOWN)


def signature_of(call: str, trained: Sequence[bool], microbatches: Sequence[Any]) -> int:
    """Returns a number that is the same for all inputs of the same structure, shapes and dtypes.

    Args:
        call: what the user called.
        trained: for each parameter of this rank whether it needs a gradient.
        microbatches: the inputs; empty on ranks that get none.
    """
    parts = [call, "".join("01"[flag] for flag in trained)]
    last: object = None
    for microbatch in microbatches:
        spec = _described(microbatch)
        parts.append("=" if spec == last else repr(spec))
        last = spec
    return _digest("|".join(parts))


def _described(value: Any) -> object:
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.requires_grad
    if type(value) in (tuple, list):
        return [type(value).__name__, *map(_described, value)]
    if isinstance(value, Mapping):
        return {key: _described(item) for key, item in value.items()}
    return value if isinstance(value, bool | int | float | str | None) else type(value).__name__


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _told(problem: Exception | None) -> str:
    """Returns a problem as the other ranks are told of it; an error that is none of ours with its type."""
    if problem is None:
        return ""
    return str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"
