"""Activations on their way to the rank that keeps them, and back."""

from penstock import Cluster, Device, Link, StageCosts, parse_grid, simulate
from penstock.timeline import Timeline

AWAY = parse_grid("""
    away p=3 m=3 weights=flush placement=0,1,2 keepers=2,1,0
    rank 0: F0 F1,OFFLOAD1 F2,OFFLOAD2 B0,RELOAD1,RELOAD2 B1 B2
    rank 1: F0 F1 B0 F2 B1 B2
    rank 2: F0 B0 F1 B1 F2 B2
""")


def away(*, copy: float, rate: float = 1, latency: float = 0) -> Timeline:
    """Returns the simulation of F = B = 2 with `copy` bytes of activations."""
    cluster = Cluster((Device(),) * 3, ((3, Link(latency, rate)),))
    return simulate(AWAY, StageCosts(forward=2, backward=2, activation_bytes=copy), cluster)


def times(timeline: Timeline, rank: int) -> str:
    return " ".join(f"{span.op}:{span.start:g}-{span.end:g}" for span in timeline.by_rank[rank])


def copies(timeline: Timeline) -> list[tuple[str, str, float, float]]:
    return [
        (str(message.channel), str(message.op), message.start, message.end)
        for message in timeline.transmissions
        if "LOAD" in message.channel.kind.name
    ]


#             0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17        F = B = 2, a copy 3
#   rank 0    F0 F0 F1 F1 .  .  .  F2 F2 .  B0 B0 .  .  .  B1 B1 .
#   copies                1--------> 2-------->  1--------> 2-------->
def test_a_forward_waits_for_the_memory_that_an_offload_leaves_and_a_backward_for_its_reload() -> None:
    timeline = away(copy=3)
    assert copies(timeline) == [
        ("0→2 OFFLOAD", "0OFFLOAD1", 4, 7),
        ("0→2 OFFLOAD", "0OFFLOAD2", 9, 12),
        ("2→0 RELOAD", "0RELOAD1", 12, 15),
        ("2→0 RELOAD", "0RELOAD2", 15, 18),
    ]
    assert times(timeline, 0) == "0F0:0-2 0F1:2-4 0F2:7-9 0B0:10-12 0B1:15-17 0B2:18-20"
    waits = [(str(wait.op), wait.start, wait.end, wait.source) for wait in timeline.waits if wait.rank == 0]
    assert waits == [("0F2", 4, 7, 2), ("0B0", 9, 10, 1), ("0B1", 12, 15, 2), ("0B2", 17, 18, 2)]
    assert sum(timeline.shares(0)) == timeline.makespan


def test_copies_of_a_rank_run_one_after_another() -> None:
    """RELOAD1 is asked for at 12, while OFFLOAD2 runs until 26: what it takes may be what that one leaves."""
    timeline = away(copy=10)
    assert [copy[1:] for copy in copies(timeline)] == [
        ("0OFFLOAD1", 4, 14),
        ("0OFFLOAD2", 16, 26),
        ("0RELOAD1", 26, 36),
        ("0RELOAD2", 36, 46),
    ]


def test_a_copy_takes_latency_and_bytes_over_bandwidth() -> None:
    first = copies(away(copy=6, rate=2, latency=5))[0]
    assert first == ("0→2 OFFLOAD", "0OFFLOAD1", 4, 12)


def test_free_copies_change_nothing_but_where_bytes_lie() -> None:
    free = away(copy=4, rate=float("inf"))
    assert times(free, 0) == "0F0:0-2 0F1:2-4 0F2:4-6 0B0:10-12 0B1:14-16 0B2:18-20"
    assert free.peak_memory == (8, 8, 12)
    assert free.peak_activations == (2, 2, 3)


def test_bytes_under_way_are_held_at_both_ends() -> None:
    """Microbatch 1 leaves rank 0 from 4 to 7; F2 takes its place at 7."""
    timeline = away(copy=3)
    curve = [(0, 0), (0, 3), (2, 6), (7, 3), (7, 6), (12, 3), (12, 0), (12, 3), (15, 6), (17, 3), (20, 0)]
    assert list(timeline.memory[0]) == curve
    assert timeline.peak_activations == (2, 2, 3)


def test_an_offload_counts_on_its_keeper_from_the_first_byte() -> None:
    timeline = away(copy=3)
    kept = [(at, held) for at, held in timeline.memory[2] if at <= 9]
    assert kept == [(0, 0), (4, 3), (4, 6), (8, 3), (8, 6), (9, 9)]


def test_the_device_speed_does_not_hasten_a_copy() -> None:
    cluster = Cluster((Device(speed=2),) * 3, ((3, Link(bytes_per_second=1)),))
    timeline = simulate(AWAY, StageCosts(forward=2, backward=2, activation_bytes=3), cluster)
    assert copies(timeline)[0] == ("0→2 OFFLOAD", "0OFFLOAD1", 2, 5)
