"""The cells of the matrix in this world of processes; tells of each cell its error and of what.

Arguments: which schedules (names joined by commas, empty for all); "replicas" for two data-parallel replicas of half
the ranks each.
"""

from __future__ import annotations

import traceback
from hashlib import blake2b

from joined import arguments, join, num_ranks, tell
from tests.runtime.matrix.cases import CASES
from tests.runtime.matrix.running import Error, allowed, arguments_of, cells, error_of, expected, schedule_of
from tests.runtime.matrix.subjects import Found, Piped
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import penstock as ps
from penstock.runtime import pipeline, startup
from penstock.runtime.transport.distributed import DistributedTransport

PRIVATE = ("buffer",)
"""What each data-parallel replica has of its own."""


def equal_everywhere(found: Found) -> str:
    """Returns what is not the same on all ranks of the job that have it, empty if everything is."""
    mine = {
        what: blake2b(value.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
        for what, value in found.items()
        if not what.startswith(PRIVATE)
    }
    everywhere: list[dict[str, str]] = [{}] * num_ranks
    dist.all_gather_object(everywhere, mine)
    merged: dict[str, str] = {}
    differing = [what for row in everywhere for what, bits in row.items() if merged.setdefault(what, bits) != bits]
    return differing[0] if differing else ""


def cell(name: str, case: str, ways: dict, *, replicas: int, replica: int) -> Error:
    given, ranks = CASES[case], num_ranks // replicas
    schedule = schedule_of(name, given, num_ranks=ranks, num_microbatches=2 * ranks)
    if schedule is None:
        raise ValueError(f"there is no {name} of these sizes for {case}")
    model = given.model(schedule.num_stages)
    pipe = ps.Pipeline(model, given.loss_fn, **ways, **arguments_of(given, schedule))
    found = given.loop(Piped(pipe, given, replica=replica))
    differing = equal_everywhere(found)
    if differing:
        return Error(float("inf"), f"copies of {differing} differ")
    wanted = expected(case, num_layers=schedule.num_stages, num_microbatches=2 * ranks, replicas=replicas)
    if replica:
        found = {what: value for what, value in found.items() if not what.startswith(PRIVATE)}
    return error_of(found, wanted)


join()
chosen, *rest = arguments
replicas = 2 if rest == ["replicas"] else 1
if replicas == 1:
    ways: dict = {"transport": DistributedTransport(timeout_seconds=60, shared_memory=False)}
    replica = 0
else:
    mesh = init_device_mesh("cpu", (replicas, num_ranks // replicas), mesh_dim_names=("dp_replicate", "pp"))
    connected = startup.ranks_of(mesh, None, 60.0)
    pipeline.ranks_of = lambda *_: connected  # once for all cells: groups last as long as the process
    ways = {"mesh": mesh}
    replica = mesh.get_local_rank("dp_replicate")
size = num_ranks // replicas
for name, case in cells(num_ranks=size, num_microbatches=2 * size):
    if chosen and name not in chosen.split(","):
        continue
    try:
        error = cell(name, case, ways, replicas=replicas, replica=replica)
    except Exception as raised:
        tell(name=name, case=case, error=f"{type(raised).__name__}: {raised}", trace=traceback.format_exc()[-3000:])
        raise
    most = allowed(name, case, num_ranks=size, num_microbatches=2 * size, replicas=replicas)
    tell(name=name, case=case, worst=error.size, what=error.what, allowed=most)
