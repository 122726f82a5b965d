from __future__ import annotations

import signal

import pytest

from penstock.train.failures import Ending, Failure, Position, died, first_cause, is_lost_connection, tell


def test_a_killed_rank_is_the_cause_of_a_connection_lost_before_its_death_was_seen() -> None:
    lost = Failure(0, Ending.LOST_CONNECTION, seconds=100.2, message="RuntimeError: Connection closed by peer")
    killed = died(1, -signal.SIGKILL, seconds=101)
    assert first_cause([lost, killed]) is killed


def test_the_earlier_of_two_errors_is_the_cause() -> None:
    later, earlier = (Failure(rank, Ending.ERROR, seconds=100.0 - rank) for rank in (0, 1))
    assert first_cause([later, earlier]) is earlier


def test_a_rank_that_the_launcher_had_to_kill_is_not_the_cause() -> None:
    lost = Failure(0, Ending.LOST_CONNECTION, seconds=100.2)
    assert first_cause([died(1, -signal.SIGKILL, seconds=130), lost]) is lost


def test_a_stopped_rank_is_the_cause_only_if_all_were_stopped() -> None:
    stopped, error = Failure(0, Ending.STOPPED, seconds=99.0), Failure(1, Ending.ERROR, seconds=100.0)
    assert first_cause([stopped, error]) is error
    assert first_cause([stopped, died(1, -signal.SIGTERM, seconds=100.0)]) is stopped


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (
            -signal.SIGKILL,
            "rank 3 was killed by SIGKILL (somebody's kill -9, or the system ran out of memory",
        ),
        (-signal.SIGSEGV, "rank 3 was killed by SIGSEGV (a crash in native code)"),
        (-signal.SIGUSR1, "rank 3 was killed by SIGUSR1"),
        (-signal.SIGRTMAX + 1, "rank 3 was killed by signal 63"),
        (7, "rank 3 ended with exit code 7 and gave no reason"),
    ],
)
def test_a_silent_end_is_told_by_signal_name_or_exit_code(exit_code: int, words: str) -> None:
    assert tell(died(3, exit_code, seconds=0.0)).startswith(words)


def test_an_error_is_told_with_where_every_rank_was_and_its_traceback() -> None:
    failure = Failure(1, Ending.ERROR, 0.0, "ValueError: no", "Traceback …\nValueError: no\n", Position("F", 3))
    others = {0: Position("RECV stage 0", step=3, waiting_for="rank 1"), 1: Position("elsewhere")}
    assert tell(failure, others=others) == (
        "rank 1 failed: ValueError: no\n"
        "  it was at F of step 3\n"
        "  rank 0 was at RECV stage 0 of step 3, waiting for rank 1\n"
        "Traceback …\n"
        "ValueError: no"
    )


def test_a_user_error_is_told_by_its_message_alone() -> None:
    failure = Failure(1, Ending.USER_ERROR, 0.0, "use 4", "", Position("F"))
    assert tell(failure, others={0: Position("B")}) == "use 4"


def test_a_lost_connection_is_found_behind_the_error_that_reports_it() -> None:
    lost = RuntimeError("[…/pair.cc:537] Connection closed by peer [127.0.0.1]:4711")
    report = ValueError("step 3 did not finish")
    report.__cause__ = lost
    assert is_lost_connection(lost)
    assert is_lost_connection(report)
    assert is_lost_connection(BrokenPipeError())
    assert not is_lost_connection(RuntimeError("shapes differ"))
    assert not is_lost_connection(ValueError("the text says: connection closed by peer"))
