"""Saving while training goes on: what was there at `save`, complete by the next, its faults told on every rank."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint.runs import Rank, Setup, assert_same, merged, over_ranks, resumed
from torch.optim import AdamW

from penstock import checkpoint
from penstock.checkpoint import Saver, latest, read_manifest
from penstock.errors import CheckpointError, UserError

SETUP = Setup(2, "one_f_one_b", make=lambda parameters: [AdamW(parameters.values(), lr=0.01)])


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing begins when the event is set."""
    from penstock.checkpoint import background

    event = threading.Event()
    write = background.write_own

    def later(*arguments: Any) -> Any:
        assert event.wait(20)
        return write(*arguments)

    monkeypatch.setattr(background, "write_own", later)
    return event


def test_what_is_saved_is_what_was_there_whatever_training_does_meanwhile(
    tmp_path: Path, held_back: threading.Event
) -> None:
    def work(rank: Rank) -> tuple[Path, Any]:
        rank.train(range(3))
        with Saver(tmp_path, rank.pipe) as saver:
            path = saver.save(optimizer=rank.optimizers)
            losses = rank.train(range(3, 6))
            assert latest(tmp_path) is None, "training went on before anything was written"
            held_back.set()
        assert latest(tmp_path) == path
        return path, (losses, rank.held())

    parts = over_ranks(SETUP, work)
    assert_same(resumed(parts[0][0], SETUP), merged([part for _, part in parts]))


def test_it_is_committed_without_another_call(tmp_path: Path) -> None:
    """Rank 0's thread hears from the other by a file; ranks are elsewhere meanwhile."""

    def work(rank: Rank) -> list[str]:
        saver = Saver(tmp_path, rank.pipe)
        path = saver.save(optimizer=rank.optimizers, step=7)
        thread = next((each for each in threading.enumerate() if each is saver._writing._thread), None)
        if thread is not None:
            thread.join(20)
        found = [each.name for each in (path / "manifest.json",) if rank.pipe.rank or each.exists()]
        saver.wait()
        return found

    assert over_ranks(SETUP, work) == [["manifest.json"]] * 2
    names = sorted(path.name for path in (tmp_path / "step-00000007").iterdir())
    assert names == ["manifest.json", "rank-0.safetensors", "rank-1.safetensors"]


def test_the_last_k_stay(tmp_path: Path) -> None:
    def work(rank: Rank) -> None:
        with Saver(tmp_path, rank.pipe, keep=2) as saver:
            for step in (1, 2, 3, 3, 4):
                saver.save(optimizer=rank.optimizers, step=step)

    over_ranks(SETUP, work)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    assert read_manifest(tmp_path / "step-00000004").layout == checkpoint.manifest.Layout(2, 1)


def failing_once(error: Exception) -> Callable[..., Any]:
    """Returns a `write_own` that raises `error` the first time rank 1 writes."""
    from penstock.checkpoint.write import write_own

    failed = []

    def write(file: Path, shard: Any) -> Any:
        if file.name.startswith("rank-1") and not failed:
            failed.append(file)
            raise error
        return write_own(file, shard)

    return write


@pytest.mark.parametrize("call", ["save", "wait", "leave"])
def test_a_failure_in_the_thread_is_raised_by_the_next_call_on_every_rank(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(28, "No space left on device", "the disk")
    monkeypatch.setattr("penstock.checkpoint.background.write_own", failing_once(full))

    def work(rank: Rank) -> str:
        calls = {"save": lambda saver: saver.save(step=2), "wait": Saver.wait, "leave": lambda _: None}
        with pytest.raises(CheckpointError) as caught, Saver(tmp_path, rank.pipe) as saver:
            saver.save(step=1)
            rank.train(range(1))
            calls[call](saver)
        saver.save(step=3)
        saver.wait()
        return str(caught.value)

    told = over_ranks(SETUP, work)
    assert told[0] == told[1]
    assert "the checkpoint of step 1 was not saved: rank 1: cannot write the disk: No space left on device" in told[0]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_what_one_rank_cannot_save_stops_all_before_anything_is_written(tmp_path: Path) -> None:
    def work(rank: Rank) -> str:
        if rank.pipe.rank == 1:
            first = next(iter(rank.pipe.parameters()))
            rank.optimizers[0].state[first]["history"] = ["words"]
        with pytest.raises(CheckpointError) as caught:
            Saver(tmp_path, rank.pipe).save(optimizer=rank.optimizers)
        return str(caught.value)

    told = over_ranks(SETUP, work)
    assert told[0] == told[1]
    assert 'rank 1: optimizer state "history" of "4.0.weight" is a list' in told[0]
    assert latest(tmp_path) is None


def test_memory_of_the_copy_is_used_again(tmp_path: Path) -> None:
    def work(rank: Rank) -> None:
        saver = Saver(tmp_path, rank.pipe)
        places = []
        for step in (1, 2, 3):
            rank.train(range(step, step + 1))
            saver.save(optimizer=rank.optimizers, step=step)
            saver.wait()
            places.append({name: tensor.data_ptr() for name, tensor in saver._copy._memory.items()})
        assert places[0] == places[1] == places[2]
        own = {parameter.data_ptr() for parameter in rank.pipe.parameters()}
        assert not own & set(places[0].values())

    over_ranks(SETUP, work)


def test_a_loop_that_fails_raises_its_own_error_and_the_thread_ends(tmp_path: Path) -> None:
    def work(rank: Rank) -> None:
        with Saver(tmp_path, rank.pipe) as saver:
            saver.save()
            threads.append(saver._writing._thread)
            raise ZeroDivisionError("the loop's own")

    threads: list[threading.Thread] = []
    with pytest.raises(ZeroDivisionError):
        over_ranks(SETUP, work)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert latest(tmp_path) == tmp_path / "step-00000000", "it was written all the same"


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep=0 would delete every checkpoint; keep at least 1"):
        over_ranks(Setup(), lambda rank: Saver(tmp_path, rank.pipe, keep=0))


class Position:
    """A data loader's place: how many batches were drawn, and a generator's state."""

    def __init__(self) -> None:
        self.drawn = 0
        self.generator = torch.Generator().manual_seed(3)

    def draw(self) -> float:
        self.drawn += 1
        return torch.rand((), generator=self.generator).item()

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "generator": self.generator.get_state(), "ends": {3: (1.5, float("inf"))}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["ends"] == {3: (1.5, float("inf"))}
        self.drawn = state["drawn"]
        self.generator.set_state(state["generator"])


def test_the_data_position_goes_on_in_any_layout_if_ranks_agreed(tmp_path: Path) -> None:
    def save(rank: Rank) -> tuple[Path, float]:
        loader, own = Position(), Position()
        loader.draw()
        for _ in range(rank.pipe.rank):
            own.draw()
        path = rank.save(tmp_path, state={"loader": loader, "own": own}, extra={"note": "mine"})
        return path, loader.draw()

    (path, drawn), _ = over_ranks(SETUP, save)

    def load(rank: Rank) -> tuple[float, int]:
        loader = Position()
        assert rank.load(path, state={"loader": loader}).extra == {"note": "mine"}
        return loader.draw(), loader.drawn

    assert over_ranks(SETUP._replace(num_ranks=4), load) == [(drawn, 2)] * 4

    def load_own(rank: Rank) -> int:
        own = Position()
        rank.load(path, state={"own": own})
        return own.drawn

    assert over_ranks(SETUP, load_own) == [0, 1]
    with pytest.raises(CheckpointError, match="differed between the ranks that saved it; load it with 2 ranks"):
        over_ranks(SETUP._replace(num_ranks=1, schedule="naive"), load_own)
    with pytest.raises(CheckpointError, match=r'no state "lowder"\. Did you mean "loader"\?'):
        over_ranks(SETUP, lambda rank: rank.load(path, state={"lowder": Position()}))


def test_random_generators_go_on_in_the_same_layout(tmp_path: Path) -> None:
    import random

    import numpy as np

    def save(rank: Rank) -> tuple[Path, list[float]]:
        random.seed(rank.pipe.rank + 4)
        path = rank.save(tmp_path)
        return path, [torch.rand(()).item(), random.gauss(0, 1), float(np.random.rand())]

    path, drawn = over_ranks(SETUP._replace(num_ranks=1, schedule="naive"), save)[0]

    def load(rank: Rank) -> list[float]:
        rank.load(path)
        return [torch.rand(()).item(), random.gauss(0, 1), float(np.random.rand())]

    assert over_ranks(SETUP._replace(num_ranks=1, schedule="naive"), load) == [drawn]

    def load_elsewhere(rank: Rank) -> bool:
        before = torch.get_rng_state()
        rank.load(path)
        return torch.equal(torch.get_rng_state(), before)

    assert all(over_ranks(SETUP, load_elsewhere)), "another layout leaves them alone"


def test_a_model_without_optimizer_loads_weights_alone(tmp_path: Path) -> None:
    path = over_ranks(SETUP, lambda rank: (rank.train(range(2)), rank.save(tmp_path))[1])[0]
    bare = Setup(1, "naive")
    found = resumed(path, bare, before=2, after=0)
    stored = checkpoint.read_tensors(path, [f"model/{name}" for name in found.weights])
    assert all(torch.equal(stored[f"model/{name}"], value) for name, value in found.weights.items())


def test_extra_values_come_back_as_they_were(tmp_path: Path) -> None:
    """Symptom: the best loss so far, inf, came back as None. Cause: JSON has no such number."""
    extra = {"best": float("inf"), "seen": (1, 2), "words": {7: "seven"}, "count": 2**100, "$odd": [None, True]}

    def work(rank: Rank) -> dict[str, Any]:
        with Saver(tmp_path, rank.pipe) as saver:
            path = saver.save(extra=extra)
        assert checkpoint.load(path, rank.pipe).extra == extra
        return checkpoint.load(checkpoint.save(tmp_path, rank.pipe, extra=extra), rank.pipe).extra

    assert over_ranks(SETUP, work) == [extra] * 2


class Drawing:
    """A data loader that shuffles with a generator of numpy's."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.bit_generator.state, "order": self.generator.permutation(5)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.bit_generator.state = state["generator"]
        assert sorted(state["order"].tolist()) == [0, 1, 2, 3, 4]


def test_a_loader_that_draws_with_numpy_goes_on(tmp_path: Path) -> None:
    def work(rank: Rank) -> tuple[float, float]:
        loader, other = Drawing(1), Drawing(2)
        path = rank.save(tmp_path, state={"loader": loader})
        expected = Drawing(1).generator.random()
        rank.load(path, state={"loader": other})
        return other.generator.random(), expected

    for found, expected in over_ranks(SETUP, work):
        assert found == expected


def refused(save: Callable[[Rank], object], tmp_path: Path) -> str:
    def work(rank: Rank) -> str:
        with pytest.raises(UserError) as caught:
            save(rank)
        return str(caught.value)

    told = over_ranks(SETUP, work)
    assert latest(tmp_path) is None
    return told[0]


def test_arguments_of_a_wrong_kind_are_told_on_every_rank(tmp_path: Path) -> None:
    save = checkpoint.save
    assert "step=-1 is no number of a step" in refused(lambda rank: save(tmp_path, rank.pipe, step=-1), tmp_path)
    assert "step=1.5 is no number" in refused(lambda rank: save(tmp_path, rank.pipe, step=1.5), tmp_path)  # type: ignore[arg-type]
    assert "not a text or a Path; give a directory" in refused(lambda rank: save(rank.pipe, tmp_path), tmp_path)  # type: ignore[arg-type]
    assert "bias=True), not a Pipeline; give the Pipeline" in refused(
        lambda _: save(tmp_path, torch.nn.Linear(2, 2)), tmp_path
    )  # type: ignore[arg-type]
    told = refused(lambda rank: save(tmp_path, rank.pipe, optimizer=rank.optimizers[0].state_dict()), tmp_path)  # type: ignore[arg-type]
    assert "optimizer is a dict, which has no param_groups; give e.g. torch.optim" in told
    told = refused(lambda rank: save(tmp_path, rank.pipe, optimizer=rank.optimizers, scheduler=[3]), tmp_path)
    assert "scheduler is an int, which has no state_dict" in told
    told = refused(lambda rank: save(tmp_path, rank.pipe, state={"epoch": 3}), tmp_path)  # type: ignore[dict-item]
    assert 'state["epoch"] is an int, which has no state_dict' in told and "plain values go into extra=" in told
    told = refused(lambda rank: save(tmp_path, rank.pipe, extra={"of": rank}), tmp_path)
    assert "rank 0: extra['of'] is a Rank, which cannot be saved without a pickle" in told
    told = refused(lambda rank: checkpoint.load(tmp_path, torch.nn.Linear(2, 2)), tmp_path)  # type: ignore[arg-type]
    assert "bias=True), not a Pipeline" in told
