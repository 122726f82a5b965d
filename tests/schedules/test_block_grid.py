"""Grids of building blocks, by hand."""

from penstock.schedules.block_grid import (
    Grid,
    Pass,
    Row,
    cells,
    eager,
    needs,
    repeated,
    with_weights,
    without_weights,
)

F0, F1, I1, I0, W = Pass

LETTERS = {F0: "F", F1: "f", I1: "i", I0: "I", W: "w"}


def text(row: Row) -> str:
    """Returns `F0 f0 .  i0`; small letters for the stage that forwards reach last."""
    return " ".join("." if cell is None else f"{LETTERS[cell[0]]}{cell[1]}" for cell in row)


def row_of(written: str) -> Row:
    passes = {letter: kind for kind, letter in LETTERS.items()}
    return [None if word == "." else (passes[word[0]], int(word[1:])) for word in written.split()]


def test_a_block_is_repeated_every_six_slots() -> None:
    assert text(repeated((0, 3, 5, 8), 2)) == "F0 . . f0 . i0 F1 . I0 f1 . i1 . . I1"


def test_each_i_gets_a_w_in_the_first_free_slot_or_at_the_end() -> None:
    bare = row_of("F0 . . f0 . i0 F1 . I0 f1 . i1 . . I1")
    assert text(with_weights(bare)) == "F0 . . f0 . i0 F1 w0 I0 f1 w1 i1 w2 . I1 w3"
    assert text(with_weights(row_of("F0 f0 i0 I0"))) == "F0 f0 i0 I0 w0 w1"
    assert text(without_weights(with_weights(bare))) == text(bare) + " ."


def test_ops_come_by_in_the_order_of_time() -> None:
    grid: Grid = [row_of("F0 . f0"), row_of(". F0")]
    assert [(slot, rank, LETTERS[cell[0]]) for slot, rank, cell in cells(grid)] == [
        (0, 0, "F"),
        (1, 1, "F"),
        (2, 0, "f"),
    ]


def test_an_op_needs_its_neighbour_the_pass_before_and_the_microbatch_before() -> None:
    assert needs(0, (F0, 0), 3) == []
    assert needs(1, (F0, 2), 3) == [(0, F0, 2), (1, F0, 1)]
    assert needs(2, (F1, 0), 3) == [(2, F0, 0)]
    assert needs(1, (F1, 1), 3) == [(2, F1, 1), (1, F0, 1), (1, F1, 0)]
    assert needs(0, (I1, 0), 3) == [(0, F1, 0)]
    assert needs(1, (I0, 0), 3) == [(2, I0, 0), (1, I1, 0)]
    assert needs(1, (W, 0), 3) == []
    assert needs(1, (W, 4), 3) == [(1, W, 3)]


def test_eager_ops_keep_their_order_and_lose_their_gaps() -> None:
    grid: Grid = [row_of(". F0 . . . . f0 . i0 . . . . I0"), row_of(". . . F0 f0 . . . . . i0 I0")]
    assert list(map(text, eager(grid))) == ["F0 . . f0 i0 . . I0", ". F0 f0 . . i0 I0"]
