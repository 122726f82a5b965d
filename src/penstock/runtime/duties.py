"""What a rank does beside computing and sending, where its program says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from penstock.ir.program import Program
from penstock.runtime.asynchronous.stepping import Stepping
from penstock.runtime.memory.offloading import Offloading
from penstock.runtime.shared_weights.owners import Owners
from penstock.runtime.shared_weights.reduction import Reduction
from penstock.runtime.shared_weights.replicas import Replicas
from penstock.runtime.shared_weights.ties import Ties
from penstock.runtime.stage_work import StageWork
from penstock.runtime.transport.protocol import Transport


class Duties(NamedTuple):
    """What only some programs need; None where a program does not.

    Attributes:
        reduction: sums a stage's gradients over all that hold it.
        stepping: weight versions and optimizer steps.
        offloading: activations that other ranks keep.
        ties: parameters that this rank shares with others.
    """

    reduction: Reduction | None = None
    stepping: Stepping | None = None
    offloading: Offloading | None = None
    ties: Ties | None = None


def duties_of(
    program: Program,
    stages: Mapping[int, StageWork],
    *,
    transport: Transport,
    owners: Owners,
    replicas: Replicas | None,
    stepping: Stepping | None,
    device: torch.device,
) -> Duties:
    """Returns the duties of one rank in `program`.

    Args:
        program: a verified program.
        stages: this rank's stages, by number.
        transport: channels between owners, and to and from keepers, are open.
        owners: the copies of its stages in this pipeline.
        replicas: data-parallel replicas of this rank.
        stepping: where the program steps.
        device: where this rank computes.
    """
    shares = replicas is not None or bool(owners.shared)
    return Duties(
        Reduction(stages, owners, replicas) if shares else None,
        stepping,
        Offloading(program, stages, transport, device=device) if program.schedule.keepers else None,
    )
