"""`penstock check`: a user's own model, unsplit and split."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.cli.main import main

MODEL = """
import torch
from torch import nn
from torch.nn import functional

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x):
        skip = x = self.first(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.last(functional.dropout(x, 0.5, training=self.training) + skip)

def net():
    torch.manual_seed(0)
    return Net(), nn.functional.mse_loss, torch.rand(8, 4), torch.rand(8, 2)

class Chaotic(nn.Module):
    steps = 0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        Chaotic.steps += 1
        return self.linear(x) * Chaotic.steps

def chaotic():
    return nn.Sequential(Chaotic(), nn.Linear(4, 2)), nn.functional.mse_loss, torch.rand(8, 4), torch.rand(8, 2)

def lazy():
    import penstock as ps
    layers = [ps.LayerSpec(nn.Linear, 4, 4) for _ in range(4)]
    return layers, nn.functional.mse_loss, torch.rand(8, 4), torch.rand(8, 4)

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, batch):
        return self.linear(batch["x"]) * batch["mask"].t()

def masked(rules=None):
    torch.manual_seed(1)
    batch = {"x": torch.rand(8, 4), "mask": torch.rand(4, 8)}
    model = nn.Sequential(Masked(), nn.Linear(4, 4))
    return model, nn.functional.mse_loss, batch, torch.rand(8, 4), rules or {"batch_rules": {'inputs["mask"]': 1}}

def strange():
    return masked({"rules": 1})

def wrong():
    return 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "check_me.py"
    path.write_text(MODEL, encoding="utf-8")
    return path


def test_a_right_model_is_right_and_every_parameter_has_its_error(file: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--seed", "1", "--fp64", "-p", "3", "-m", "4", "--schedule", "zb_h1"]
    assert main(["check", "--model", f"{file}:net", *arguments]) == 0
    out = capsys.readouterr().out
    assert "zb_h1 on 3 ranks against the unsplit model" in out
    for name in ("loss", "first.weight", "blocks.2.bias", "last.weight"):
        assert name in out
    assert "right: the worst error is" in out
    assert main(["check", "--model", f"{file}:net", "--seed", "1", "--partition", "blocks.1"]) == 0


def test_every_way_to_say_a_partition_and_layers_that_are_not_built(file: Path, capsys: pytest.CaptureFixture[str]):
    for partition in (["auto"], ["1", "3"], ["2"], ["[13]"]):
        ranks = ["-p", "3"] if partition == ["[13]"] else []
        words = ["--model", f"{file}:lazy", "--seed", "1", "--fp64", *ranks, "--partition", *partition]
        expected = 0 if partition != ["2"] else 1
        assert main(["check", *words]) == expected, partition
    assert "partition [2] has 1 stages; the schedule has 2" in capsys.readouterr().err
    for words in (["1", "2"], ["2", "3"], ["0", "4"], ["9"], ["1", "1"]):
        assert main(["check", "--model", f"{file}:lazy", "--seed", "1", "--partition", *words]) == 1
    told = capsys.readouterr().err
    for expected in ("leaves out layers [3] of 4", "takes 5 layers; the model has 4", "leaves stage 0 without layers"):
        assert expected in told


def test_arguments_follow_their_microbatch_by_the_rules_that_the_function_gives(
    file: Path, capsys: pytest.CaptureFixture[str]
):
    """Without the rule the mask would be taken for a batch of four."""
    assert main(["check", "--model", f"{file}:masked", "-m", "4"]) == 0
    assert "0.linear.weight  0 (bit for bit)" in capsys.readouterr().out
    assert main(["check", "--model", f"{file}:strange"]) == 1
    assert "returned 'rules' among its rules; use weight_fn or batch_rules" in capsys.readouterr().err


def test_a_model_that_keeps_count_of_its_calls_is_found_wrong(file: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", "--model", f"{file}:chaotic"]) == 1
    assert "WRONG: the worst error is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("check_me", "write the module and the function"),
        ("{file}:nett", 'has no function nett. Did you mean "net"?'),
        ("{file}:wrong", "returned one int; return (model, loss_fn, inputs, targets)"),
        ("missing/file.py:net", "there is no file missing/file.py"),
        ("no_such_module:net", "no module no_such_module"),
    ],
)
def test_what_is_not_there_is_told(file: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["check", "--model", name.format(file=file)]) == 1
    assert message in capsys.readouterr().err


WRONG = {
    "broken": ("net.py:broken raised ValueError: no data, at net.py:2", "it has to run by itself first"),
    "uneven": ("the unsplit model, or its loss, raised RuntimeError", "it has to run by itself first"),
    "net -m 0": ("num_microbatches=0", "use at least 1"),
    "net -p 0": ("num_ranks=0", "use at least 1"),
    "net --tolerance -1": ("--tolerance -1.0", "e.g. --tolerance 1e-6"),
    "other": ("net.py has no function other", "It has broken"),
}
"""Function and options -> what is said: each once ended in a traceback, or in WRONG."""


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_with_the_function_is_told_in_a_sentence(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "def broken():",
        "    raise ValueError('no data')",
        "def _pair(targets):",
        "    import torch",
        "    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))",
        "    return model, torch.nn.functional.cross_entropy, torch.rand(4, 4), torch.zeros(4, targets)",
        "def uneven():",
        "    return _pair(3)",
        "def net():",
        "    return _pair(4)",
    ]
    (tmp_path / "net.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    function, *options = words.split()
    assert main(["check", "--model", f"net.py:{function}", *options]) == 1
    err = capsys.readouterr().err
    assert err.startswith("penstock: ")
    assert err.count("\n") == 1
    for said in WRONG[words]:
        assert said in err
