"""What is asked of this host is checked against what it has, and only its own ranks count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import penstock as ps
from penstock.errors import ConfigError, PartitionError, ScheduleError
from penstock.train.config import Config, ModelConfig, PipelineConfig, RunConfig
from penstock.train.preflight import check_device, check_layout, check_output

CUDA = replace(Config(), run=RunConfig(device="cuda"), pipeline=PipelineConfig(ranks=4))


def _layout(**changes: object) -> Config:
    return replace(Config(), model=ModelConfig(layers=2), pipeline=replace(PipelineConfig(), **changes))  # type: ignore[arg-type]


def test_the_default_layout_stands() -> None:
    check_layout(Config())


def test_a_layer_for_every_stage_is_enough_and_one_fewer_is_not() -> None:
    check_layout(_layout(ranks=4))
    with pytest.raises(PartitionError):
        check_layout(_layout(ranks=5))


def test_a_partition_has_an_entry_per_stage() -> None:
    check_layout(_layout(partition=(1, 3)))
    with pytest.raises(PartitionError):
        check_layout(_layout(partition=(1, 1, 2)))


def test_what_a_search_will_find_is_checked_for_its_sizes() -> None:
    check_layout(_layout(schedule="auto", partition="auto"))
    check_layout(_layout(schedule="auto", partition=(1, 1, 1, 1)))  # two stages a rank
    check_layout(_layout(partition="auto"))
    with pytest.raises(PartitionError, match="has 3 stages; the schedule has 2"):
        check_layout(_layout(schedule="auto", partition=(1, 1, 2)))
    with pytest.raises(PartitionError, match="4 layers cannot fill 5 stages"):
        check_layout(_layout(ranks=5, schedule="auto", partition="auto"))
    with pytest.raises(ConfigError, match=r'pipeline.chunks=2 and pipeline.schedule="auto"'):
        check_layout(_layout(schedule="auto", chunks=2))


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ScheduleError, match="gpip"):
        check_layout(_layout(schedule="gpip"))


@pytest.mark.parametrize("name", ["pipedream", "pipedream_2bw", "pipemare"])
def test_schedules_that_step_inside_can_train(name: str) -> None:
    check_layout(_layout(schedule=name, microbatches=4))


@pytest.mark.parametrize("name", ["interleaved_1f1b", "wave", "eager_1f1b", "zb_h1", "zb_v", "dualpipe", "chimera"])
def test_schedules_with_chunks_split_backwards_or_two_directions_can_train(name: str) -> None:
    check_layout(_layout(schedule=name))


def test_a_schedule_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(ps.schedule_to_json(ps.gpipe(2, 4)))
    check_layout(_layout(schedule=str(path)))
    with pytest.raises(ScheduleError, match="gpipe is for 2 ranks and this pipeline has 3"):
        check_layout(_layout(schedule=str(path), ranks=3))


def test_ranks_on_other_hosts_need_no_device_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Symptom: torchrun on two hosts of two devices refused four ranks. Cause: all ranks were counted here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device(CUDA, local_ranks=2)
    with pytest.raises(ConfigError, match="4 ranks are to run on this host, which has 2 CUDA devices"):
        check_device(CUDA, local_ranks=4)


def test_an_output_directory_is_made_and_left_empty(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
