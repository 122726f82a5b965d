"""`penstock profile`: what each layer of a model costs, measured here or computed for another device, as a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from penstock.cli.options import parse
from penstock.cli.outputs import say_written
from penstock.errors import UserError
from penstock.notation.whole_file import check_writable
from penstock.units import size_unit, time_unit

if TYPE_CHECKING:
    from penstock.profiler import Profile
    from penstock.runtime import Transport

InputFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", constructor=Path, help_behavior_hint="")]
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", constructor=str, help_behavior_hint="")]


@dataclass(frozen=True)
class ProfileOptions:
    """Measure what each layer of a model costs on this machine, or compute it for a device by name.

    The model is the one that penstock train would train with --train's configuration, or that of a Hugging Face config.
    """

    train: InputFile = None
    """A configuration of penstock train (TOML); left out, the default one."""
    hf: InputFile = None
    """A Hugging Face config (JSON); its decoder is made with random weights."""
    batch: int = 1
    """Samples of a microbatch, with --hf."""
    length: int = 512
    """Tokens of a sample, with --hf."""
    target_device: Name = None
    """Compute for this device instead of measuring, e.g. h100."""
    ranks: int = 1
    """Processes that measure at once, one a core in training; from two on messages between them are measured too."""
    seconds: float = 2.0
    """How long to measure."""
    output: Path = Path("profile.json")
    """The file to write."""


def run(argv: list[str]) -> int:
    """Writes the profile that `argv` asks for; returns the exit code."""
    options = parse(ProfileOptions, argv, command="profile")
    if options.ranks < 1:
        raise UserError(f"--ranks {options.ranks}; use at least 1, e.g. --ranks 2")
    check_writable(options.output)
    if options.train is not None and options.hf is not None:
        raise UserError("--train and --hf each name a model; give one of them")
    measure = _measured_hf if options.hf else _measured_gpt
    if options.ranks == 1 or options.target_device is not None:
        _finish(options, measure(options, None))
        return 0
    from penstock.train.launch import launch
    from penstock.train.processes import is_worker, worker

    if not is_worker():
        return launch([sys.executable, "-m", "penstock", "profile", *argv], ranks=options.ranks)
    with worker():
        from penstock.runtime import DistributedTransport

        transport = DistributedTransport()
        found = measure(options, transport)
        if transport.rank == 0:
            _finish(options, found)
        transport.close()
    return 0


def _finish(options: ProfileOptions, found: Profile) -> None:
    from penstock.profiler import save_profile

    console = Console()
    show(console, found)
    save_profile(found, options.output)
    say_written(console, options.output)


def _measured_gpt(options: ProfileOptions, transport: Transport | None) -> Profile:
    from penstock.train.config import Config
    from penstock.train.config_check import check
    from penstock.train.config_file import load_toml
    from penstock.train.prediction import profile_gpt

    config = check(load_toml(options.train) if options.train else Config())
    target = options.target_device
    return profile_gpt(config, transport=transport, target_device=target, seconds=options.seconds)


def _measured_hf(options: ProfileOptions, transport: Transport | None) -> Profile:
    import torch

    from penstock.profiler import profile

    if options.batch < 1 or options.length < 2:
        raise UserError(f"--batch {options.batch} --length {options.length}; use at least 1 and 2, e.g. 1 and 512")
    on = torch.device("meta" if options.target_device else "cpu")
    with on:
        model = _hugging_face(options.hf)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and options.length > longest:
        raise UserError(
            f"--length {options.length} is longer than the {longest} positions of the model; use at most that"
        )
    tokens = torch.randint(0, model.config.vocab_size, (options.batch, options.length))
    return profile(
        model,
        tokens,
        tokens,
        loss_fn=_token_loss,
        transport=transport,
        target_device=options.target_device,
        seconds=options.seconds,
    )


def _hugging_face(path: Any) -> Any:
    """Returns the decoder of a Hugging Face config with random weights.

    Raises:
        UserError: transformers is not there, or the file holds no config that it knows.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise UserError('--hf needs transformers; pip install "penstock[hf]"') from None
    try:
        file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
        given = json.loads(file.read_text(encoding="utf-8"))
        kind = given.pop("model_type")
        make: Callable[..., Any] = AutoModelForCausalLM.from_config
        return make(AutoConfig.for_model(kind, **given)).train()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UserError(
            f"{path}: holds no Hugging Face config of a decoder ({reason}); name a model's directory or its config.json"
        ) from error


def _token_loss(logits: Any, targets: Any) -> Any:
    from torch.nn import functional

    return functional.cross_entropy(logits.float().flatten(0, -2), targets.flatten())


def show(console: Console, found: Profile) -> None:
    """Prints a profile: runs of layers of one kind in a row, then what host and links add."""
    rows = _runs(found)
    unit = time_unit(max(layer.seconds.forward.seconds for layer in found.layers))
    size = size_unit(max(layer.activation_bytes for layer in found.layers))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    table.add_column("\nlayers", overflow="fold")
    for heading in ("F", "B", "I", "W", "B again"):
        table.add_column(f"{heading}\n{unit.name}", justify="right", no_wrap=True)
    for heading in ("weights", "kept", "I to W", "boundary"):
        table.add_column(f"{heading}\n{size.name}", justify="right", no_wrap=True)
    for first, last in rows:
        one, seconds = found.layers[first], found.layers[first].seconds
        ops = (seconds.forward, seconds.backward, seconds.input_grad, seconds.weight_grad, seconds.recompute_backward)
        kept = one.activation_bytes + one.keeps_input * one.input_bytes
        sizes = (one.parameter_bytes, kept, one.deferred_bytes, one.output.bytes)
        name = one.name if first == last else f"{one.name} … {found.layers[last].name}"
        table.add_row(name, *(unit.number(op.seconds) for op in ops), *map(size.number, sizes))
    console.print(table)
    for label, value in _lines(found).items():
        console.print(f"{label:<10} {value}", highlight=False, soft_wrap=True, markup=False)


def _runs(found: Profile) -> list[tuple[int, int]]:
    """Returns first and last of each run of layers of one kind."""
    runs: list[tuple[int, int]] = []
    for index, layer in enumerate(found.layers):
        if runs and found.layers[runs[-1][0]].kind == layer.kind:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _lines(found: Profile) -> dict[str, str]:
    unit = time_unit(1e-6)
    way = "measured" if found.measured else "computed"
    samples = f"microbatches of {found.microbatch_size}"
    spread = max((t.high - t.low) / t.seconds for t in (each.seconds.forward for each in found.layers) if t.seconds)
    repeats = min(layer.seconds.forward.repeats for layer in found.layers)
    lines = {"device": f"{found.device}, {way}, {samples}"}
    if found.measured:
        lines["spread"] = f"the middle half of {repeats} forwards lies within {spread:.0%} of the median"
        lines["host"] = f"{unit.text(found.host.op_seconds)} an op, {unit.text(found.host.step_seconds)} a step"
    for level in found.links:
        messages = level.messages
        lines[f"link {level.ranks_per_group}"] = (
            f"send {_line(messages.send_seconds, messages.send_seconds_per_byte)}, under way "
            f"{_line(messages.latency_seconds, messages.seconds_per_byte)}, receive "
            f"{_line(messages.receive_seconds, messages.receive_seconds_per_byte)}"
        )
    return lines


def _line(constant: float, slope: float) -> str:
    unit = time_unit(1e-6)
    return f"{unit.text(constant)}" + (f" + bytes at {1e-9 / slope:.3g} GB/s" if slope else "")
