"""`penstock optimize`, and "auto" in the place of a schedule's name: what is found is said, saved and taken again."""

import json
from pathlib import Path

import pytest

from penstock.cli.main import main
from penstock.costs import StageCosts
from penstock.notation import load_schedule
from penstock.schedules import named_schedule
from penstock.simulator import simulate
from penstock.verifier import verify

Captured = pytest.CaptureFixture[str]


def test_what_is_found_comes_with_a_bound_and_the_best_named_schedule(capsys: Captured) -> None:
    assert main(["optimize", "-p", "2", "-m", "4"]) == 0
    out = capsys.readouterr().out
    assert "makespan         13 s  (found by zb_h1)" in out
    assert "lower bound      13 s  (no order is faster)" in out
    assert "best named       13 s  (zb_h1; 3 fit the memory)" in out


def test_costs_of_each_stage_come_from_a_file_and_the_schedule_goes_to_one(tmp_path: Path, capsys: Captured) -> None:
    given = {"forward": [1, 3], "input_grad": [2, 1], "weight_grad": [1, 2]}
    (tmp_path / "costs.json").write_text(json.dumps(given))
    out = tmp_path / "found.json"
    assert (
        main(["optimize", "-p", "2", "-m", "5", "--stage-costs", str(tmp_path / "costs.json"), "--out", str(out)]) == 0
    )
    found = load_schedule(str(out))
    verify(found)
    makespan = simulate(found, StageCosts(**given)).makespan
    assert f"makespan         {makespan:g} s" in capsys.readouterr().out
    for name in ("one_f_one_b", "zb_h1", "zb_auto"):
        named = named_schedule(name, num_ranks=2, num_microbatches=5)
        assert makespan <= simulate(named, StageCosts(**given)).makespan
    assert main(["verify", str(out)]) == 0


def test_each_rank_may_have_a_limit_of_its_own(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "found.json"
    assert main(["optimize", "-p", "2", "-m", "4", "--memory", "2", "1", "--out", str(out)]) == 0
    costs = StageCosts(activation_bytes=1, deferred_bytes=1)
    assert simulate(load_schedule(str(out)), costs).peak_memory == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--placement", "v", "-v", "3"], "-v 3; a V has 2 stages a rank"),
        (["--placement", "wave", "-v", "3"], "-v 3; a wave has an even number of stages"),
        (["-p", "0"], "-p 0"),
        (["--effort", "-1"], "effort=-1.0"),
        (["--memory", "0.5"], "memory_limit=0.5 on rank 0"),
        (["--memory", "4", "3"], "memory_limit has 2 values for 4 ranks"),
        (
            ["-p", "2", "-m", "2", "--out", "absent/found.json"],
            "cannot write absent/found.json: there is no folder absent",
        ),
        (["--stage-costs", "absent.json"], "absent.json: cannot be read as JSON"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(arguments: list[str], words: str, capsys: Captured) -> None:
    assert main(["optimize", *arguments]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("chunks", [[], pytest.param(["-v", "2"], marks=pytest.mark.slow)])
def test_auto_simulates_what_no_named_schedule_of_as_many_stages_beats(chunks: list[str], capsys: Captured) -> None:
    """Costs: the weight gradient takes half as long as the others."""
    assert main(["simulate", "auto", "-p", "3", "-m", "6", "--weight-grad", "0.5", *chunks]) == 0
    told = capsys.readouterr()
    assert told.err.startswith("auto: makespan ")
    assert "named" in told.err
    makespan = next(line.split()[1] for line in told.out.splitlines() if line.startswith("makespan"))
    costs = StageCosts(weight_grad=0.5)
    for name in ("one_f_one_b", "zb_h1") if not chunks else ("interleaved_1f1b", "zb_v"):
        named = named_schedule(name, num_ranks=3, num_microbatches=6)
        assert float(makespan) <= simulate(named, costs).makespan


def test_auto_is_drawn_and_verified_and_the_reason_keeps_out_of_the_output(capsys: Captured) -> None:
    assert main(["show", "auto", "-p", "2", "-m", "4", "--style", "grid"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("zb_h1 p=2 m=4 ")
    assert "auto: makespan 13, found by zb_h1, no order of these stages is faster" in shown.err
    assert main(["verify", "auto", "-p", "2", "-m", "4"]) == 0
    assert "zb_h1 is correct" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["-p", "0"], "num_ranks=0; use at least 1"), (["-v", "0"], "-v 0; use at least one stage")],
)
def test_sizes_that_auto_cannot_have_are_refused(arguments: list[str], words: str, capsys: Captured) -> None:
    assert main(["simulate", "auto", *arguments]) == 1
    assert words in capsys.readouterr().err
