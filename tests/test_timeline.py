"""Timelines, written by hand: what is measured from them."""

from penstock import Op, OpKind, StageCosts, Timeline, one_f_one_b, simulate
from penstock.ir import NO_MICROBATCH, Channel
from penstock.timeline import Shares, Span, Transmission, Wait

F, B, W, I = OpKind.F, OpKind.B, OpKind.W, OpKind.I  # noqa: E741


def two_ranks() -> Timeline:
    """Rank 0 runs 0-2 and 7-10; rank 1 waits 0-3 (sent at 2) and runs 3-6."""
    return Timeline(
        2,
        (
            Span(0, Op(F, 0, 0), 0, 2),
            Span(0, Op(B, 0, 0), 7, 10),
            Span(1, Op(F, 1, 0), 3, 4),
            Span(1, Op(B, 1, 0), 4, 6),
        ),
        (Wait(0, Op(B, 0, 0), 2, 7, 1, 6), Wait(1, Op(F, 1, 0), 0, 3, 0, 2)),
        (
            Transmission(Channel(0, 1, F), Op(F, 1, 0), 2, 3),
            Transmission(Channel(1, 0, B), Op(B, 0, 0), 6, 7),
        ),
        (((0, 8), (0, 12), (10, 8)), ((0, 8), (3, 11), (6, 8))),
    )


def test_the_makespan_runs_from_zero_to_the_last_end() -> None:
    assert two_ranks().makespan == 10


def test_the_per_rank_span_runs_from_a_ranks_own_first_start() -> None:
    late = Timeline(2, (Span(0, Op(F, 0, 0), 0, 4), Span(1, Op(F, 1, 0), 4, 9)))
    assert late.makespan == 9
    assert late.per_rank_span == 5


def test_in_one_f_one_b_the_span_of_rank_0_is_the_whole_step() -> None:
    timeline = simulate(one_f_one_b(4, 8), StageCosts(forward=1, backward=2))
    assert timeline.per_rank_span == timeline.makespan == 33
    last = timeline.by_rank[3]
    assert last[-1].end - last[0].start == 24


def test_busy_is_compute() -> None:
    assert two_ranks().busy == (5, 3)


def test_fraction_is_of_the_total_and_ratio_of_the_ideal() -> None:
    timeline = two_ranks()
    assert timeline.bubble_fraction == 12 / 20
    assert timeline.bubble_ratio == 12 / 8


def test_a_timeline_without_spans_has_no_bubble() -> None:
    empty = Timeline(2, ())
    assert (empty.makespan, empty.per_rank_span, empty.bubble_fraction, empty.bubble_ratio) == (0, 0, 0, 0)
    assert empty.peak_activations == (0, 0)
    assert empty.peak_memory == ()
    assert empty.shares(1) == Shares(0, 0, 0, 0)


def test_spans_are_sorted_onto_their_ranks() -> None:
    rows = two_ranks().by_rank
    assert [[str(span.op) for span in row] for row in rows] == [["0F0", "0B0"], ["1F0", "1B0"]]


def test_peaks_are_of_activations_and_of_bytes() -> None:
    timeline = two_ranks()
    assert timeline.peak_activations == (1, 1)
    assert timeline.peak_memory == (12, 11)


def test_an_input_gradient_frees_the_activations_and_a_weight_gradient_nothing() -> None:
    ops = [Op(F, 0, 0), Op(I, 0, 0), Op(F, 0, 1), Op(W, 0, 0), Op(I, 0, 1), Op(W, 0, 1)]
    timeline = Timeline(1, tuple(Span(0, op, at, at + 1) for at, op in enumerate(ops)))
    assert timeline.peak_activations == (1,)


def test_what_is_offloaded_counts_where_it_is_and_on_both_ranks_under_way() -> None:
    """Rank 0 runs F0 F1 B0 B1; F0's activations are with rank 1 from 2 to 6, each way taking 1."""
    ops = [(F, 0, 0, 1), (F, 1, 3, 4), (B, 1, 4, 5), (B, 0, 7, 8)]
    spans = tuple(Span(0, Op(kind, 0, number), start, end) for kind, number, start, end in ops)
    moves = (
        Transmission(Channel(0, 1, OpKind.OFFLOAD), Op(OpKind.OFFLOAD, 0, 0), 2, 3),
        Transmission(Channel(1, 0, OpKind.RELOAD), Op(OpKind.RELOAD, 0, 0), 5, 6),
    )
    assert Timeline(2, spans).peak_activations == (2, 0)
    assert Timeline(2, spans, transmissions=moves).peak_activations == (1, 1)
    late = (moves[0]._replace(end=3.5), moves[1])
    assert Timeline(2, spans, transmissions=late).peak_activations == (2, 1), "it had not left when F1 began"


def test_forwards_alone_hold_nothing() -> None:
    assert Timeline(1, tuple(Span(0, Op(F, 0, at), at, at + 1) for at in range(3))).peak_activations == (0,)


def test_a_wait_is_the_peers_until_the_message_leaves_and_transfer_after() -> None:
    timeline = two_ranks()
    assert timeline.shares(0) == Shares(compute=5, waiting=4, transfer=1, other=0)
    assert timeline.shares(1) == Shares(compute=3, waiting=2, transfer=1, other=4)


def test_a_message_that_left_before_the_wait_began_is_all_transfer() -> None:
    timeline = Timeline(1, (Span(0, Op(F, 0, 0), 5, 6),), (Wait(0, Op(F, 0, 0), 2, 5, 0, 1),))
    assert timeline.shares(0) == Shares(compute=1, waiting=0, transfer=3, other=2)


def test_a_message_that_left_after_the_wait_ended_is_all_waiting() -> None:
    """Clocks of two ranks differ a little, so a measured message may seem to leave after it came."""
    timeline = Timeline(1, (Span(0, Op(F, 0, 0), 5, 6),), (Wait(0, Op(F, 0, 0), 2, 5, 0, 5.1),))
    assert timeline.shares(0) == Shares(compute=1, waiting=3, transfer=0, other=2)


def test_shares_add_up_to_the_makespan() -> None:
    timeline = two_ranks()
    assert all(sum(timeline.shares(rank)) == timeline.makespan for rank in range(2))


def test_a_reduction_is_time_but_no_activation() -> None:
    reduce = Span(0, Op(OpKind.REDUCE_GRAD, 0, NO_MICROBATCH), 10, 12)
    timeline = Timeline(1, (Span(0, Op(F, 0, 0), 0, 2), Span(0, Op(B, 0, 0), 7, 10), reduce))
    assert timeline.busy == (7,)
    assert timeline.peak_activations == (1,)
