"""Loading takes memory for what is loaded, once: tensors are copied from a mapping of their file, one at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys, threading, time
from pathlib import Path
import torch
import penstock as ps
from penstock import checkpoint
from penstock.checkpoint import optimizer_state, pipeline_state

LAYERS, WIDTH = 12, 700
torch.set_num_threads(1)

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

def begun(transport):
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    pipe = ps.Pipeline(model, torch.nn.functional.mse_loss, transport=transport, num_microbatches=1)
    return pipe, torch.optim.AdamW(pipe.parameters())

def save(transport):
    pipe, optimizer = begun(transport)
    data = torch.zeros(1, WIDTH)
    pipe.step(data, data)
    optimizer.step()
    return checkpoint.save(sys.argv[1], pipe, optimizer=optimizer)

def load(transport):
    pipe, optimizer = begun(transport)
    highest = []
    placed = optimizer_state._placed
    def noting(*arguments, **named):
        highest.append(anonymous())
        return placed(*arguments, **named)
    optimizer_state._placed = noting
    before = anonymous()
    checkpoint.load(path, pipe, optimizer=optimizer)
    return before, max([*highest, anonymous()]), anonymous()

path = ps.run_ranks(save, 1)[0]
print(json.dumps([LAYERS * (WIDTH + 1) * WIDTH * 4, *ps.run_ranks(load, 1)[0]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_holds_no_second_copy(tmp_path: Path) -> None:
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ended = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    model, before, highest, after = json.loads(ended.stdout)
    moments = 2 * model
    assert after - before > 0.9 * moments or highest - before > 0.9 * moments, "the moments are new"
    assert highest - before < moments + 0.25 * model, "no more than the moments is new"
