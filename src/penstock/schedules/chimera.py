"""Chimera: pipelines that run down and up the same ranks and fill each other's bubbles."""

from __future__ import annotations

from itertools import accumulate, pairwise

from penstock.errors import ScheduleError
from penstock.ir.ops import Op, OpKind
from penstock.ir.placement import Placement
from penstock.ir.schedule import Schedule
from penstock.schedules.sizes import check_sizes


def chimera(num_ranks: int, num_microbatches: int, *, num_replicas: int = 2) -> Schedule:
    """Returns the schedule of Li and Hoefler 2021 (Chimera, section 3), with R = 2f pipelines, half of them upwards.

        rank 0: F0   F1   .    F2@1 B2@1 F3@1 B3@1 B0   .    B1
        rank 1: .    F0   F2@1 F1   F3@1 B2@1 B0   B3@1 B1   .
        rank 2: .    F2@1 F0   F3@1 F1   B0   B2@1 B1   B3@1 .
        rank 3: F2@1 F3@1 .    F0   B0   F1   B1   B2@1 .    B3@1

    Each replica is a pipeline through all ranks, two of them from rank 0 down and from rank p-1 up, further pairs
    started 2p/R ranks on, so every rank holds R stages: R copies of the parameters, whose gradients are summed as
    soon as they are complete, in bubbles where there are some. With F = B = 1, microbatch k of a pipeline has its F on
    stage s in slot 2k+s, its B in slot 2k+2p-1-s. That is a unit of p microbatches, p/R a pipeline. More than p are
    units one after the other (the paper's direct concatenation), each 2p slots later, so that it starts in the
    bubbles of the unit before. A unit of fewer microbatches shares them out as evenly as possible.

    For K full units, m = K·p: bubble time (2p/R-2)·(K·max(F,B) - (K-1)·min(F,B)). For F = B that is bubble_fraction
    (p-R)/(R·m+p-R), for two replicas (p-2)/(2m+p-2); for B = 2F, m = p and two replicas (p-2)/(1.5m+p-2). None for
    R = p. With d = 2p/R and j = i mod d, peak activations p - d/2 + 1 + min(j, d-1-j) on rank i for m ≥ p. Defined for
    every even p, m ≥ 1 and every even R that divides p.

    Args:
        num_ranks: p.
        num_microbatches: m, over all replicas.
        num_replicas: R, copies of the model.

    Raises:
        ScheduleError: p, m or R below 1, p or R odd, or R that does not divide p.
    """
    check_sizes("chimera", num_ranks=num_ranks, num_microbatches=num_microbatches, num_replicas=num_replicas)
    if num_ranks % 2:
        raise ScheduleError(
            f"chimera: num_ranks={num_ranks}; pipelines down and up would meet in the same slots of a rank, use an "
            f"even number, e.g. num_ranks={num_ranks + 1}"
        )
    if num_replicas % 2 or num_ranks % num_replicas:
        raise ScheduleError(
            f"chimera: num_replicas={num_replicas} on {num_ranks} ranks; half of them run down, half up, and all share "
            f"{num_ranks} microbatches equally, use an even divisor of {num_ranks}, e.g. num_replicas=2"
        )
    placement = _placement(num_ranks, num_replicas)
    timed: list[list[tuple[int, Op]]] = [[] for _ in range(num_ranks)]
    for first in range(0, num_microbatches, num_ranks):
        unit = range(first, min(first + num_ranks, num_microbatches))
        for replica, microbatches in enumerate(_shares(unit, num_replicas)):
            for index, microbatch in enumerate(microbatches):
                for stage in range(num_ranks):
                    forward, backward = (Op(kind, stage, microbatch, replica) for kind in (OpKind.F, OpKind.B))
                    enters = 2 * (first + index)
                    row = timed[placement.rank_of(stage, replica)]
                    row += [(enters + stage, forward), (enters + 2 * num_ranks - 1 - stage, backward)]
    ranks = tuple(tuple(op for _, op in sorted(row)) for row in timed)
    return Schedule("chimera", placement, num_microbatches, ranks)


def _placement(num_ranks: int, num_replicas: int) -> Placement:
    """Returns pairs of replicas: one from a rank down and round, one up from the rank before it and round."""
    rows = []
    for first in range(0, num_ranks, 2 * num_ranks // num_replicas):
        down = [(first + stage) % num_ranks for stage in range(num_ranks)]
        rows += [down, down[::-1]]
    return Placement.replicas(*rows)


def _shares(unit: range, num_replicas: int) -> list[range]:
    """Returns the microbatches of each replica: as many as the others, the first ones one more."""
    size, more = divmod(len(unit), num_replicas)
    ends = accumulate((size + (replica < more) for replica in range(num_replicas)), initial=0)
    return [unit[start:end] for start, end in pairwise(ends)]
