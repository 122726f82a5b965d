"""The cyclic garbage collector is found as it was left."""

import gc

import pytest

from penstock.ir.collector import collector_paused


def test_the_collector_stands_still_during_the_call_and_runs_again_after_it() -> None:
    assert gc.isenabled()
    assert collector_paused(gc.isenabled)() is False
    assert gc.isenabled()


def test_it_runs_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        collector_paused(lambda: 1 // 0)()
    assert gc.isenabled()


def test_who_has_stopped_it_finds_it_stopped() -> None:
    gc.disable()
    try:
        collector_paused(int)()
        assert not gc.isenabled()
    finally:
        gc.enable()
