"""`penstock.profile` as users call it, and its command."""

from pathlib import Path

import pytest
import torch
from torch import nn

import penstock as ps
from penstock.cli.main import main
from penstock.profiler.host import host_costs


def model() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))


def test_ranks_that_measure_together_get_one_profile_with_links() -> None:
    inputs = torch.randn(2, 8)

    def rank(transport: ps.LoopbackTransport) -> ps.Profile:
        return ps.profile(model(), inputs, transport=transport, seconds=0.01, recompute=False)

    found = ps.run_ranks(rank, 2, timeout_seconds=60)
    assert found[0] == found[1]
    assert [level.ranks_per_group for level in found[0].links] == [2]
    assert found[0].layers[1].seconds.forward.repeats >= 10
    assert found[0].layers[1].seconds.forward.seconds > 0


def test_the_host_takes_some_time_for_an_op_and_a_step() -> None:
    found = host_costs(None)
    assert 0 < found.op_seconds < 0.05
    assert 0 < found.step_seconds < 0.5


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"inputs": torch.randn(2, 9)}, "layer 0 cannot run on what enters it"),
        ({"loss_fn": nn.functional.mse_loss}, "loss_fn is given without targets"),
        ({"seconds": 0}, "seconds=0; give how long to measure"),
        ({"target_device": 3}, "target_device is 3"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(ps.UserError, match=told):
        ps.profile(model(), **({"inputs": torch.randn(2, 8)} | arguments))


def test_the_command_computes_for_a_device_and_others_take_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, path = tmp_path / "tiny.toml", str(tmp_path / "profile.json")
    config.write_text("[model]\nlayers = 3\nwidth = 32\ncontext = 32\nheads = 2\n")
    assert main(["profile", "--train", str(config), "--target-device", "h100", "--output", path]) == 0
    assert "h100, computed" in capsys.readouterr().out
    assert [layer.name for layer in ps.load_profile(path).layers][1:-1] == ["block_0", "block_1", "block_2"]
    for command in (
        ["simulate", "one_f_one_b", "-p", "2", "-m", "4", "--profile", path],
        ["partition", "--costs", path, "-p", "2", "-m", "4"],
        ["optimize", "--stage-costs", path, "-p", "2", "-m", "4", "--memory", "1e12"],
    ):
        assert main(command) == 0, command
    assert "peak memory" in capsys.readouterr().out


def test_the_command_refuses_in_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["profile", "--ranks", "0"]) == 1
    assert "--ranks 0; use at least 1" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert main(["profile", "--hf", str(tmp_path / "config.json")]) == 1
    assert "holds no Hugging Face config" in capsys.readouterr().err
