"""How a building block becomes a schedule, step by step."""

from collections import Counter
from itertools import product

import pytest
from tests.schedules.test_block_grid import text

from penstock.schedules.block_grid import FORWARDS, Grid, Pass, Row, eager, repeated, with_weights
from penstock.schedules.block_repetition import squeezed_repetition

BLOCK = [(0, 3, 4, 7), (1, 2, 5, 6)]
"""V-Min for two ranks."""

WIDE = [(0, 4, 8, 13), (2, 3, 10, 12)]
"""V-Half for two ranks."""


def peak(row: Row) -> int:
    """Returns the most microbatches of a stage between F and W."""
    held = most = 0
    for cell in row:
        if cell is not None:
            held += (cell[0] in FORWARDS) - (cell[0] == Pass.W)
            most = max(most, held)
    return most


def kept(grid: Grid) -> list[list[str]]:
    return [[word for word in text(row).split() if word != "."] for row in grid]


def test_a_block_that_is_squeezed_is_drawn_so() -> None:
    assert list(map(text, squeezed_repetition(BLOCK, 3))) == [
        "F0 F1 . f0 i0 w0 . I0 w1 f1 i1 w2 F2 I1 w3 f2 i2 w4 . I2 w5",
        ". F0 f0 . . i0 I0 F1 f1 w0 w1 i1 I1 F2 f2 w2 w3 i2 I2 w4 w5",
    ]


def test_the_nth_w_follows_the_nth_i_as_they_run_after_moving() -> None:
    """i1 of rank 0 moves before I0, so that the second W of rank 0 need not wait for I0."""
    assert text(squeezed_repetition([(0, 5, 10, 15), (3, 4, 13, 14)], 3)[0]) == (
        "F0 F1 F2 f0 i0 f1 w0 i1 w1 I0 w2 I1 w3 . . f2 i2 w4 . I2 w5"
    )


def test_the_steady_phase_stays_as_the_block_repeats() -> None:
    """From the first I of rank 0's first stage to its last F every six ops of a rank are those of the block."""
    words = kept(squeezed_repetition(BLOCK, 9))[0]
    steady = "".join(word[0] for word in words[words.index("I0") : words.index("F8")])
    assert steady.startswith("Iw") and len(steady) >= 5 * 6
    assert all(Counter(steady[start : start + 6]) == Counter("FfiIww") for start in range(3, 27))


@pytest.mark.parametrize("block", [BLOCK, WIDE])
def test_the_peak_is_not_above_that_of_the_repeated_block(block: list[tuple[int, int, int, int]]) -> None:
    for m in range(1, 10):
        before = max(peak(with_weights(repeated(slots, m))) for slots in block)
        assert max(map(peak, squeezed_repetition(block, m))) <= before


def test_what_is_squeezed_ends_sooner_than_what_only_starts_early() -> None:
    def lengths(m: int) -> tuple[int, int]:
        alone = eager([with_weights(repeated(slots, m)) for slots in WIDE])
        return max(map(len, alone)), max(map(len, squeezed_repetition(WIDE, m)))

    assert [lengths(m) for m in (4, 6, 8)] == [(29, 25), (41, 37), (53, 49)]


@pytest.mark.parametrize("block", [BLOCK, WIDE])
def test_every_op_is_there_once_and_after_what_it_needs(block: list[tuple[int, int, int, int]]) -> None:
    for m in (1, 2, 3, 7):
        grid = squeezed_repetition(block, m)
        for row, words in zip(grid, kept(grid), strict=True):
            assert Counter(words) == Counter(
                [f"{letter}{k}" for letter, k in product("FfiI", range(m))] + [f"w{k}" for k in range(2 * m)]
            )
            for k in range(m):
                assert words.index(f"F{k}") < words.index(f"f{k}") < words.index(f"i{k}") < words.index(f"I{k}")
            slots = [
                slot for slot, cell in enumerate(row) if cell is not None and cell[0] in (Pass.I_FIRST, Pass.I_SECOND)
            ]
            weights = [slot for slot, cell in enumerate(row) if cell is not None and cell[0] == Pass.W]
            assert all(made < used for made, used in zip(slots, weights, strict=True))
