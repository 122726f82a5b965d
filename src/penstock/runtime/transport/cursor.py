"""Where a rank is in its program, readable from another thread."""

from __future__ import annotations

from penstock.ir.ops import NO_MICROBATCH, RECEIVES, SENDS, OpKind, Transfer
from penstock.ir.program import Instruction

_NAMES = {
    OpKind.F: "forward",
    OpKind.B: "backward",
    OpKind.I: "input gradient",
    OpKind.W: "weight gradient",
    OpKind.S: "optimizer step",
    OpKind.REDUCE_GRAD: "gradient reduction",
    OpKind.OFFLOAD: "offload of the activations",
    OpKind.RELOAD: "reload of the activations",
    OpKind.HOST: "taking in the activations",
    OpKind.RETURN: "sending back the activations",
}


def describe(entry: Instruction) -> str:
    """Returns an instruction in words: `1F3 (forward of stage 1 on microbatch 3)`."""
    if isinstance(entry, Transfer):
        verb = "send to rank" if entry.kind in SENDS else "receive from rank"
        peer = entry.channel.target if entry.kind in SENDS else entry.channel.source
        what = f"{verb} {peer}, stage {entry.stage}"
    else:
        what = f"{_NAMES.get(entry.kind, entry.kind.name.lower())} of stage {entry.stage}"
    on = "" if entry.microbatch == NO_MICROBATCH else f" on microbatch {entry.microbatch}"
    return f"{entry} ({what}{on})"


class Cursor:
    """One rank's place: written by the engine at every instruction, read by whoever reports.

    Attributes:
        step: calls of the pipeline so far, counted from 1.
        call: what the user called: "step", "evaluate" or "forward"; empty between calls.
        entries: the program under way.
        index: the instruction under way.
        waiting_for: the rank this one waits for, or -1.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.step = 0
        self.call = ""
        self.entries: tuple[Instruction, ...] = ()
        self.index = 0
        self.waiting_for = -1

    @property
    def entry(self) -> Instruction | None:
        """The instruction under way, None outside a program."""
        return self.entries[self.index] if self.call and self.index < len(self.entries) else None

    @property
    def where(self) -> str:
        """The instruction under way in words."""
        entry = self.entry
        return "between ops" if entry is None or entry.kind in RECEIVES else describe(entry)

    def __str__(self) -> str:
        if not self.call:
            return f"outside the pipeline, after call {self.step}"
        if not self.entries:
            return f"in {self.call} {self.step}, agreeing with the other ranks"
        waiting = f", waiting for rank {self.waiting_for}" if self.waiting_for >= 0 else ""
        place = f"instruction {self.index + 1} of {len(self.entries)}"
        return f"in {self.call} {self.step} at {self.where}, {place}{waiting}"
