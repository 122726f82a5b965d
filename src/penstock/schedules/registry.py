"""Names of schedules -> their generators. A new schedule is one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from penstock.cluster import Cluster
from penstock.costs import PerStage, StageCosts
from penstock.errors import ScheduleError, check_type, nearest
from penstock.ir.schedule import Schedule
from penstock.schedules.bpipe import bpipe
from penstock.schedules.breadth_first import breadth_first
from penstock.schedules.chimera import chimera
from penstock.schedules.dualpipe import dualpipe, dualpipe_v
from penstock.schedules.eager_1f1b import eager_1f1b
from penstock.schedules.gis import gis
from penstock.schedules.gpipe import gpipe
from penstock.schedules.interleaved_1f1b import interleaved_1f1b
from penstock.schedules.naive import naive
from penstock.schedules.one_f_one_b import one_f_one_b
from penstock.schedules.pipedream import pipedream
from penstock.schedules.pipedream_2bw import pipedream_2bw
from penstock.schedules.pipemare import pipemare
from penstock.schedules.v_blocks import v_half, v_min, v_zb
from penstock.schedules.wave import wave
from penstock.schedules.zb_auto import zb_auto
from penstock.schedules.zb_h1 import zb_h1
from penstock.schedules.zb_h2 import zb_h2
from penstock.schedules.zb_v import zb_v
from penstock.schedules.zb_v_greedy import zb_v_greedy


@dataclass(frozen=True)
class Sizes:
    """What a schedule is asked for: p ranks, m microbatches, v chunks a rank."""

    num_ranks: int
    num_microbatches: int
    num_chunks: int


@dataclass(frozen=True)
class Given:
    """What a schedule that is found by a search is found for; None leaves the generator's own default.

    Attributes:
        costs: of each stage.
        cluster: devices and links.
        memory_limit: the most that F and I may keep on a rank at once, in the unit of `activation_bytes`; where costs
            have no bytes, in microbatches of a stage.
    """

    costs: StageCosts | None = None
    cluster: Cluster | None = None
    memory_limit: PerStage | None = None


class Family(NamedTuple):
    """A named schedule as the registry knows it.

    Attributes:
        generate: sizes -> Schedule.
        num_chunks: chunks a rank where the caller does not say.
        any_chunks: whether other numbers of chunks are defined.
        fit: sizes and what is given -> Schedule, where the order depends on costs; None where one order is for all.
    """

    generate: Callable[[Sizes], Schedule]
    num_chunks: int = 1
    any_chunks: bool = False
    fit: Callable[[Sizes, Given], Schedule] | None = None


SCHEDULES: dict[str, Family] = {
    "naive": Family(lambda n: naive(n.num_ranks, n.num_microbatches)),
    "gpipe": Family(lambda n: gpipe(n.num_ranks, n.num_microbatches)),
    "one_f_one_b": Family(lambda n: one_f_one_b(n.num_ranks, n.num_microbatches)),
    "eager_1f1b": Family(lambda n: eager_1f1b(n.num_ranks, n.num_microbatches)),
    "interleaved_1f1b": Family(
        lambda n: interleaved_1f1b(n.num_ranks, n.num_microbatches, num_chunks=n.num_chunks), 2, True
    ),
    "breadth_first": Family(lambda n: breadth_first(n.num_ranks, n.num_microbatches, num_chunks=n.num_chunks), 2, True),
    "gis": Family(lambda n: gis(n.num_ranks, n.num_microbatches, num_chunks=n.num_chunks), 2, True),
    "wave": Family(lambda n: wave(n.num_ranks, n.num_microbatches, num_chunks=n.num_chunks), 2, True),
    "zb_h1": Family(lambda n: zb_h1(n.num_ranks, n.num_microbatches)),
    "zb_h2": Family(lambda n: zb_h2(n.num_ranks, n.num_microbatches)),
    "zb_auto": Family(
        lambda n: zb_auto(n.num_ranks, n.num_microbatches),
        num_chunks=1,
        fit=lambda n, given: zb_auto(
            n.num_ranks,
            n.num_microbatches,
            costs=given.costs,
            cluster=given.cluster,
            memory_limit=given.memory_limit,
        ),
    ),
    "zb_v": Family(lambda n: zb_v(n.num_ranks, n.num_microbatches), 2),
    "zb_v_greedy": Family(
        lambda n: zb_v_greedy(n.num_ranks, n.num_microbatches),
        num_chunks=2,
        fit=lambda n, given: zb_v_greedy(
            n.num_ranks,
            n.num_microbatches,
            costs=given.costs,
            cluster=given.cluster,
            memory_limit=given.memory_limit,
        ),
    ),
    "v_min": Family(lambda n: v_min(n.num_ranks, n.num_microbatches), 2),
    "v_half": Family(lambda n: v_half(n.num_ranks, n.num_microbatches), 2),
    "v_zb": Family(lambda n: v_zb(n.num_ranks, n.num_microbatches), 2),
    "dualpipe": Family(lambda n: dualpipe(n.num_ranks, n.num_microbatches)),
    "dualpipe_v": Family(lambda n: dualpipe_v(n.num_ranks, n.num_microbatches), 2),
    "chimera": Family(lambda n: chimera(n.num_ranks, n.num_microbatches)),
    "bpipe": Family(lambda n: bpipe(n.num_ranks, n.num_microbatches)),
    "pipedream": Family(lambda n: pipedream(n.num_ranks, n.num_microbatches)),
    "pipedream_2bw": Family(lambda n: pipedream_2bw(n.num_ranks, n.num_microbatches)),
    "pipemare": Family(lambda n: pipemare(n.num_ranks, n.num_microbatches)),
}
"""Every schedule by its one name."""

ALIASES = {
    "GPipe": "gpipe",
    "1F1B": "one_f_one_b",
    "1f1b": "one_f_one_b",
    "pipedream_flush": "one_f_one_b",
    "dapple": "one_f_one_b",
    "Interleaved1F1B": "interleaved_1f1b",
    "LoopedBFS": "breadth_first",
    "looped_bfs": "breadth_first",
    "hanayo": "wave",
    "DualPipe": "dualpipe",
    "DualPipeV": "dualpipe_v",
    "Chimera": "chimera",
    "BPipe": "bpipe",
    "ZB-H1": "zb_h1",
    "ZB-H2": "zb_h2",
    "ZB-1p": "zb_auto",
    "ZB-V": "zb_v",
    "ZBVZeroBubble": "zb_v",
    "V-Min": "v_min",
    "V-Half": "v_half",
    "V-ZB": "v_zb",
}
"""Names that users of other tools know -> ours."""


def canonical_name(name: str) -> str:
    """Returns the name under which `name` is registered; `-` and `_` are the same.

    Raises:
        ScheduleError: no such schedule; the message gives the nearest name and all of them.
    """
    if not isinstance(name, str):
        raise ScheduleError(f'{name!r} is no name of a schedule; give a text, e.g. "one_f_one_b"')
    plain = ALIASES.get(name, name.replace("-", "_"))
    if plain not in SCHEDULES:
        known = sorted(SCHEDULES)
        raise ScheduleError(f'unknown schedule "{name}".{nearest(plain, [*known, *ALIASES])} Known: {", ".join(known)}')
    return plain


def named_schedule(
    name: str, *, num_ranks: int, num_microbatches: int, num_chunks: int | None = None, given: Given | None = None
) -> Schedule:
    """Returns the schedule called `name` at these sizes.

    Args:
        name: one of SCHEDULES or ALIASES.
        num_ranks: p.
        num_microbatches: m.
        num_chunks: v, stages a rank; None takes the schedule's own default.
        given: costs, cluster and memory limit, which decide the order of zb_auto and zb_v_greedy and of no other.

    Raises:
        ScheduleError: no such schedule, sizes it is not defined for, or a memory limit for one whose order is fixed.
        UserError: costs for another number of stages.
    """
    plain = canonical_name(name)
    family = SCHEDULES[plain]
    if num_chunks not in (None, family.num_chunks) and not family.any_chunks:
        raise ScheduleError(
            f"{plain}: num_chunks={num_chunks}; it is defined for {family.num_chunks} a rank, leave num_chunks out"
        )
    sizes = Sizes(num_ranks, num_microbatches, family.num_chunks if num_chunks is None else num_chunks)
    check_type("given", given, Given, type(None), example="e.g. penstock.schedules.Given(costs=penstock.StageCosts())")
    if given is None:
        return family.generate(sizes)
    if family.fit is not None:
        return family.fit(sizes, given)
    if given.memory_limit is not None:
        fitted = ", ".join(name for name, family in SCHEDULES.items() if family.fit)
        raise ScheduleError(f"{plain}: its order is fixed, so it keeps to no memory limit; {fitted} do")
    return family.generate(sizes)
