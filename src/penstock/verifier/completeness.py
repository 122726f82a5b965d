"""Every op exactly once, on the rank that holds its stage."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import chain, filterfalse, islice
from operator import itemgetter

from penstock.errors import VerificationError
from penstock.ir.ops import ORDERED, Op, OpKind
from penstock.ir.program import Program
from penstock.ir.schedule import Schedule, WeightRule
from penstock.ir.steps import SYNCHRONOUS, optimizer_steps

_SHOWN = 6
_SPLIT = (OpKind.I, OpKind.W)
_KINDS = (OpKind.F, OpKind.B, *_SPLIT)
_kind_of = itemgetter(0)
_microbatch_and_replica_of = itemgetter(2, 3)


def check_completeness(schedule: Schedule) -> None:
    """Refuses a schedule in which an op is missing, doubled, misplaced or of a kind its weight rule forbids.

    Each microbatch belongs to one replica and has there, on every stage, one F and either one B or one I with
    one W; with frozen weights one F only. Under the asynchronous weight rules an S applies every gradient: a schedule
    that ends with some pending is refused, since between two schedules nothing is left to apply them.

    Raises:
        VerificationError: naming each op with its rank and position.
    """
    problems = _misplaced(schedule) + _doubled(schedule) + _forbidden(schedule) + _missing(schedule)
    problems += [] if schedule.weight_rule in SYNCHRONOUS else _pending(schedule)
    if problems:
        more = [f"… and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise VerificationError("\n".join([f"{schedule.name} is not complete:", *problems[:_SHOWN], *more]))


def check_order(program: Program) -> None:
    """Refuses a program whose compute ops are not those of its schedule, in the same order, pairs side by side.

    Raises:
        VerificationError: the first rank and position at which they differ.
    """
    if program.num_ranks != program.schedule.num_ranks:
        raise VerificationError(
            f"the program has {program.num_ranks} ranks; its schedule has {program.schedule.num_ranks}"
        )
    for rank, (entries, ops) in enumerate(zip(program.ranks, program.schedule.ranks, strict=True)):
        kept = [entry for entry in entries if entry[0] in ORDERED]
        if tuple(kept) != ops:
            at = next((i for i, pair in enumerate(zip(kept, ops, strict=False)) if pair[0] != pair[1]), None)
            at = min(len(kept), len(ops)) if at is None else at
            raise VerificationError(
                f"the program of rank {rank} leaves its schedule at compute op {at}: "
                f"{_at(kept, at)} instead of {_at(ops, at)}"
            )
    for rank, starts in enumerate(program.pairs):
        for start in sorted(starts):
            first, between = program.ranks[rank][start : start + 2]
            if between.kind not in ORDERED:
                raise VerificationError(
                    f"rank {rank} position {start + 1}: {between} stands between {first} and the op that overlaps it"
                )


def _at(ops: object, index: int) -> str:
    return str(ops[index]) if index < len(ops) else "nothing"  # type: ignore[index, arg-type]


def _misplaced(schedule: Schedule) -> list[str]:
    problems = []
    table, num_stages, num_microbatches = schedule.placement.table, schedule.num_stages, schedule.num_microbatches
    for rank, ops in enumerate(schedule.ranks):
        for position, (_, stage, microbatch, replica) in enumerate(ops):
            if not (0 <= stage < num_stages and 0 <= replica < len(table)):
                problem = f"is outside the placement's {num_stages} stages"
            elif not 0 <= microbatch < num_microbatches:
                problem = f"is outside the {num_microbatches} microbatches"
            elif table[replica][stage] != rank:
                problem = f"belongs on rank {table[replica][stage]}, which holds stage {stage}"
            else:
                continue
            problems.append(f"  rank {rank} position {position}: {ops[position]} {problem}")
    return problems


def _doubled(schedule: Schedule) -> list[str]:
    if len(set(chain.from_iterable(schedule.ranks))) == sum(map(len, schedule.ranks)):
        return []
    first: dict[Op, tuple[int, int]] = {}
    problems = []
    for rank, position, op in schedule.ops():
        before = first.setdefault(op, (rank, position))
        if before != (rank, position):
            problems.append(
                f"  rank {rank} position {position}: {op} is doubled; it already ran on rank {before[0]} "
                f"position {before[1]}"
            )
    return problems


def _forbidden(schedule: Schedule) -> list[str]:
    rule = schedule.weight_rule
    forbidden = {OpKind.S} if rule in SYNCHRONOUS else set()
    if rule is WeightRule.FROZEN:
        forbidden = {OpKind.B, OpKind.I, OpKind.W, OpKind.S}
    if forbidden.isdisjoint(map(_kind_of, chain.from_iterable(schedule.ranks))):
        return []
    return [
        f"  rank {rank} position {position}: {op} may not occur under weight rule {rule.value}"
        for rank, position, op in schedule.ops()
        if op.kind in forbidden
    ]


def _missing(schedule: Schedule) -> list[str]:
    counts = Counter(map(_microbatch_and_replica_of, chain.from_iterable(schedule.ranks)))
    replica_of = _replicas(counts)
    strangers = len(counts) > len(replica_of)
    problems = [
        f"  rank {rank} position {position}: {op} is of replica {op.replica}; microbatch {op.microbatch} "
        f"belongs to replica {replica_of[op.microbatch]}"
        for rank, position, op in (schedule.ops() if strangers else ())
        if op.replica != replica_of[op.microbatch]
    ]
    absent = filterfalse(replica_of.__contains__, range(schedule.num_microbatches))
    problems += [f"  microbatch {microbatch} has no op at all" for microbatch in islice(absent, _SHOWN)]
    there = _kinds_there(schedule)
    whole = _faultless(schedule.weight_rule)
    for microbatch in sorted(filter(range(schedule.num_microbatches).__contains__, replica_of)):
        replica = replica_of[microbatch]
        if not 0 <= replica < schedule.placement.num_replicas:
            continue  # told among the misplaced
        for stage in range(schedule.num_stages):
            kinds = there.get((stage, microbatch, replica), 0)
            if kinds not in whole:
                rank = schedule.placement.rank_of(stage, replica)
                problems += [
                    f"  rank {rank}: {Op(kind, stage, microbatch, replica)} {what}"
                    for kind, what in _faults(kinds, schedule.weight_rule)
                ]
    return problems


def _pending(schedule: Schedule) -> list[str]:
    problems = []
    for (rank, _), gradients in optimizer_steps(schedule).pending.items():
        position, op = gradients[-1]
        step = op._replace(kind=OpKind.S)
        problems.append(
            f"  rank {rank}: {step} is missing; the gradient of {op} (position {position}) is never applied"
        )
    return problems


def _replicas(counts: Counter[tuple[int, int]]) -> dict[int, int]:
    """Returns the replica to which each microbatch belongs: the one that holds most of its ops.

    Args:
        counts: (microbatch, replica) -> number of ops.
    """
    most: dict[int, tuple[int, int]] = {}
    for (microbatch, replica), count in counts.items():
        if microbatch not in most or count > most[microbatch][1]:
            most[microbatch] = (replica, count)
    return {microbatch: replica for microbatch, (replica, _) in most.items()}


def _kinds_there(schedule: Schedule) -> dict[tuple[int, int, int], int]:
    """Returns (stage, microbatch, replica) -> which of F, B, I and W are there, one bit a kind."""
    there: dict[tuple[int, int, int], int] = defaultdict(int)
    bits = {kind: 1 << kind if kind in _KINDS else 0 for kind in OpKind}
    for kind, stage, microbatch, replica in chain.from_iterable(schedule.ranks):
        there[stage, microbatch, replica] |= bits[kind]
    return there


def _faultless(rule: WeightRule) -> frozenset[int]:
    every = range(1 << len(_KINDS))
    return frozenset(kinds for kinds in every if not _faults(kinds, rule))


def _faults(kinds: int, rule: WeightRule) -> list[tuple[OpKind, str]]:
    """Returns for one stage and microbatch the kinds that are missing, or there beside their alternative."""
    has = {kind: bool(kinds >> kind & 1) for kind in _KINDS}
    faults = [] if has[OpKind.F] else [(OpKind.F, "is missing")]
    if rule is WeightRule.FROZEN:
        return faults
    if has[OpKind.B]:
        return faults + [(kind, "is there beside the full backward B") for kind in _SPLIT if has[kind]]
    if not any(has[kind] for kind in _SPLIT):
        return [*faults, (OpKind.B, "is missing")]
    return faults + [(kind, "is missing") for kind in _SPLIT if not has[kind]]
