"""One run from start to end: what it says, what it leaves, and that it learns."""

from __future__ import annotations

import re
from collections import Counter
from math import log
from pathlib import Path

import pytest
from tests.train.conftest import Finished
from tests.train.runs import TEXT, held_out_losses, losses
from tests.train.test_launch import LOOPBACK_ADDRESSES

from penstock.checkpoint import read_manifest
from penstock.cli.main import main
from penstock.train.config_file import load_toml, parse_toml


def test_it_ends_well_and_says_nothing_on_stderr(whole_run: Finished) -> None:
    assert (whole_run.code, whole_run.err) == (0, "")


def test_it_says_how_the_model_is_cut_and_how_far_it_is(whole_run: Finished) -> None:
    assert "one_f_one_b: 2 ranks, 4 microbatches\nstage 0 on rank 0: 2 layers (embed … block_0)" in whole_run.out
    assert re.search(r"^step 30/60  loss \d\.\d{3}  [\d,]+ tokens/s  \d+ s left$", whole_run.out, re.MULTILINE)
    assert re.search(r"^step 40: held-out loss \d\.\d{3} nats per byte$", whole_run.out, re.MULTILINE)


def test_each_loss_is_printed_once_though_every_rank_has_it(whole_run: Finished) -> None:
    training = re.findall(r"^step (\d+)/60  loss", whole_run.out, re.MULTILINE)
    held_out = re.findall(r"^step (\d+): held-out loss", whole_run.out, re.MULTILINE)
    assert len(training) > 2
    assert held_out == ["20", "40", "60"]
    assert len(set(training)) == len(training)


def test_the_table_sets_planned_beside_measured_for_every_rank(whole_run: Finished) -> None:
    heading, rows = re.split(r"^ rank +bubble", whole_run.out, maxsplit=1, flags=re.MULTILINE)
    assert heading.split()[-2:] == ["planned", "measured"]
    for word in ("waiting", "transfer", "compute"):
        assert word in rows.splitlines()[0]
    for row in ("0", "1", "all"):
        assert re.search(rf"^ +{row}( +[\d.]+ +[\d.]+%){{6}}", rows, re.MULTILINE), row


def test_it_says_what_was_predicted_and_why_that_differs(whole_run: Finished) -> None:
    (line,) = [line for line in whole_run.out.splitlines() if "predicted" in line]
    for word in ("measured", "compute", "transfer", "waiting", "host"):
        assert word in line


def test_every_path_it_prints_exists_and_can_be_copied(whole_run: Finished) -> None:
    named = dict(re.findall(r"^(checkpoint|trace for Perfetto|picture|timelines|losses): +(/.+)$", whole_run.out, re.M))
    assert len(named) == 5
    assert all(Path(path).exists() for path in named.values()), named
    assert Path(named["picture"]).read_bytes().startswith(b"\x89PNG")
    assert read_manifest(Path(named["checkpoint"])).step == 60


def test_it_learns_far_more_than_how_often_a_byte_occurs(whole_run: Finished) -> None:
    entropy = -sum(count / len(TEXT) * log(count / len(TEXT)) for count in Counter(TEXT).values())
    held_out = held_out_losses(whole_run.output)
    assert set(held_out) == {20, 40, 60}
    assert held_out[60] < 0.5 * entropy
    told = re.search(r"held-out loss (\S+) nats per byte \(\S+ bits\); byte unigram entropy (\S+);", whole_run.out)
    assert told is not None
    assert float(told[1]) == pytest.approx(held_out[60], abs=5e-4)
    assert float(told[2]) == pytest.approx(entropy, abs=0.05)
    assert "sample:\nthe quick brown" in whole_run.out, "it goes on from the held-out text"
    assert "held-out" not in whole_run.out.partition("sample:")[2], "the sample ends the output"


def test_the_resolved_configuration_lies_beside_the_checkpoints(whole_run: Finished) -> None:
    path = whole_run.output / "config.toml"
    config = load_toml(path)
    assert (config.run.steps, config.model.dropout, config.log.tensorboard) == (60, 0.1, True)
    saved = read_manifest(whole_run.output / "checkpoints" / "step-00000060").extra["config"]
    assert parse_toml(saved) == config


def test_trace_answers_how_large_the_bubble_is(whole_run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(whole_run.output)]) == 0
    table = capsys.readouterr().out
    assert table.startswith("one_f_one_b, 2 ranks, 4 microbatches\n")
    assert table.split("\n", 1)[1].strip() in whole_run.out


def test_tensorboard_has_the_losses_of_every_step(whole_run: Finished) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    (file,) = (whole_run.output / "tensorboard").iterdir()
    scalars: dict[str, dict[int, float]] = {}
    for event in loading.EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            scalars.setdefault(value.tag, {})[event.step] = value.tensor.float_val[0]
    assert scalars["train/loss"] == pytest.approx(losses(whole_run.output))
    assert scalars["held_out/loss"] == pytest.approx(held_out_losses(whole_run.output))


def test_nothing_listens_beyond_loopback(whole_run: Finished) -> None:
    assert whole_run.listening, "found no listening socket at all: the test looks in the wrong place"
    assert whole_run.listening <= LOOPBACK_ADDRESSES
