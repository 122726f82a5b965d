"""An I with its own W right behind it runs as one full backward."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.runtime.runs import run
from torch import nn

import penstock as ps
from penstock.ir.ops import Op, OpKind
from penstock.runtime.stage_work import StageWork


@pytest.mark.parametrize("name", ["zb_h1", "zb_v", "dualpipe_v"])
def test_an_i_that_is_followed_by_its_own_w_runs_as_one_backward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counting(what: str) -> Any:
        plain = getattr(StageWork, what)

        def counted(*args: object) -> object:
            calls[what] += 1
            return plain(*args)

        return counted

    for what in ("backward", "input_grads", "weight_grads"):
        monkeypatch.setattr(StageWork, what, counting(what))
    schedule = ps.named_schedule(name, num_ranks=2, num_microbatches=6)
    ops = [op for order in schedule.ranks for op in order]
    halves, full = (sum(op.kind == kind for op in ops) for kind in (OpKind.I, OpKind.B))
    # Not where a message stands between them: whoever waits for the input gradient would wait for W too.
    wholes = sum(
        isinstance(op, Op) and op.kind == OpKind.I and after == op._replace(kind=OpKind.W)
        for entries in ps.lower(schedule).ranks
        for op, after in pairwise(entries)
    )
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(schedule.num_stages)))
    run(model, [(torch.randn(12, 3), torch.randn(12, 3))], num_ranks=2, schedule=schedule)
    assert halves > wholes > 0
    # `input_grads` walks the graph by `backward`.
    assert calls == {"input_grads": halves - wholes, "weight_grads": halves - wholes, "backward": halves + full}
