"""One op as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Op, OpKind, Placement
from penstock.errors import NotationError
from penstock.ir import ORDERED
from penstock.notation import parse_op
from penstock.notation.cells import cell

VEE = Placement.replicas((0, 1, 1, 0))
BOTH = Placement.replicas((0, 1), (1, 0))


@pytest.mark.parametrize(
    ("text", "rank", "placement", "op"),
    [
        ("F3", 1, Placement.looped(2), Op(OpKind.F, 1, 3)),
        ("1F3", 1, Placement.looped(2), Op(OpKind.F, 1, 3)),
        ("3W12", 0, VEE, Op(OpKind.W, 3, 12)),
        ("B0@1", 0, BOTH, Op(OpKind.B, 1, 0, replica=1)),
        ("S7", 0, Placement.looped(1), Op(OpKind.S, 0, 7)),
    ],
)
def test_an_op_is_read(text: str, rank: int, placement: Placement, op: Op) -> None:
    assert parse_op(text, rank=rank, placement=placement) == op


@given(
    kind=st.sampled_from(sorted(ORDERED)),
    microbatch=st.integers(0, 10**6),
    place=st.sampled_from([(VEE, 0), (BOTH, 0), (BOTH, 1), (Placement.looped(4), 0), (Placement.looped(2, 3), 0)]),
    data=st.data(),
)  # fmt: skip
def test_an_op_is_read_back_as_written(
    kind: OpKind, microbatch: int, place: tuple[Placement, int], data: st.DataObject
) -> None:
    placement, replica = place
    stage = data.draw(st.integers(0, placement.num_stages - 1))
    rank = data.draw(st.integers(0, placement.num_ranks - 1))
    op = Op(kind, stage, microbatch, replica)
    assert parse_op(str(op), rank=rank, placement=placement) == op
    assert parse_op(cell(op, placement=placement, rank=rank), rank=rank, placement=placement) == op


def test_the_stage_is_left_out_where_the_rank_holds_only_that_one() -> None:
    assert cell(Op(OpKind.F, 1, 3), placement=Placement.looped(2), rank=1) == "F3"
    assert cell(Op(OpKind.F, 3, 0), placement=VEE, rank=0) == "3F0"
    assert cell(Op(OpKind.F, 0, 0), placement=Placement.looped(2), rank=1) == "0F0", "misplaced"


@pytest.mark.parametrize(
    ("text", "placement", "said"),
    [
        ("X0", BOTH, 'rank 0: "X0" is not an op; write stage, kind, microbatch, e.g. 0F3 or 1B0'),
        ("F", BOTH, '"F" is not an op'),
        ("F-1", BOTH, '"F-1" is not an op'),
        ("f0", BOTH, '"f0" is not an op'),
        ("0F0@", BOTH, '"0F0@" is not an op'),
        ("0SEND_F0", BOTH, '"0SEND_F0" is not an op'),
        ("0REDUCE_GRAD0", BOTH, "is not an op"),
        ("2F0", BOTH, 'rank 0: "2F0" names stage 2 of 2'),
        ("0F0@2", BOTH, 'rank 0: "0F0@2" names replica 2 of 2'),
        ("F0", VEE, 'rank 0: "F0" has no stage and the rank holds 0, 3; write e.g. 0F0'),
        ("F0@1", Placement.replicas((0, 1), (1, 1)), "has no stage and the rank holds none"),
    ],
)  # fmt: skip
def test_what_is_no_op_is_refused_with_its_text(text: str, placement: Placement, said: str) -> None:
    with pytest.raises(NotationError) as refused:
        parse_op(text, rank=0, placement=placement)
    assert said in str(refused.value)
