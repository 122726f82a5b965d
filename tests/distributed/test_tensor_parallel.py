"""A model whose matrices several processes share: checkpoints hold them whole and open with and without them; they wait
for W like any other, and get the unsplit gradient."""

import pytest
from tests.distributed.jobs import Ended, Job, run_jobs


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Ended]:
    """How the two ranks of the one job ended."""
    directory = tmp_path_factory.mktemp("spread")
    job = Job("spread.py", (str(directory / "saved"),), 2)
    ended = run_jobs(directory, {"spread": job}, patience_seconds=120)["spread"]
    for rank in ended:
        assert rank.code == 0, rank.errors
    return ended


def test_tensor_parallel_runs_go_on_and_open_without_tensor_parallelism_and_back(ranks: list[Ended]):
    """Symptom: `save` failed with "invalid python storage". Cause: all DTensors have the same address, 0."""
    for rank in ranks:
        (found,) = [line["found"] for line in rank.lines if "found" in line]
        assert found["True True"] == found["True unbroken"], "bit for bit in the same layout"
        assert found["False False"] == found["False unbroken"]
        for losses in found.values():
            assert losses == pytest.approx(found["True unbroken"], rel=1e-12)


def test_files_hold_whole_tensors_once(ranks: list[Ended]):
    for rank in ranks:
        spread, plain = [line["shapes"] for line in rank.lines if "shapes" in line]
        assert spread == plain
        assert spread["model/0.up.weight"] == spread["optimizer/exp_avg/0.up.weight"] == [10, 6]
        (files,) = [line["files"] for line in rank.lines if "files" in line]
        assert files == ["rank-0.safetensors"]


def test_what_is_loaded_is_spread_again(ranks: list[Ended]):
    for rank in ranks:
        kinds = [(line["kinds"], line["spread"]) for line in rank.lines if "kinds" in line]
        assert kinds == [(["DTensor", "Tensor"], True), (["Tensor"], False)] * 2


def test_tensors_over_two_axes_are_refused_by_name_before_anything_is_written(ranks: list[Ended]):
    for rank in ranks:
        (line,) = [line for line in rank.lines if "refused" in line]
        assert '"2.weight" is a DTensor over 2 axes' in line["refused"]
        assert not line["there"]


def test_shared_matrices_wait_for_w_and_get_the_unsplit_gradients(ranks: list[Ended]) -> None:
    """Symptom it had: I gave them their gradients at once, so that a zero-bubble schedule had empty W. Cause: a DTensor
    was no known kind of parameter."""
    for rank in ranks:
        halves, *outcomes = [line for line in rank.lines if "claim" in line]
        matrices = [f"{i}.{which}.weight" for i in (2, 3) for which in ("down", "up")]
        assert halves["put_off"] == ["0.weight", "1.weight", *matrices, "4.weight"]
        assert halves["early"] == [f"{i}.norm.{which}" for i in (2, 3) for which in ("bias", "weight")]
        assert [outcome["claim"] for outcome in outcomes] == ["gradients", "recomputed"]
        for outcome in outcomes:
            assert outcome["worst"] < 1e-12, outcome
            assert outcome["names"]
            assert outcome["types"] == ["DTensor", "Tensor"]
