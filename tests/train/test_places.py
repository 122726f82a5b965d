"""A place in words: the step is the training step, whatever else the pipeline has been asked to do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from penstock.train.places import place_noted, position


def _pipe(call: str = "", *, done: int = 0, waiting_for: int = -1) -> SimpleNamespace:
    cursor = SimpleNamespace(call=call, where="1F1 (forward)", waiting_for=waiting_for)
    return SimpleNamespace(cursor=cursor, steps_done=done, rank=1, _replicas=None)


@pytest.mark.parametrize(
    ("pipe", "words"),
    [
        (_pipe(), "the start"),
        (_pipe("step"), "1F1 (forward) of step 1"),
        (_pipe("step", done=6, waiting_for=0), "1F1 (forward) of step 7, waiting for rank 0"),
        (_pipe("evaluate", done=6), "1F1 (forward) in evaluate of step 6"),
        (_pipe(done=6), "the training loop's own work of step 6"),
    ],
)
def test_where_a_rank_is(pipe: SimpleNamespace, words: str) -> None:
    assert str(position(pipe)) == words  # type: ignore[arg-type]


def test_an_error_bears_its_place_beyond_the_pipeline() -> None:
    """Symptom: a failed rank "was at between steps". Cause: the cursor had been reset when it was asked."""
    error = ValueError("no")
    assert place_noted(error, _pipe()) is None  # type: ignore[arg-type]
    error.add_note("penstock: raised on rank 1, step 31, 1F1 (forward of stage 1 on microbatch 1)")
    told = place_noted(error, _pipe(done=6))  # type: ignore[arg-type]
    assert str(told) == "1F1 (forward of stage 1 on microbatch 1) of step 7"
