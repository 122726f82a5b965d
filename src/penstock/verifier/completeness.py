"""Every op exactly once, on the rank that holds its stage."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np

from penstock.errors import VerificationError
from penstock.ir.columns import ABSENT, Columns, Flags, Ints, codes, first_of
from penstock.ir.ops import ORDERED, Op, OpKind
from penstock.ir.program import Program
from penstock.ir.schedule import Schedule, WeightRule
from penstock.ir.steps import SYNCHRONOUS, optimizer_steps

_SHOWN = 6
_SPLIT = (OpKind.I, OpKind.W)
_KINDS = (OpKind.F, OpKind.B, *_SPLIT)
_NO_REPLICA = np.iinfo(np.int64).min


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
    of_schedule, of_program = program.schedule.columns, program.columns
    kept = np.isin(of_program.kind, [*ORDERED])
    if not all(
        np.array_equal(ours[kept], theirs) for ours, theirs in zip(of_program[:5], of_schedule[:5], strict=True)
    ):
        _refuse_order(program)
    for rank, starts in enumerate(program.pairs):
        for start in sorted(starts):
            first, between = program.ranks[rank][start : start + 2]
            if between.kind not in ORDERED:
                raise VerificationError(
                    f"rank {rank} position {start + 1}: {between} stands between {first} and the op that overlaps it"
                )


def _refuse_order(program: Program) -> None:
    for rank, (entries, ops) in enumerate(zip(program.ranks, program.schedule.ranks, strict=True)):
        kept = [entry for entry in entries if entry.kind in ORDERED]
        at = next((i for i, pair in enumerate(zip_longest(kept, ops)) if pair[0] != pair[1]), None)
        if at is not None:
            raise VerificationError(
                f"the program of rank {rank} leaves its schedule at compute op {at}: "
                f"{_at(kept, at)} instead of {_at(ops, at)}"
            )


def _at(ops: object, index: int) -> str:
    return str(ops[index]) if index < len(ops) else "nothing"  # type: ignore[index, arg-type]


def _text(schedule: Schedule, number: int) -> str:
    rank, position = schedule.columns.place(number)
    return f"  rank {rank} position {position}: {schedule.ranks[rank][position]}"


def _outside(schedule: Schedule) -> tuple[Flags, Flags]:
    """Returns which ops are outside the placement's stages, and which are of no microbatch."""
    ops, placement = schedule.columns, schedule.placement
    stages = (ops.stage < 0) | (ops.stage >= placement.num_stages)
    replicas = (ops.replica < 0) | (ops.replica >= placement.num_replicas)
    return stages | replicas, (ops.microbatch < 0) | (ops.microbatch >= schedule.num_microbatches)


def _misplaced(schedule: Schedule) -> list[str]:
    ops, table = schedule.columns, np.array(schedule.placement.table)
    nowhere, no_microbatch = _outside(schedule)
    holder = np.where(nowhere, ops.rank, table[np.where(nowhere, 0, ops.replica), np.where(nowhere, 0, ops.stage)])
    problems = []
    for number in np.flatnonzero(nowhere | no_microbatch | (holder != ops.rank)).tolist():
        if nowhere[number]:
            problem = f"is outside the placement's {schedule.num_stages} stages"
        elif no_microbatch[number]:
            problem = f"is outside the {schedule.num_microbatches} microbatches"
        else:
            problem = f"belongs on rank {holder[number]}, which holds stage {ops.stage[number]}"
        problems.append(f"{_text(schedule, number)} {problem}")
    return problems


def _doubled(schedule: Schedule) -> list[str]:
    code = codes(*schedule.columns[:4])
    first = first_of(code, code)
    problems = []
    for number in np.flatnonzero(first < np.arange(len(code))).tolist():
        rank, position = schedule.columns.place(first[number])
        problems.append(f"{_text(schedule, number)} is doubled; it already ran on rank {rank} position {position}")
    return problems


def _forbidden(schedule: Schedule) -> list[str]:
    rule = schedule.weight_rule
    forbidden = {OpKind.S} if rule in SYNCHRONOUS else set()
    if rule is WeightRule.FROZEN:
        forbidden = {OpKind.B, OpKind.I, OpKind.W, OpKind.S}
    numbers = np.flatnonzero(np.isin(schedule.columns.kind, [*forbidden])).tolist()
    return [f"{_text(schedule, number)} may not occur under weight rule {rule.value}" for number in numbers]


def _missing(schedule: Schedule) -> list[str]:
    ops, placement = schedule.columns, schedule.placement
    # There are no more microbatches than ops; where the schedule says so, those told to be absent are enough.
    replica_of = _replicas(ops, min(schedule.num_microbatches, len(ops.kind) + _SHOWN))
    inside = np.flatnonzero((ops.microbatch >= 0) & (ops.microbatch < len(replica_of)))
    belongs = replica_of[ops.microbatch[inside]]
    strange = ops.replica[inside] != belongs
    problems = [
        f"{_text(schedule, number)} is of replica {ops.replica[number]}; microbatch {ops.microbatch[number]} "
        f"belongs to replica {replica}"
        for number, replica in zip(inside[strange].tolist(), belongs[strange].tolist(), strict=True)
    ]
    absent = np.flatnonzero(replica_of == _NO_REPLICA)[:_SHOWN].tolist()
    problems += [f"  microbatch {microbatch} has no op at all" for microbatch in absent]
    if len(absent) == _SHOWN:
        return problems
    whole = np.array([not _faults(kinds, schedule.weight_rule) for kinds in range(1 << len(_KINDS))])
    known = (replica_of >= 0) & (replica_of < placement.num_replicas)  # others are told among the misplaced
    there = _kinds_there(schedule, inside[~strange], len(replica_of))
    for microbatch, stage in np.argwhere(~whole[there] & known[:, None]).tolist():
        replica = int(replica_of[microbatch])
        problems += [
            f"  rank {placement.rank_of(stage, replica)}: {Op(kind, stage, microbatch, replica)} {what}"
            for kind, what in _faults(int(there[microbatch, stage]), schedule.weight_rule)
        ]
    return problems


def _replicas(ops: Columns, num_microbatches: int) -> Ints:
    """Returns for each microbatch the replica to which it belongs: the one that holds most of its ops."""
    code = codes(ops.microbatch, ops.replica)
    counts = np.bincount(code)
    most: dict[int, tuple[int, int]] = {}
    for number in sorted(set(first_of(code, np.arange(len(counts))).tolist()) - {ABSENT}):  # of equals, the first
        microbatch, count = int(ops.microbatch[number]), int(counts[code[number]])
        if microbatch not in most or count > most[microbatch][1]:
            most[microbatch] = (int(ops.replica[number]), count)
    return np.array([most.get(microbatch, (_NO_REPLICA, 0))[0] for microbatch in range(num_microbatches)])


def _kinds_there(schedule: Schedule, numbers: Ints, num_microbatches: int) -> Ints:
    """Returns (microbatch, stage) -> which of F, B, I and W are there among the ops `numbers`, one bit a kind."""
    ops = schedule.columns
    numbers = numbers[(ops.stage[numbers] >= 0) & (ops.stage[numbers] < schedule.num_stages)]
    there = np.zeros((num_microbatches, schedule.num_stages), np.int64)
    for kind in _KINDS:
        of_kind = numbers[ops.kind[numbers] == kind]
        there[ops.microbatch[of_kind], ops.stage[of_kind]] |= 1 << kind
    return there


def _pending(schedule: Schedule) -> list[str]:
    problems = []
    for (rank, _), gradients in optimizer_steps(schedule).pending.items():
        position, op = gradients[-1]
        step = op._replace(kind=OpKind.S)
        problems.append(
            f"  rank {rank}: {step} is missing; the gradient of {op} (position {position}) is never applied"
        )
    return problems


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
