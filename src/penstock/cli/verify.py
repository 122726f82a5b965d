"""`penstock verify`: a proof that a schedule runs correctly, or its counter-example."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from penstock.cli.options import Chunks, Microbatches, Ranks, Subject, parse, read_schedule_or_program
from penstock.ir import COMPUTE, SENDS
from penstock.verifier import Proof, verify


@dataclass(frozen=True)
class Verify:
    """Prove that a schedule or program runs to its end and computes what it should, or show why it does not."""

    schedule: Subject
    """A name, "auto" for the best found by search, or a file with a schedule (JSON, grid, CSV) or program (JSON)."""
    ranks: Ranks = None
    """Number of ranks p, for a schedule given by name."""
    microbatches: Microbatches = None
    """Number of microbatches m, for a schedule given by name."""
    num_chunks: Chunks = None
    """Number of stages a rank v, for a schedule given by name."""


def run(argv: list[str]) -> int:
    """Verifies the schedule that `argv` names; returns the exit code. A counter-example is raised."""
    options = parse(Verify, argv, command="verify")
    subject = read_schedule_or_program(
        options.schedule,
        num_ranks=options.ranks,
        num_microbatches=options.microbatches,
        num_chunks=options.num_chunks,
    )
    proof = verify(subject)
    schedule = proof.program.schedule
    kinds = Counter(entry.kind for _, _, entry in proof.program.instructions())
    ops = sum(kinds[kind] for kind in COMPUTE)
    messages = sum(kinds[kind] for kind in SENDS)
    console = Console()
    console.print(
        f"{schedule.name} is correct: {schedule.num_ranks} ranks, {schedule.num_stages} stages, "
        f"{schedule.num_microbatches} microbatches, {ops} ops, {messages} messages.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        "Every op runs once and finds what it needs, messages match on every channel,\n"
        "and no rank waits for ever, even when each send blocks until it is received.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_table(proof))
    return 0


def _table(proof: Proof) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("rank", "ops", "peak activations", "peak deferred", "receive slots"):
        table.add_column(heading, justify="left" if heading.startswith("receive") else "right")
    for rank, ops in enumerate(proof.program.schedule.ranks):
        slots = [
            f"{slots} {channel.kind.name} from {channel.source}"
            for channel, slots in proof.receive_slots
            if channel.target == rank
        ]
        peaks = (proof.peak_activations[rank], proof.peak_deferred[rank])
        table.add_row(str(rank), str(len(ops)), *map(str, peaks), ", ".join(slots) or "-")
    return table
