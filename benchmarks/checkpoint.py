"""Saving and loading beside torch.distributed.checkpoint: how long training stands still, and what damage is noticed.

python benchmarks/checkpoint.py [--megabytes 240] [--turns 5] [--folder DIR]

One rank with an AdamW that has stepped. Both save the same tensors; the contenders take turns, medians are shown.
"stands still" is how long the call that saves keeps the loop, "complete" until the checkpoint exists; loading is into a
fresh pipeline. Then one bit of the largest file is flipped, and both are loaded once more.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import checkpoint as dcp

import penstock as ps
from penstock import checkpoint

LAYERS = 8


def begun(transport: ps.LoopbackTransport, width: int) -> tuple[ps.Pipeline, torch.optim.Optimizer]:
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(LAYERS)))
    pipe = ps.Pipeline(model, nn.functional.mse_loss, transport=transport, num_microbatches=1)
    optimizer = torch.optim.AdamW(pipe.parameters())
    data = torch.zeros(1, width)
    pipe.step(data, data)
    optimizer.step()
    return pipe, optimizer


def state_of(pipe: ps.Pipeline, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    names = {parameter: name for name, parameter in pipe.named_parameters()}
    moments = {f"{names[p]}/{key}": value for p, own in optimizer.state.items() for key, value in own.items()}
    return {"model": pipe.state_dict(), "optimizer": moments}


class Contenders:
    """Every way to save and to load, over one pipeline."""

    def __init__(self, transport: ps.LoopbackTransport, width: int, folder: Path) -> None:
        self.pipe, self.optimizer = begun(transport, width)
        self.folder = folder
        self.saver = checkpoint.Saver(folder / "saver", self.pipe, keep=1)
        self.number = 0

    def penstock(self) -> tuple[float, float]:
        begin = time.perf_counter()
        checkpoint.save(self.folder / "penstock", self.pipe, optimizer=self.optimizer, step=self.number, keep=1)
        return (time.perf_counter() - begin,) * 2

    def penstock_saver(self) -> tuple[float, float]:
        begin = time.perf_counter()
        self.saver.save(optimizer=self.optimizer, step=self.number)
        stood = time.perf_counter() - begin
        self.saver.wait()
        return stood, time.perf_counter() - begin

    def torch_dcp(self) -> tuple[float, float]:
        begin = time.perf_counter()
        dcp.save(state_of(self.pipe, self.optimizer), checkpoint_id=self._fresh("dcp"), no_dist=True)
        return (time.perf_counter() - begin,) * 2

    def torch_dcp_async(self) -> tuple[float, float]:
        begin = time.perf_counter()
        future = dcp.async_save(
            state_of(self.pipe, self.optimizer), checkpoint_id=self._fresh("dcp-async"), no_dist=True
        )
        stood = time.perf_counter() - begin
        future.result()
        return stood, time.perf_counter() - begin

    def load_penstock(self) -> tuple[float, float]:
        path = checkpoint.latest(self.folder / "penstock")
        begin = time.perf_counter()
        checkpoint.load(str(path), self.pipe, optimizer=self.optimizer)
        return (time.perf_counter() - begin,) * 2

    def load_torch_dcp(self) -> tuple[float, float]:
        begin = time.perf_counter()
        dcp.load(state_of(self.pipe, self.optimizer), checkpoint_id=str(self.folder / "dcp"), no_dist=True)
        return (time.perf_counter() - begin,) * 2

    def _fresh(self, name: str) -> str:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return str(self.folder / name)


def flipped(file: Path) -> None:
    """Flips one bit in the middle of a file."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)
        opened.seek(-1, 1)
        opened.write(bytes([byte[0] ^ 1]))


def noticed(load: Callable[[], object]) -> str:
    try:
        load()
    except Exception as error:
        return f"refused: {type(error).__name__}"
    return "loaded silently"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=240)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    width = int((given.megabytes * 1e6 / (3 * 4 * LAYERS)) ** 0.5)
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        ps.run_ranks(lambda transport: measure(Contenders(transport, width, folder), given.turns), 1)
    finally:
        shutil.rmtree(folder)


def measure(own: Contenders, turns: int) -> None:
    saves = [own.penstock, own.penstock_saver, own.torch_dcp, own.torch_dcp_async]
    loads = [own.load_penstock, own.load_torch_dcp]
    times: dict[str, list[tuple[float, float]]] = {}
    for turn in range(turns + 1):
        own.number = turn
        for call in (*saves, *loads):
            found = call()
            if turn:  # the first warms up
                times.setdefault(call.__name__, []).append(found)
    print(f"{'':20}{'stands still':>14}{'complete':>12}")
    for name, found in times.items():
        stood, done = (statistics.median(each[at] for each in found) for at in (0, 1))
        print(f"{name:20}{stood * 1e3:11.0f} ms{done * 1e3:9.0f} ms")
    largest = max((own.folder / "dcp").glob("*.distcp"), key=lambda file: file.stat().st_size)
    flipped(largest)
    flipped(next(Path(str(checkpoint.latest(own.folder / "penstock"))).glob("*.safetensors")))
    print("one bit flipped: penstock", noticed(own.load_penstock), "| torch", noticed(own.load_torch_dcp))
    print("torch's .metadata begins with", (own.folder / "dcp" / ".metadata").read_bytes()[:2], "(a pickle)")


if __name__ == "__main__":
    main()
