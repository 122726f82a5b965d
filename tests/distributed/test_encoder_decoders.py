"""Encoder-decoders in processes of their own give what the unsplit model gives."""

from pathlib import Path

import pytest
from tests.distributed.jobs import Job, run_jobs


@pytest.mark.slow
def test_t5_and_bart_over_gloo_have_the_unsplit_models_numbers(tmp_path: Path):
    job = Job("encoder_decoders.py", (str(tmp_path / "t5"),), 2)
    ranks = run_jobs(tmp_path, {"pairs": job}, patience_seconds=120)["pairs"]
    for rank in ranks:
        assert rank.code == 0, rank.errors
    for first, second in zip(*(rank.lines[:-1] for rank in ranks), strict=True):
        assert first["case"] == second["case"]
        assert {*first["names"], *second["names"]} == {*first["all"]}
        for line in (first, second):
            assert max(line["logits"], line["loss"], line["norm"], line["worst"]) < 1e-12, line
    assert len(ranks[0].lines) == 3
    for rank in ranks:
        assert rank.lines[-1]["directory"] < 1e-6, "written by two processes, opened under another schedule"
        assert rank.lines[-1]["shared"] < 1e-6, "a matrix of which each had one half is written whole"
