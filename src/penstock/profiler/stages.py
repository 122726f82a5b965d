"""The stages of a profiled model under a program: what their ops are made of, and what they keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from penstock.costs import StageCosts
from penstock.errors import UserError
from penstock.ir.ops import OpKind
from penstock.ir.program import Program
from penstock.partition import Partition
from penstock.profiler.values import Boundary, LayerProfile, MessageCosts, Profile

Seconds = dict[OpKind, tuple[float, ...]]
"""Kind of op -> its seconds on each stage."""


class Parts(NamedTuple):
    """What the ops of a rank are made of.

    Attributes:
        compute: the layers.
        host: the engine's work between ops, and sending.
        transfer: taking what has come from another rank.
    """

    compute: Seconds
    host: Seconds
    transfer: Seconds

    def whole(self, kind: OpKind) -> tuple[float, ...]:
        """Returns the seconds of an op on each stage."""
        return tuple(map(sum, zip(*(part[kind] for part in self), strict=True)))


def parts_of(profile: Profile, program: Program, stages: Sequence[ProfiledStage]) -> Parts:
    """Returns what the ops of each stage are made of, by the profile."""
    rows = [_seconds(stage, profile, program) for stage in stages]
    compute = {kind: tuple(row[kind] for row in rows) for kind in _KINDS}
    messages = [_messages(stage, profile, program) for stage in stages]
    ahead, back = ([pair[index] for pair in messages] for index in (0, 1))
    whose = {OpKind.F: ahead, OpKind.B: back, OpKind.I: back}
    none = [_Ends()] * len(stages)
    host = {kind: tuple(profile.host.op_seconds + ends.sending for ends in whose.get(kind, none)) for kind in _KINDS}
    transfer = {kind: tuple(ends.taking for ends in whose.get(kind, none)) for kind in _KINDS}
    host[OpKind.REDUCE_GRAD] = tuple(_reduction(stage, profile, program) for stage in stages)
    compute[OpKind.REDUCE_GRAD] = transfer[OpKind.REDUCE_GRAD] = (0.0,) * len(stages)
    return Parts(compute, host, transfer)


_KINDS = (OpKind.F, OpKind.B, OpKind.I, OpKind.W)


def stage_costs(parts: Parts, program: Program, stages: Sequence[ProfiledStage]) -> StageCosts:
    """Returns what the stages cost under `program`: layers, the host's part of ops, what messages take of ranks."""
    return StageCosts(
        forward=parts.whole(OpKind.F),
        input_grad=parts.whole(OpKind.I),
        weight_grad=parts.whole(OpKind.W),
        backward=parts.whole(OpKind.B),
        reduce_grad=parts.whole(OpKind.REDUCE_GRAD),
        parameter_bytes=[sum(layer.parameter_bytes for layer in stage.layers) for stage in stages],
        gradient_bytes=[stage.gradient_bytes for stage in stages],
        activation_bytes=[stage.kept_bytes(program) for stage in stages],
        deferred_bytes=[sum(stage.deferred()) for stage in stages],
        boundary_bytes=[stage.output.bytes for stage in stages],
    )


class ProfiledStage(NamedTuple):
    """The layers of one stage.

    Attributes:
        number: of the stage.
        layers: its layers.
        again: of each, whether its forward runs once more.
        entering: what comes from the stage before; nothing on the first.
        split: share of its microbatches whose backward runs as I and W apart.
    """

    number: int
    layers: tuple[LayerProfile, ...]
    again: tuple[bool, ...]
    entering: Boundary
    split: float

    @property
    def gradient_bytes(self) -> int:
        """Of its trained parameters."""
        return sum(layer.gradient_bytes for layer in self.layers)

    @property
    def output(self) -> Boundary:
        """What goes to the stage after."""
        return self.layers[-1].output

    def kept(self) -> list[int]:
        """Returns what F keeps of each layer, its own input among it, the stage's left out."""
        found = []
        for index, (layer, twice) in enumerate(zip(self.layers, self.again, strict=True)):
            inside = 0 if twice else layer.activation_bytes
            from_before = index > 0 and (twice or layer.keeps_input or self.layers[index - 1].keeps_output)
            found.append(inside + (layer.input_bytes if from_before else 0))
        if self.layers[-1].keeps_output and not self.again[-1]:
            found[-1] += self.output.bytes
        return found

    def deferred(self) -> list[int]:
        """Returns what I keeps of each layer, its own input among it, what lies in the stage's buffers left out."""
        found = []
        for index, layer in enumerate(self.layers):
            inputs = layer.input_bytes if index and layer.defers_input else 0
            grads = layer.output.grad_bytes if index + 1 < len(self.layers) and layer.defers_output_grad else 0
            found.append(layer.deferred_bytes + inputs + grads)
        return found

    def kept_bytes(self, program: Program) -> int:
        """Returns what F keeps of the stage; its input too, where that is in no receive buffer."""
        rows = program.schedule.placement.table
        local = self.number > 0 and all(row[self.number - 1] == row[self.number] for row in rows)
        holds = local and (self.layers[0].keeps_input or self.again[0])
        return sum(self.kept()) + (self.entering.bytes if holds else 0)


def stages_of(
    profile: Profile, program: Program, partition: Partition, recompute: Sequence[bool]
) -> list[ProfiledStage]:
    """Returns the stages of `partition` under `program`.

    Args:
        profile: of the model.
        program: as it runs (`as_run`); says which stages have their backward split.
        partition: of the layers.
        recompute: of each layer, whether its forward runs again; empty: of none.

    Raises:
        UserError: a partition of other layers, or choices for another number of them.
    """
    num_stages = program.schedule.num_stages
    partition.check(profile.num_layers, num_stages)
    again = tuple(recompute) or (False,) * profile.num_layers
    if len(again) != profile.num_layers:
        raise UserError(f"recompute has {len(again)} choices for {profile.num_layers} layers; give one a layer")
    split = _split_shares(program)
    stages = []
    for number in range(num_stages):
        held = partition.layers_of(number)
        entering = profile.layers[held.start - 1].output if number else Boundary()
        layers = profile.layers[held.start : held.stop]
        stages.append(ProfiledStage(number, layers, again[held.start : held.stop], entering, split.get(number, 0.0)))
    return stages


def _split_shares(program: Program) -> dict[int, float]:
    """Returns stage -> the share of its backwards that run as I and W apart; stages without any are left out."""
    apart = Counter(entry.stage for _, _, entry in program.instructions() if entry.kind == OpKind.I)
    return {stage: count / program.schedule.num_microbatches for stage, count in apart.items()}


def _seconds(stage: ProfiledStage, profile: Profile, program: Program) -> dict[OpKind, float]:
    """Returns the seconds of the stage's layers in each kind of op."""
    split = stage.split
    first_saves = sum(layer.accumulate_seconds for layer in stage.layers) / program.schedule.num_microbatches
    return {
        OpKind.F: (1 - split) * _sum(stage, "forward") + split * _sum(stage, "split_forward"),
        OpKind.B: max(0.0, _sum(stage, "backward", "recompute_backward") - first_saves),
        OpKind.I: _sum(stage, "input_grad", "recompute_input_grad"),
        OpKind.W: max(0.0, _sum(stage, "weight_grad") - first_saves),
    }


def _sum(stage: ProfiledStage, op: str, repeated: str = "") -> float:
    """Returns the seconds of one op: its first layer's, and what each behind it adds; no less than any alone.

    Args:
        stage: its layers.
        op: the name of the op.
        repeated: its name on layers whose forward runs once more; empty: the same.
    """
    names = [repeated if twice and repeated else op for twice in stage.again]
    alone = [getattr(layer.seconds, name).seconds for layer, name in zip(stage.layers, names, strict=True)]
    behind = [layer.behind(name) for layer, name in zip(stage.layers[1:], names[1:], strict=True)]
    return float(max(*alone, alone[0] + sum(behind)) if behind else alone[0])


class _Ends(NamedTuple):
    """Seconds of one op for messages: taking what comes, sending what goes."""

    taking: float = 0.0
    sending: float = 0.0


def _messages(stage: ProfiledStage, profile: Profile, program: Program) -> tuple[_Ends, _Ends]:
    """Returns the rank's seconds for messages of F and of the backward, the mean over replicas."""
    table = program.schedule.placement.table
    ahead, back = [], []
    for row in table:
        here = row[stage.number]
        before = row[stage.number - 1] if stage.number else here
        after = row[stage.number + 1] if stage.number + 1 < len(row) else here
        onto, out = profile.messages(before, here), profile.messages(here, before)
        on, home = profile.messages(here, after), profile.messages(after, here)
        ahead.append(
            _Ends(
                onto.receives(stage.entering, back=False) if before != here else 0.0,
                on.sends(stage.output, back=False) if after != here else 0.0,
            )
        )
        back.append(
            _Ends(
                home.receives(stage.output, back=True) if after != here else 0.0,
                out.sends(stage.entering, back=True) if before != here else 0.0,
            )
        )
    return _mean(ahead), _mean(back)


def _mean(rows: Sequence[_Ends]) -> _Ends:
    return _Ends(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))


def _reduction(stage: ProfiledStage, profile: Profile, program: Program) -> float:
    """Returns the seconds in which a rank hands a stage's gradients on to its other owners."""
    ways = _other_owners(stage, profile, program)
    seconds = profile.host.gather_seconds_per_byte if ways else 0.0
    return stage.gradient_bytes * (seconds + sum(way.send_seconds_per_byte for way in ways))


def closing_seconds(stages: Sequence[ProfiledStage], profile: Profile, program: Program) -> float:
    """Returns the seconds in which a rank, at its program's end, takes the gradients of other owners and adds them."""
    placement = program.schedule.placement
    taking = [
        stage.gradient_bytes * sum(way.receive_seconds_per_byte + profile.host.sum_seconds_per_byte for way in ways)
        for stage in stages
        for ways in [_other_owners(stage, profile, program)]
    ]
    return max(sum(taking[stage] for stage in placement.held(rank)) for rank in range(program.num_ranks))


def _other_owners(stage: ProfiledStage, profile: Profile, program: Program) -> list[MessageCosts]:
    """Returns what messages to the other owners of a stage take."""
    owners = program.schedule.placement.owners(stage.number)
    return [profile.messages(owners[0], other) for other in owners[1:]]
