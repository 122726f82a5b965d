"""verify: what it takes and what its proof holds."""

from hypothesis import given
from tests.random_schedules import valid_schedules

from penstock import Schedule, lower, one_f_one_b, verify
from penstock.ir import Channel, OpKind


@given(schedule=valid_schedules())
def test_a_schedule_and_its_program_have_one_proof(schedule: Schedule) -> None:
    assert verify(schedule) == verify(lower(schedule))


def test_the_proof_holds_the_program_it_is_of() -> None:
    program = lower(one_f_one_b(2, 3), reduce_gradients=True)
    assert verify(program).program is program


def test_the_proof_of_one_f_one_b_at_two_ranks() -> None:
    proof = verify(one_f_one_b(2, 8))
    assert proof.peak_activations == (2, 1)
    assert proof.peak_deferred == (0, 0)
    assert proof.receive_slots == ((Channel(0, 1, OpKind.F), 2), (Channel(1, 0, OpKind.B), 2))
