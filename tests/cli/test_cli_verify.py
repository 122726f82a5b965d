"""`penstock verify` prints what was proven, or the counter-example."""

from pathlib import Path

import pytest

from penstock.cli.main import main
from penstock.lowering import lower
from penstock.notation import draw_grid, program_to_json
from penstock.schedules import one_f_one_b

Captured = pytest.CaptureFixture[str]


def test_a_proof_tells_sizes_peaks_and_receive_slots(capsys: Captured) -> None:
    assert main(["verify", "1f1b", "-p", "3", "-m", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "one_f_one_b is correct: 3 ranks, 3 stages, 6 microbatches, 36 ops, 24 messages."
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] and line.split()[0].isdigit()}
    assert [rows[str(rank)][:3] for rank in range(3)] == [
        ["12", "3", "0"],
        ["12", "2", "0"],
        ["12", "1", "0"],
    ]
    assert "F from 0" in " ".join(rows["1"])
    assert "B from 2" in " ".join(rows["1"])


def test_one_op_missing_at_the_last_rank_is_found(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "broken.txt"
    whole = draw_grid(one_f_one_b(3, 4))
    head, last = whole.rsplit("\n", 1)
    path.write_text(f"{head}\n{last.replace('B2', '. ')}")
    assert main(["verify", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("penstock: ")
    assert "rank 2: 2B2 is missing" in captured.err
    assert captured.out == ""


def test_a_file_may_hold_a_program(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "program.json"
    path.write_text(program_to_json(lower(one_f_one_b(3, 6))))
    assert main(["verify", str(path)]) == 0
    of_program = capsys.readouterr().out
    assert main(["verify", "one_f_one_b", "-p", "3", "-m", "6"]) == 0
    assert capsys.readouterr().out == of_program
    assert main(["verify", str(path), "-p", "4"]) == 1
    assert "-p 4 contradicts" in capsys.readouterr().err


def test_the_program_in_a_file_is_verified_not_a_new_one_of_its_schedule(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "program.json"
    whole = program_to_json(lower(one_f_one_b(3, 6)))
    path.write_text(whole.replace('"0SEND_F2>1",', ""))
    assert main(["verify", str(path)]) == 1
    assert "channel 0→1 F, message 2: rank 0 position" in capsys.readouterr().err
