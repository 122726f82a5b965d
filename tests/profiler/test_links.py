"""Messages: lines through what was measured, over transports that take a known time."""

import pytest
import torch

import penstock as ps
from penstock.profiler.links import _fitted, _line, message_costs


def test_a_line_is_found_again() -> None:
    assert _line((256, 8192, 65536), [2e-5 + 1e-9 * size for size in (256, 8192, 65536)]) == pytest.approx((2e-5, 1e-9))


def test_a_line_is_never_negative() -> None:
    assert _line((1, 2, 4), (3e-5, 3e-5, 1e-5))[1] == 0
    assert _line((10, 20, 30), (1e-5, 4e-5, 9e-5))[0] == 0


def test_the_three_parts_of_a_message_are_told_apart() -> None:
    """A send of 20 + n/1000 µs, 30 µs under way, and taking of 10 + n/500 µs."""
    sizes = (256, 8192, 65536)
    sent, received = (torch.zeros(3, 2, 5, 2, dtype=torch.float64) for _ in range(2))
    for index, size in enumerate(sizes):
        send, take = 20e-6 + size * 1e-9, 10e-6 + size * 2e-9
        sent[index, :, :, 1] = send
        received[index, 0, :, 0] = -1e-3  # it waited
        received[index, 0, :, 1] = send + 30e-6 + take
        received[index, 1, :, 0] = 1.0  # it was there
        received[index, 1, :, 1] = 1.0 + take
    found = _fitted(sizes, sent, received)
    assert (found.send_seconds, found.send_seconds_per_byte) == pytest.approx((20e-6, 1e-9))
    assert (found.receive_seconds, found.receive_seconds_per_byte) == pytest.approx((10e-6, 2e-9))
    assert found.latency_seconds == pytest.approx(30e-6)
    assert found.seconds_per_byte == pytest.approx(0, abs=1e-13)


def test_all_ranks_learn_the_same_of_two_of_them() -> None:
    def rank(transport: ps.LoopbackTransport) -> object:
        return message_costs(transport, 1, 2, largest=1 << 16, device=torch.device("cpu"))

    found = ps.run_ranks(rank, 3, timeout_seconds=60)
    assert found[0] == found[1] == found[2]
    assert found[0].send_seconds + found[0].send_seconds_per_byte > 0
