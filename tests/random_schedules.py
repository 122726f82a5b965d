"""Random placements and schedules for properties, from a dependency table of the tests' own."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from hypothesis import strategies as st

from penstock.ir import Op, OpKind, Placement, Schedule, WeightRule

F, B, I, W = OpKind.F, OpKind.B, OpKind.I, OpKind.W  # noqa: E741

Needs = dict[Op, list[Op]]


def needs_of(ops: set[Op]) -> Needs:
    """Returns for each op the ops that have to end before it starts."""

    def backward(stage: int, op: Op) -> Op | None:
        found = (Op(kind, stage, op.microbatch, op.replica) for kind in (B, I))
        return next((other for other in found if other in ops), None)

    needs: Needs = {}
    for op in ops:
        before: list[Op | None]
        if op.kind is F:
            before = [op._replace(stage=op.stage - 1)]
        elif op.kind is W:
            before = [op._replace(kind=I)]
        elif op.kind is OpKind.OFFLOAD:
            before = [op._replace(kind=F)]
        elif op.kind is OpKind.RELOAD:
            before = [op._replace(kind=OpKind.OFFLOAD)]
        else:
            before = [op._replace(kind=F), op._replace(kind=OpKind.RELOAD), backward(op.stage + 1, op)]
        needs[op] = [other for other in before if other is not None and other in ops]
    return needs


def runs_to_its_end(schedule: Schedule) -> bool:
    """Whether the orders of the ranks and the dependencies together have no cycle; a pair starts as one."""
    needs = needs_of({op for _, _, op in schedule.ops()})
    done: set[Op] = set()
    at = [0] * schedule.num_ranks
    moved = True
    while moved:
        moved = False
        for rank, ops in enumerate(schedule.ranks):
            pairs = schedule.overlapped[rank] if schedule.overlapped else ()
            while at[rank] < len(ops):
                together = ops[at[rank] : at[rank] + (2 if at[rank] in pairs else 1)]
                if not all(other in done for op in together for other in needs[op]):
                    break
                done.update(together)
                at[rank] += len(together)
                moved = True
    return all(count == len(ops) for count, ops in zip(at, schedule.ranks, strict=True))


@st.composite
def placements(draw: st.DrawFn, max_ranks: int = 4, max_chunks: int = 3, max_replicas: int = 2) -> Placement:
    """Any table: looped, V-shaped, uneven, with one or two directions."""
    num_ranks = draw(st.integers(1, max_ranks))
    num_stages = draw(st.integers(num_ranks, min(num_ranks * max_chunks, 8)))
    num_replicas = draw(st.integers(1, max_replicas))
    rank = st.integers(0, num_ranks - 1)
    rows = draw(st.lists(st.lists(rank, min_size=num_stages, max_size=num_stages), min_size=num_replicas,
                         max_size=num_replicas))  # fmt: skip
    used = sorted({rank for row in rows for rank in row})
    return Placement.replicas(*([used.index(rank) for rank in row] for row in rows))


def all_ops(placement: Placement, num_microbatches: int, random: Random) -> set[Op]:
    """Every op of a step: each microbatch in one direction, B or I and W as it falls."""
    ops: set[Op] = set()
    split = random.choice([0.0, 0.5, 1.0])
    for microbatch in range(num_microbatches):
        replica = random.randrange(placement.num_replicas)
        for stage in range(placement.num_stages):
            kinds = (F, I, W) if random.random() < split else (F, B)
            ops |= {Op(kind, stage, microbatch, replica) for kind in kinds}
    return ops


def linearised(placement: Placement, num_microbatches: int, random: Random) -> Schedule:
    """Returns a schedule that runs: the ranks' parts of one order of all ops."""
    needs = needs_of(all_ops(placement, num_microbatches, random))
    urgency: Callable[[Op], float]
    if random.random() < 0.5:
        fixed = {op: random.random() for op in sorted(needs)}
        urgency = fixed.__getitem__
    else:
        urgency = lambda op: random.random()  # noqa: E731
    rows: list[list[Op]] = [[] for _ in range(placement.num_ranks)]
    left, done = set(needs), set[Op]()
    while left:
        ready = [op for op in sorted(left) if all(other in done for other in needs[op])]
        op = min(ready, key=urgency)
        left.remove(op)
        done.add(op)
        rows[placement.rank_of(op.stage, op.replica)].append(op)
    ranks = tuple(tuple(row) for row in rows)
    return Schedule("random", placement, num_microbatches, ranks, WeightRule.FLUSH)


@st.composite
def valid_schedules(draw: st.DrawFn, max_microbatches: int = 5, max_ranks: int = 4, max_replicas: int = 2) -> Schedule:
    """Schedules that run, on any placement and in any order the dependencies allow."""
    placement = draw(placements(max_ranks=max_ranks, max_replicas=max_replicas))
    num_microbatches = draw(st.integers(1, max_microbatches))
    return linearised(placement, num_microbatches, Random(draw(st.integers(0, 2**32))))


@st.composite
def any_schedules(draw: st.DrawFn) -> Schedule:
    """Schedules with every op on its rank, in an order that may or may not run."""
    schedule = draw(valid_schedules(max_microbatches=3, max_ranks=3))
    random = Random(draw(st.integers(0, 2**32)))
    rows = [list(row) for row in schedule.ranks]
    for _ in range(random.randrange(4)):
        row = random.choice(rows)
        if row:
            row.insert(random.randrange(len(row)), row.pop(random.randrange(len(row))))
    return with_ranks(schedule, rows)


def with_ranks(schedule: Schedule, rows: list[list[Op]]) -> Schedule:
    """Returns `schedule` with these ops, and without pairs."""
    return replace(schedule, ranks=tuple(tuple(row) for row in rows), overlapped=())


@st.composite
def paired_schedules(draw: st.DrawFn) -> Schedule:
    """Schedules that run, with neighbours of theirs made pairs: most run with these as well, some do not."""
    schedule = draw(valid_schedules(max_ranks=3))
    random = Random(draw(st.integers(0, 2**32)))
    overlapped = []
    for ops in schedule.ranks:
        pairs: list[int] = []
        for at in range(len(ops) - 1):
            kinds = {ops[at].kind, ops[at + 1].kind}
            free = not pairs or pairs[-1] < at - 1
            if free and kinds in ({F, B}, {F, I}) and random.random() < 0.5:
                pairs.append(at)
        overlapped.append(tuple(pairs))
    return replace(schedule, overlapped=tuple(overlapped))
