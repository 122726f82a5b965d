"""What data-parallel replicas must hold alike: plans when they are made, weights before the first step.

A pipeline agrees within itself, replicas with one another: every rank with those that hold the same stages elsewhere.

    replica 0:  rank 0 ── rank 1        ──  check_same, within the pipeline
                  ║         ║           ║   here, between replicas
    replica 1:  rank 0 ── rank 1
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from penstock.errors import BatchError, HandshakeError, RankFailedError
from penstock.runtime.agreement import CALLS, check_same
from penstock.runtime.shared_weights.replicas import Replicas
from penstock.runtime.transport.protocol import Transport

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> whole numbers of that size."""


def check_plans(
    transport: Transport, replicas: Replicas | None, facts: Mapping[str, Any], problem: Exception | None
) -> None:
    """Refuses pipelines that differ between ranks or between replicas, as `check_same` does.

    Raises:
        Exception: `problem`, on the rank that has it.
        HandshakeError: another rank's problem, or the first fact that differs with the ranks that differ.
    """
    try:
        check_same(transport, facts, problem)
    except RankFailedError:
        raise
    except Exception as error:  # the other replicas hear of it before this one raises
        if replicas is not None:
            replicas.gather_json({"facts": facts, "problem": str(error)})
        raise
    if replicas is None:
        return
    replies = replicas.gather_json({"facts": facts, "problem": ""})
    for index, reply in enumerate(replies):
        if reply["problem"]:
            raise HandshakeError(f"data-parallel replica {index}: {reply['problem']}")
    check_same(transport, {}, _difference(replicas, facts, [reply["facts"] for reply in replies]))


def agree_replicas(replicas: Replicas, call: str, *, number: int, total: float, refusal: Exception | None) -> float:
    """Returns the sum of all replicas' totals, once all of them make the same call; every rank calls it.

    Args:
        replicas: all of them call this.
        call: what the user called, one of CALLS.
        number: how many calls this rank has made.
        total: of the weights that this rank knows.
        refusal: why this replica, all of its ranks, cannot go on with its arguments.

    Raises:
        Exception: `refusal`; BatchError with its text in the other replicas.
        HandshakeError: replicas made different calls; the message names them.
    """
    rows = replicas.gather_numbers([CALLS.index(call), number, refusal is not None, total])
    if any(row[2] for row in rows):
        texts = replicas.gather_json("" if refusal is None else str(refusal))
        if refusal is not None:
            raise refusal
        raise BatchError(next(f"data-parallel replica {index}: {text}" for index, text in enumerate(texts) if text))
    if len({(row[0], row[1]) for row in rows}) > 1:
        made = [f"{replicas.named(i)} {CALLS[int(row[0])]} (its call {int(row[1])})" for i, row in enumerate(rows)]
        raise HandshakeError(
            f"data-parallel replicas called different things: {', '.join(made)}; every rank runs the same lines of the "
            "loop"
        )
    return math.fsum(row[3] for row in rows)


def check_weights(transport: Transport, replicas: Replicas, parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuses replicas that would train from different weights; every rank of every replica calls it.

    Raises:
        HandshakeError: the first parameter that differs and the ranks that hold it.
    """
    mine = {name: fingerprint(parameter) for name, parameter in parameters}
    rows = replicas.gather_json(mine)
    problem: Exception | None = None
    for index, row in enumerate(rows):
        name = next((name for name, number in mine.items() if row.get(name) != rows[0].get(name)), None)
        if name is not None:
            problem = HandshakeError(
                f"{name} of {replicas.named(index)} is not that of {replicas.named(0)}; give all replicas the same "
                "weights before the first step: call torch.manual_seed with one number before the model is made, or "
                "load one state into all of them"
            )
            break
    check_same(transport, {}, problem)


def fingerprint(tensor: torch.Tensor) -> int:
    """Returns the sum of a tensor's numbers taken as whole numbers, bit for bit, whatever order they are added in."""
    data = tensor.detach()
    if data.is_complex():
        data = torch.view_as_real(data)
    return int(data.view(_INTEGERS[data.element_size()]).sum(dtype=torch.int64).item())


def _difference(
    replicas: Replicas, facts: Mapping[str, Any], replies: list[Mapping[str, Any]]
) -> HandshakeError | None:
    for name in facts:
        for index, reply in enumerate(replies):
            if str(reply.get(name)) != str(replies[0].get(name)):
                return HandshakeError(
                    f"data-parallel replicas hold different values of {name}: {replicas.named(index)} has "
                    f"{reply.get(name)}, {replicas.named(0)} has {replies[0].get(name)}. Give every rank the same "
                    "model and arguments"
                )
    return None
