"""verify: a proof that a program runs correctly, or a refusal that shows why not."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import check_type
from penstock.ir.collector import collector_paused
from penstock.ir.ops import Channel
from penstock.ir.program import Program
from penstock.ir.schedule import Schedule
from penstock.lowering import lower
from penstock.verifier.completeness import check_completeness, check_order
from penstock.verifier.gathers import check_gathers
from penstock.verifier.messages import check_messages
from penstock.verifier.offloading import check_guests, check_offloading
from penstock.verifier.peaks import peak_activations, peak_deferred, peak_guests, ring_sizes
from penstock.verifier.progress import check_progress
from penstock.verifier.reductions import check_reductions
from penstock.verifier.weights import weights_of


@dataclass(frozen=True)
class Proof:
    """What holds for a verified program.

    Attributes:
        program: the program that was proven; what the runtime executes.
        peak_activations: per rank the most (stage, microbatch) pairs between F and B or I, what it has offloaded left
            out, what it keeps for other ranks (`peak_guests`) added.
        peak_deferred: per rank the most pairs between I and W.
        receive_slots: per channel how many receive buffers its ring needs.
        weight_versions: per rank the most weight versions of one stage that it keeps at once; 1 under flush.
        staleness: per stage the most versions it moves on between a microbatch's forward and the step that applies
            its gradient; 0 under flush. `penstock.verifier.weights` has them for every microbatch.
        peak_guests: per rank the most activations that it keeps at once for ranks that offload to it.
        peak_gathered: per rank the most stages whose parameters it has gathered at once; 0 where it shares none.
    """

    program: Program
    peak_activations: tuple[int, ...]
    peak_deferred: tuple[int, ...]
    receive_slots: tuple[tuple[Channel, int], ...]
    weight_versions: tuple[int, ...]
    staleness: tuple[int, ...]
    peak_guests: tuple[int, ...]
    peak_gathered: tuple[int, ...]


@collector_paused
def verify(subject: Schedule | Program) -> Proof:
    """Returns the proof that `subject` runs to its end and computes what it should.

    A schedule is lowered first. Proven, in this order: every op occurs exactly once, on the rank that holds its stage;
    what is offloaded comes back before its backward; lowering kept the order; gradients are reduced once, when they
    are complete, by all owners of a stage or by none; parameters that replicas share are gathered where an op needs
    them, and let go before the end; sends and receives match one to one, in the same order, on every
    channel, and so does what is offloaded and kept; every op finds what it consumes, an overlapped pair what both its
    ops consume, and all ranks reach their end under rendezvous semantics, in which a send blocks until its receive is
    posted (so they do under any buffering); every forward and backward finds the weight version that the schedule's
    weight rule wants.

    Raises:
        VerificationError: with the counter-example: the missing or doubled op, the message without a partner,
            the cycle of ops that wait for one another, or the op whose weights are not there, with ranks and
            positions.
    """
    check_type("subject", subject, Schedule, Program, example="e.g. penstock.gpipe(4, 8)")
    schedule = subject if isinstance(subject, Schedule) else subject.schedule
    check_completeness(schedule)
    check_offloading(schedule)
    program = lower(subject) if isinstance(subject, Schedule) else subject
    check_order(program)
    check_reductions(program)
    gathered = check_gathers(program)
    check_messages(program)
    check_guests(program)
    check_progress(program)
    weights = weights_of(schedule)
    guests = peak_guests(schedule)
    return Proof(
        program,
        tuple(peak_activations(ops) + kept for ops, kept in zip(schedule.ranks, guests, strict=True)),
        tuple(map(peak_deferred, schedule.ranks)),
        tuple(ring_sizes(program).items()),
        weights.versions,
        weights.staleness,
        guests,
        gathered,
    )
