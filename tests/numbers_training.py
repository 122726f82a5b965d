"""Trains a chain of one-number stages by a schedule, op by op, to see which weights every op really met.

A second opinion on the weight rules that shares no code with the verifier: it holds weights, not version numbers, and
counts only to report them. All numbers are whole, modulo a prime, so every comparison is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock import Op, OpKind, Schedule, WeightRule

PRIME = 2_147_483_647
RATE = 7
"""The learning rate."""


class Wrong(Exception):
    """The schedule cannot be carried out under its weight rule."""


def first_weight(stage: int) -> int:
    """Returns the weight with which `stage` starts."""
    return 3 + 5 * stage


def sample(microbatch: int) -> int:
    """Returns the input of `microbatch`."""
    return 11 + 13 * microbatch


def forward(weight: int, value: int) -> int:
    """Returns w·x + x²."""
    return (weight * value + value * value) % PRIME


def input_grad(weight: int, value: int, grad: int) -> int:
    """Returns the gradient of the stage's input."""
    return grad * (weight + 2 * value) % PRIME


def loss_grad(output: int) -> int:
    """Returns the gradient of y²."""
    return 2 * output % PRIME


def gradients(weights: Sequence[int], microbatch: int) -> list[int]:
    """Returns ∇f of one microbatch for each stage, if these are the weights that it meets."""
    values = [sample(microbatch)]
    for weight in weights:
        values.append(forward(weight, values[-1]))
    grad, found = loss_grad(values[-1]), []
    for weight, value in zip(reversed(weights), reversed(values[:-1]), strict=True):
        found.append(grad * value % PRIME)
        grad = input_grad(weight, value, grad)
    return found[::-1]


def stepped(weight: int, grads: Sequence[int]) -> int:
    """Returns the weight after one step on the sum of `grads`."""
    return (weight - RATE * sum(grads)) % PRIME


@dataclass
class _Copy:
    """A rank's copy of a stage."""

    history: list[int]  # the weight of every version
    made_of: list[frozenset[int]] = field(default_factory=lambda: [frozenset()])
    pending: list[tuple[int, int]] = field(default_factory=list)  # (microbatch, gradient)
    reduced: list[dict[int, int]] = field(default_factory=list)  # what each step contributes


class Training:
    """One run; afterwards `met` holds what each microbatch met on each stage, as (F, B, newest at its step)."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.table = schedule.placement.table
        self.copies = {
            (rank, stage): _Copy([first_weight(stage)]) for row in self.table for stage, rank in enumerate(row)
        }
        self.inputs: dict[tuple[int, int], int] = {}
        self.grads: dict[tuple[int, int], int] = {}
        self.stashed: dict[tuple[int, int], int] = {}  # the version that F used
        self.met: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.used: dict[tuple[int, int], int] = {}  # the version that B used
        self.batch = self.batches()

    def batches(self) -> dict[int, int]:
        """Returns the how-many-th step applies each microbatch on stage 0 of the rank that serves it."""
        batch: dict[int, int] = {}
        for ops in self.schedule.ranks:
            steps = 0
            for op in ops:
                if op.stage == 0 and op.kind is OpKind.B:
                    batch[op.microbatch] = steps
                steps += op.stage == 0 and op.kind is OpKind.S
        return batch

    def run(self) -> Training:
        at = [0] * self.schedule.num_ranks
        moved = True
        while moved:
            moved = False
            for rank, ops in enumerate(self.schedule.ranks):
                while at[rank] < len(ops) and self.carry_out(rank, ops[at[rank]]):
                    at[rank] += 1
                    moved = True
        if any(count < len(ops) for count, ops in zip(at, self.schedule.ranks, strict=True)):
            raise Wrong("stuck")
        if any(copy.pending for copy in self.copies.values()):
            raise Wrong("gradients never applied")
        if len({len(given) for copy in self.copies.values() for given in copy.reduced}) > 1:
            raise Wrong("uneven steps")
        return self

    def carry_out(self, rank: int, op: Op) -> bool:
        key, copy = (op.stage, op.microbatch), self.copies[rank, op.stage]
        if op.kind is OpKind.F:
            if op.stage and key not in self.inputs:
                return False
            value = self.inputs.setdefault(key, sample(op.microbatch))
            self.stashed[key] = self.version(rank, op)
            self.inputs[op.stage + 1, op.microbatch] = forward(copy.history[self.stashed[key]], value)
            return True
        if op.kind is OpKind.S:
            return self.step(rank, op)
        last = op.stage == self.schedule.num_stages - 1
        if key not in self.stashed or not (last or (op.stage + 1, op.microbatch) in self.grads):
            return False
        grad = loss_grad(self.inputs[op.stage + 1, op.microbatch]) if last else self.grads[op.stage + 1, op.microbatch]
        latest = self.schedule.weight_rule is WeightRule.LATEST
        version = len(copy.history) - 1 if latest else self.stashed[key]
        self.used[key] = version
        self.grads[key] = input_grad(copy.history[version], self.inputs[key], grad)
        copy.pending.append((op.microbatch, grad * self.inputs[key] % PRIME))
        return True

    def version(self, rank: int, op: Op) -> int:
        """Returns the version that the rule gives to a forward now."""
        copy = self.copies[rank, op.stage]
        newest = len(copy.history) - 1
        if self.schedule.weight_rule is WeightRule.VERTICAL_SYNC and op.stage:
            entrance = self.copies[self.table[op.replica][0], 0]
            wanted = entrance.made_of[self.stashed[0, op.microbatch]]
            if wanted not in copy.made_of:
                raise Wrong("the input stage's version is not there")
            return copy.made_of.index(wanted)
        if self.schedule.weight_rule is WeightRule.DOUBLE_BUFFERED:
            wanted_version = max(self.batch[op.microbatch] - 1, 0)
            if not newest - 1 <= wanted_version <= newest:
                raise Wrong("not in one of the two buffers")
            return wanted_version
        return newest

    def step(self, rank: int, op: Op) -> bool:
        owners = {row[op.stage] for row in self.table}
        copy = self.copies[rank, op.stage]
        number = len(copy.history) - 1
        if len(copy.reduced) == number:
            if not copy.pending or copy.pending[-1][0] != op.microbatch:
                raise Wrong("not the step of these gradients")
            copy.reduced.append(dict(copy.pending))
            copy.pending = []
        shares = [self.copies[owner, op.stage].reduced for owner in sorted(owners)]
        if any(len(share) <= number for share in shares):
            return False
        together = {microbatch: grad for share in shares for microbatch, grad in share[number].items()}
        copy.history.append(stepped(copy.history[-1], list(together.values())))
        copy.made_of.append(copy.made_of[-1] | together.keys())
        for microbatch in copy.reduced[number]:
            key = (op.stage, microbatch)
            self.met[key] = (self.stashed[key], self.used[key], number)
            if self.schedule.weight_rule is WeightRule.DOUBLE_BUFFERED and self.batch[microbatch] != number:
                raise Wrong("stages step with different microbatches")
        return True


def weights_after(schedule: Schedule) -> list[int]:
    """Returns the last weight of every stage after a run of `schedule`; all its copies have it."""
    training = Training(schedule).run()
    found = []
    for stage in range(schedule.num_stages):
        ends = {copy.history[-1] for (_, held), copy in training.copies.items() if held == stage}
        assert len(ends) == 1, "copies of a stage have drifted apart"
        found.append(ends.pop())
    return found
