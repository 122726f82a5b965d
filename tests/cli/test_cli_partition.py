"""`penstock partition`: the table of stages, what even ones would take, and why."""

import json
from pathlib import Path

import pytest

from penstock.cli.main import main

Captured = pytest.CaptureFixture[str]


def told(capsys: Captured, *arguments: str) -> dict[str, str]:
    """Returns the lines below the table by their first words."""
    assert main(["partition", *arguments]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    return {cells[0]: "  ".join(cells[1:]).strip() for cells in lines if cells[0]}


def test_a_head_of_three_layers_is_paid_for_and_the_reason_names_it(capsys: Captured) -> None:
    """16 layers and a head that costs three on 4 ranks: even stages give the last 3 layers and the head, six in all."""
    facts = told(capsys, "-p", "4", "-m", "8", "--layers", "16", "--head", "3")
    assert facts["sizes"] == "5 5 5 2"
    assert facts["step"] == "159 s under one_f_one_b, m=8"
    assert facts["even stages"] == "183 s, 15.1% more"
    assert facts["proof"] == "no partition takes less"
    assert "with even stages rank 3 takes 18 s a microbatch" in facts["why"]
    assert "head with 9 s" in facts["why"]


def test_layers_come_from_a_file_with_their_names(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"forward": [1, 1, 1, 4], "input_grad": [1, 1, 1, 4], "names": ["a", "b", "c", "last"]}))
    assert main(["partition", "-p", "2", "-m", "4", "--costs", str(path)]) == 0
    out = capsys.readouterr().out
    assert "a … c" in out
    assert "sizes        3 1" in out


def test_little_memory_has_layers_run_again(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    rows = {"forward": [1] * 4, "input_grad": [1] * 4, "activation_bytes": [4] * 4, "boundary_bytes": [1] * 4}
    path.write_text(json.dumps(rows))
    base = ["partition", "-p", "2", "-m", "4", "--costs", str(path), "--memory", "12"]
    assert main(base) == 1
    assert "allow recompute" in capsys.readouterr().err
    assert main([*base, "--recompute"]) == 0


def test_memory_is_that_of_all_stages_of_a_rank(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"forward": [1] * 8, "input_grad": [1] * 8, "parameter_bytes": [1] * 8}))
    base = ["partition", "-p", "2", "-m", "4", "--schedule", "interleaved_1f1b", "--costs", str(path)]
    assert main([*base, "--memory", "4"]) == 0
    assert "sizes        2 2 2 2" in capsys.readouterr().out
    assert main([*base, "--memory", "3"]) == 1
    assert "of the even one rank 1 takes 4 bytes and has 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "holds no layers"),
        ('{"forward": [1], "backwards": [1]}', 'unknown cost "backwards"'),
        ('{"forward": [1], "input_grad": 1}', "input_grad=1; give a list with one number a layer"),
        ('{"forward": [1, -1]}', "forward=-1"),
    ],
)
def test_files_without_costs_of_layers_are_refused(text: str, words: str, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "layers.json"
    path.write_text(text)
    assert main(["partition", "--costs", str(path)]) == 1
    assert words in capsys.readouterr().err


def test_more_stages_than_layers_are_refused(capsys: Captured) -> None:
    assert main(["partition", "-p", "4", "--layers", "2", "--head", "0"]) == 1
    assert "2 layers cannot fill 4 stages" in capsys.readouterr().err
