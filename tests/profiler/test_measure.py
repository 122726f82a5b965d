"""`penstock.profile` as users call it, and its command."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.profiler.ticking import by_hand
from torch import nn

import penstock as ps
from penstock.cli.main import main
from penstock.profiler import cluster_of, measure
from penstock.profiler.host import host_costs
from penstock.profiler.values import MessageCosts


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
    found = host_costs(None, torch.device("cpu"))
    assert 0 < found.op_seconds < 0.05
    assert 0 < found.step_seconds < 0.5
    waits, longer = zip(*found.waking, strict=True)
    assert list(waits) == sorted(waits)
    assert list(longer) == sorted(longer)
    assert 0 <= longer[0] <= longer[-1] < 0.1
    assert host_costs(None, torch.device("meta")).waking == ()


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
    (tmp_path / "cluster.toml").write_text(
        '[devices.h100]\nmemory_bytes = 80e9\nflops_per_second = 1e15\n\n[[hosts]]\ndevice = "h100"\ndevices = 2\n'
    )
    command = ["plan", path, str(tmp_path / "cluster.toml"), "--global-batch", "16", "--pipeline", "2"]
    assert main([*command, "--sequence", "32", "--out", str(tmp_path / "plan.json")]) == 0
    planned = ps.load_plan(tmp_path / "plan.json")
    assert (planned.data, planned.pipeline, sum(planned.partition)) == (1, 2, 5)
    assert main([*command, "--sequence", "64"]) == 1
    assert "sequence=64, and the layers were measured on sequences of 32" in capsys.readouterr().err


def test_the_tokens_of_a_sample_are_known_where_samples_are_tokens() -> None:
    def sequence(layer: nn.Module, inputs: torch.Tensor) -> int:
        return ps.profile(nn.Sequential(layer, nn.Identity()), inputs, seconds=0.001, recompute=False).sequence

    assert sequence(nn.Embedding(8, 4), torch.zeros(2, 6, dtype=torch.int64)) == 6
    assert sequence(nn.Linear(6, 4), torch.zeros(2, 6)) == 0


def test_ranks_of_several_hosts_are_measured_within_one_and_between_two(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = []

    def costs(transport: ps.LoopbackTransport, source: int, target: int, **_: object) -> MessageCosts:
        pairs.append((transport.rank, source, target))
        return MessageCosts(latency_seconds=float(target))

    monkeypatch.setattr(measure, "message_costs", costs)
    monkeypatch.setattr(measure, "gather_bytes", lambda transport, _: [b"one", b"one", b"two", b"two"])
    found = measure._levels(SimpleNamespace(rank=3), largest=8, device=torch.device("cpu"))  # type: ignore[arg-type]
    assert pairs == [(3, 0, 1), (3, 1, 2)]
    profile = replace(by_hand(), links=found)
    assert [profile.messages(0, other).latency_seconds for other in (1, 2, 3)] == [1, 2, 2]
    assert profile.messages(2, 3).latency_seconds == 1
    cluster = cluster_of(profile, 4)
    assert (cluster.link(2, 3).latency_seconds, cluster.link(1, 2).latency_seconds) == (1, 2)


def test_the_command_refuses_in_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["profile", "--ranks", "0"]) == 1
    assert "--ranks 0; use at least 1" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert main(["profile", "--hf", str(tmp_path / "config.json")]) == 1
    assert "holds no Hugging Face config" in capsys.readouterr().err
