"""Which weight version every forward and backward uses, how many each rank keeps, and how old gradients get.

A stage starts with version 0; its k-th optimizer step makes version k. The versions that a microbatch uses on a stage:

- flush, frozen: there is one.
- latest: every op the newest.
- stash: F the newest; B, or I and W, the one that F used.
- vertical_sync: F and B the version made of the same microbatches as the one that the input stage's F used.
- double_buffered: F and B version t-1 where step t (from 0) applies the microbatch, version 0 where t = 0. All stages
  step with the same microbatches. Two versions are enough: t-1 is done with when step t makes t+1.

A rank keeps a version until a newer one is there and the last backward that uses it has ended. A step whose old version
nobody needs any more works in place.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import NamedTuple

from penstock.errors import VerificationError
from penstock.ir.ops import BACKWARD, Op, OpKind
from penstock.ir.schedule import Schedule, WeightRule
from penstock.ir.steps import SYNCHRONOUS, Step, Steps, optimizer_steps, rounds

Key = tuple[int, int]
"""(stage, microbatch)."""


class WeightUse(NamedTuple):
    """The weight versions that one microbatch meets on one stage.

    Attributes:
        forward: the version its F uses.
        backward: the version its B, or its I and W, uses.
        newest: the newest version when its gradient is applied.
    """

    forward: int
    backward: int
    newest: int

    @property
    def staleness(self) -> int:
        """How many versions the stage has moved on from the microbatch's forward to its step."""
        return self.newest - self.forward


@dataclass(frozen=True)
class Weights:
    """What a schedule does with the versions of its weights.

    Attributes:
        uses: (stage, microbatch) -> the versions it meets there; empty under flush and frozen.
        versions: per rank the most versions of one stage that it keeps at once.
        staleness: per stage the largest staleness of a microbatch.
        changes: per rank S -> +1 where it starts a version beside the ones that are kept, and backward -> -1 where a
            version goes when it ends.
    """

    uses: dict[Key, WeightUse]
    versions: tuple[int, ...]
    staleness: tuple[int, ...]
    changes: tuple[dict[Op, int], ...]


def weights_of(schedule: Schedule) -> Weights:
    """Returns which weight versions `schedule` uses and keeps, by the rules at the top of this file.

    Expects what the other checks prove: every op once, every gradient applied, and a run that reaches its end.

    Raises:
        VerificationError: a step that applies nothing, not what it names, or not as much as the others; owners of a
            stage that step differently often; or a forward whose version is not there yet.
    """
    num_stages = schedule.num_stages
    if schedule.weight_rule in SYNCHRONOUS:
        return Weights({}, (1,) * schedule.num_ranks, (0,) * num_stages, ({},) * schedule.num_ranks)
    steps = optimizer_steps(schedule)
    _check_steps(schedule, steps)
    book = _Book(schedule, tuple(rounds(schedule, stage, steps) for stage in range(num_stages)), *_places(schedule))
    uses = _uses(book)
    staleness = [0] * num_stages
    for (stage, _), use in uses.items():
        staleness[stage] = max(staleness[stage], use.staleness)
    peaks = [1] * schedule.num_ranks
    changes: tuple[dict[Op, int], ...] = tuple({} for _ in range(schedule.num_ranks))
    for (rank, _), taken in steps.taken.items():
        extra = {} if schedule.weight_rule is WeightRule.LATEST else _extra_versions(taken, book, uses)
        peaks[rank] = max(peaks[rank], 1 + max(accumulate(extra[at] for at in sorted(extra)), default=0))
        changes[rank].update((schedule.ranks[rank][position], change) for position, change in extra.items())
    return Weights(uses, tuple(peaks), tuple(staleness), changes)


class _Place(NamedTuple):
    """Where an op runs, and how often its rank has stepped the stage by then."""

    rank: int
    position: int
    op: Op
    newest: int

    def __str__(self) -> str:
        return f"{self.op} (rank {self.rank} position {self.position})"


@dataclass(frozen=True)
class _Book:
    """What the rules look things up in.

    Attributes:
        rounds: per stage the steps that make version 1, 2, …, one an owner.
        forwards: where each F runs.
        backwards: where each B or I runs.
    """

    schedule: Schedule
    rounds: tuple[list[tuple[Step, ...]], ...]
    forwards: dict[Key, _Place]
    backwards: dict[Key, _Place]


def _places(schedule: Schedule) -> tuple[dict[Key, _Place], dict[Key, _Place]]:
    newest: dict[tuple[int, int], int] = defaultdict(int)
    forwards, backwards = {}, {}
    for rank, position, op in schedule.ops():
        if op.kind == OpKind.S:
            newest[rank, op.stage] += 1
        elif op.kind == OpKind.F:
            forwards[op.stage, op.microbatch] = _Place(rank, position, op, newest[rank, op.stage])
        elif op.kind in BACKWARD:
            backwards[op.stage, op.microbatch] = _Place(rank, position, op, newest[rank, op.stage])
    return forwards, backwards


def _check_steps(schedule: Schedule, steps: Steps) -> None:
    """Refuses steps that do not apply what they name, or not as much as the others."""
    every = list(chain.from_iterable(steps.taken.values()))
    for taken in steps.taken.values():
        for before, step in zip([None, *taken], taken, strict=False):
            where = f"rank {step.rank} position {step.position}: {step.op}"
            if not step.gradients:
                since = f"{before.op} (position {before.position})" if before else "the start"
                raise VerificationError(f"{where} applies nothing; no gradient of its stage was made since {since}")
            last = step.gradients[-1]
            if last.op.microbatch != step.op.microbatch:
                raise VerificationError(
                    f"{where} is not named after the last gradient it applies, that of {last.op} (position "
                    f"{last.position})"
                )
    sizes = Counter(len(step.gradients) for step in every)
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        odd = next(step for step in every if len(step.gradients) != usual)
        like = next(step for step in every if len(step.gradients) == usual)
        raise VerificationError(f"{_applies(odd)}, but {_applies(like)}; all steps of a schedule apply equally many")
    for stage in range(schedule.num_stages):
        owners = schedule.placement.owners(stage)
        counts = [len(steps.taken.get((owner, stage), ())) for owner in owners]
        if len(set(counts)) > 1:
            told = ", ".join(f"{count} times on rank {owner}" for owner, count in zip(owners, counts, strict=True))
            raise VerificationError(f"stage {stage} is stepped {told}; its owners step together")


def _applies(step: Step) -> str:
    count = len(step.gradients)
    noun = "microbatch" if count == 1 else "microbatches"
    return (
        f"rank {step.rank} position {step.position}: {step.op} applies {count} {noun} "
        f"({' '.join(map(str, step.microbatches))})"
    )


def _uses(book: _Book) -> dict[Key, WeightUse]:
    rule = book.schedule.weight_rule
    same = _same_versions(book) if rule in (WeightRule.VERTICAL_SYNC, WeightRule.DOUBLE_BUFFERED) else []
    uses = {}
    for stage, versions in enumerate(book.rounds):
        for applied, together in enumerate(versions):
            for microbatch in chain.from_iterable(step.microbatches for step in together):
                forward, backward = book.forwards[stage, microbatch], book.backwards[stage, microbatch]
                if rule is WeightRule.VERTICAL_SYNC:
                    version = _input_version(book, same, forward)
                elif rule is WeightRule.DOUBLE_BUFFERED:
                    version = _previous_version(book, forward, applied)
                else:
                    version = forward.newest
                latest = backward.newest if rule is WeightRule.LATEST else version
                uses[stage, microbatch] = WeightUse(version, latest, applied)
    return uses


def _input_version(book: _Book, same: list[dict[int, int]], forward: _Place) -> int:
    """Returns the version of the op's stage that has what the input stage's had at this microbatch's F."""
    stage = forward.op.stage
    source = book.forwards[0, forward.op.microbatch]
    version = same[stage].get(source.newest)
    if version is not None and version <= forward.newest:
        return version
    wanted = f"{forward} needs version {source.newest} of stage 0, which {source} used; "
    if version is None:
        made = " ".join(map(str, _microbatches(book, 0, source.newest)))
        raise VerificationError(f"{wanted}stage {stage} has no version made of the same microbatches ({made})")
    raise VerificationError(wanted + _made_later(book, forward, version))


def _previous_version(book: _Book, forward: _Place, applied: int) -> int:
    """Returns the version before the one that the microbatch's own step finds."""
    version = max(applied - 1, 0)
    if version <= forward.newest:
        return version
    raise VerificationError(
        f"{forward} is of step {applied} and needs version {version}; {_made_later(book, forward, version)}, and "
        "older ones are not kept; let a step take at least as many microbatches as there are ranks"
    )


def _made_later(book: _Book, forward: _Place, version: int) -> str:
    step = next(step for step in book.rounds[forward.op.stage][version - 1] if step.rank == forward.rank)
    return f"{step.op} makes it only at position {step.position}"


def _microbatches(book: _Book, stage: int, version: int) -> list[int]:
    return sorted(
        chain.from_iterable(step.microbatches for together in book.rounds[stage][:version] for step in together)
    )


def _same_versions(book: _Book) -> list[dict[int, int]]:
    """Returns per stage: version of stage 0 -> the stage's version made of the same microbatches, where there is one.

    Raises:
        VerificationError: under double_buffered, a stage without an equal of each version.
    """
    order: dict[int, int] = {}  # microbatch -> its place in the order in which stage 0 applies them
    version_of = {0: 0}  # how many microbatches -> the version of stage 0 made of so many
    for number, together in enumerate(book.rounds[0], start=1):
        for microbatch in chain.from_iterable(step.microbatches for step in together):
            order[microbatch] = len(order)
        version_of[len(order)] = number
    same = []
    for versions in book.rounds:
        found, count, furthest = {0: 0}, 0, -1
        for number, together in enumerate(versions, start=1):
            for microbatch in chain.from_iterable(step.microbatches for step in together):
                place = order.get(microbatch, book.schedule.num_microbatches)
                count, furthest = count + 1, max(furthest, place)
            equal = version_of.get(count) if furthest == count - 1 else None
            if equal is not None:
                found[equal] = number
            if equal != number and book.schedule.weight_rule is WeightRule.DOUBLE_BUFFERED:
                raise VerificationError(
                    f"{_applies(together[0])}; stage 0 makes version {number} of others, and under "
                    "double_buffered all stages step alike"
                )
        same.append(found)
    return same


def _extra_versions(taken: list[Step], book: _Book, uses: dict[Key, WeightUse]) -> dict[int, int]:
    """Returns position -> +1 of an S that finds the version before it still needed, -1 of the last that needs it."""
    last_use: dict[int, int] = {}
    for gradient in chain.from_iterable(step.gradients for step in taken):
        version = uses[gradient.op.stage, gradient.op.microbatch].backward
        last_use[version] = max(last_use.get(version, -1), gradient.position)
    changes = {}
    for version, step in enumerate(taken):
        if last_use.get(version, -1) > step.position:
            changes[step.position] = +1
            changes[last_use[version]] = -1
    return changes
