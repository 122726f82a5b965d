"""The files of a Hugging Face directory: its configuration, and which tensor lies where. Nothing is unpickled."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from penstock.errors import CheckpointError, ModelError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.json"
BESIDE_WEIGHTS = (
    TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
"""What an export copies from another directory, where it is there: tokenizer and settings of generation."""

default_type = threading.Lock()
"""transformers sets the process's default type while it makes a model; threads (loopback ranks) must take turns."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


Fetch = Callable[[str], Tensor]
"""Reads one tensor of a directory by its name in the files."""


def read_config(path: Path) -> Any:
    """Returns the configuration in a directory, or in a file of the form of config.json.

    Raises:
        ModelError: there is none, or none that transformers knows.
    """
    file = path / CONFIG_FILE if path.is_dir() else path
    if not file.is_file():
        raise ModelError(
            f"{path} has no {CONFIG_FILE}; give a directory that save_pretrained wrote, or a file of that form"
            if path.is_dir()
            else f"{path} does not exist; give a directory with a {CONFIG_FILE}, or that file"
        )
    transformers = _library()
    try:
        return transformers.AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of a file that may hold anything
        raise ModelError(
            f"{file} is no configuration that transformers can open ({_first_line(error)}); "
            'it needs at least "model_type", e.g. "llama"'
        ) from error


def meta_model(config: Any, *, dtype: Any = None) -> Any:
    """Returns the language model of a configuration, or of a directory's, on the meta device.

    It is the causal one, or the one that reads with an encoder where the configuration says so (T5, BART).

    Args:
        config: a configuration, or the path of one.
        dtype: of its parameters; None for what the configuration says.

    Raises:
        ModelError: no such model.
    """
    import torch

    transformers = _library()
    if isinstance(config, str | Path):
        config = read_config(Path(config))
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            "the configuration is of a quantized model, which cannot be trained; give the original weights"
        )
    paired = getattr(config, "is_encoder_decoder", False)
    kind = transformers.AutoModelForSeq2SeqLM if paired else transformers.AutoModelForCausalLM
    try:
        with default_type, torch.device("meta"):
            model = kind.from_config(config, **({} if dtype is None else {"dtype": dtype}))
    except ValueError as error:
        raise ModelError(f"{type(config).__name__} makes no language model: {_first_line(error)}") from error
    return model.to("meta")  # some constructors draw numbers of their own whatever the device


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ModelError("a Hugging Face model needs transformers; pip install 'penstock[hf]'") from error
    return transformers


def has_weights(path: Path) -> bool:
    """Returns whether `path` is a directory with weights, of whatever form."""
    return path.is_dir() and any(next(path.glob(each), None) is not None for each in ("*.safetensors", *_PICKLES))


def weight_files(directory: Path) -> dict[str, Path]:
    """Returns name of a tensor -> the file it lies in.

    Raises:
        CheckpointError: no safetensors, an index that names other files than there are, or a damaged file.
    """
    index = directory / INDEX_FILE
    if index.is_file():
        found = {name: _inside(directory, file) for name, file in _weight_map(index).items()}
        missing = sorted({file.name for file in found.values() if not file.is_file()})
        if missing:
            raise CheckpointError(
                f"{directory} lacks {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}, of the "
                f"{len({*found.values()})} files that {INDEX_FILE} names; fetch or save the directory again"
            )
        return found
    files = (
        [directory / WEIGHTS_FILE] if (directory / WEIGHTS_FILE).is_file() else sorted(directory.glob("*.safetensors"))
    )
    if not files:
        pickled = next((file for each in _PICKLES for file in sorted(directory.glob(each))), None)
        if pickled is not None:
            raise CheckpointError(
                f"{pickled} is a pickle, which could run any code and is not opened; where you trust it, convert it: "
                f'AutoModelForCausalLM.from_pretrained("{directory}").save_pretrained("{directory}-safe")'
            )
        raise CheckpointError(
            f"{directory} holds no weights ({WEIGHTS_FILE} or {INDEX_FILE}); for fresh ones give Pipeline the model on "
            "the meta device and a seed"
        )
    found = {}
    for file in files:
        with _opened(file) as handle:
            found |= dict.fromkeys(handle.keys(), file)
    return found


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor in a safetensors file; only its heading is read.

    Raises:
        CheckpointError: it is damaged.
    """
    with _opened(file) as handle:
        return {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118  # no dict


@contextmanager
def fetching(files: dict[str, Path]) -> Iterator[Fetch]:
    """Returns what reads single tensors; a file is opened when the first of its tensors is read."""
    with ExitStack() as stack:
        handles: dict[Path, Any] = {}

        def fetch(name: str) -> Tensor:
            file = files[name]
            if file not in handles:
                handles[file] = stack.enter_context(_opened(file))
            try:
                tensor: Tensor = handles[file].get_tensor(name)
            except SafetensorError as error:
                raise CheckpointError(f"{file} holds no {name} ({error}); its index or the file is damaged") from error
            return tensor

        yield fetch


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        handle = safe_open(file, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be opened as safetensors ({error}); fetch or save it again") from error
    with handle as opened:
        yield opened


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is no index of safetensors ({_first_line(error)}); save it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError(f'{index} has a "weight_map" that does not lead from names to files; save it again')
    return found


def _inside(directory: Path, name: str) -> Path:
    """Returns the file `name` of `directory`: an index may come from anywhere, and must not lead out of it."""
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise CheckpointError(f'the index of {directory} names "{name}"; only its own .safetensors files are opened')
    return directory / name


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
