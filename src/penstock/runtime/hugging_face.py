"""Hugging Face directories in and out: the part of `Pipeline` that reads and writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch

from penstock.errors import CheckpointError, ModelError
from penstock.models.hugging_face import Directory
from penstock.runtime.agreement import Offer, agree
from penstock.runtime.held_state import HeldState
from penstock.runtime.shared_weights.replicas import Replicas
from penstock.runtime.spread import is_spread, whole
from penstock.runtime.stage_work import LossFunction
from penstock.runtime.transport.protocol import Exchange


class HuggingFaceFiles(HeldState):
    """The part of `Pipeline` that opens and makes directories of Hugging Face's form."""

    _origin: Any
    _replicas: Replicas | None
    _calls: int
    _calling: Callable[[str], AbstractContextManager[None]]
    exchange: Exchange

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        loss_fn: LossFunction | None = None,
        *,
        dtype: torch.dtype | None = None,
        **arguments: Any,
    ) -> Self:
        """Returns a Pipeline of the causal language model in a directory with config.json and safetensors.

        Each rank makes and reads the tensors of its own stages. Every rank calls it.

        Args:
            directory: as `save_pretrained` writes it, this class's or transformers'.
            loss_fn: as for Pipeline.
            dtype: of the parameters; None for what the configuration says.
            arguments: those of Pipeline, handed on as they are: written out here, the two lists would drift apart.

        Raises:
            CheckpointError: a file is missing, damaged, a pickle, or of another model than the configuration.
            UserError: as for Pipeline.
        """
        return cls(Directory(directory, dtype), loss_fn, **arguments)  # type: ignore[call-arg]

    def save_pretrained(self, directory: str | Path, *, tokenizer: str | Path | None = None) -> None:
        """Writes the model as a directory that `from_pretrained` opens, transformers' or this class's.

        Every rank writes its own tensors; parameters have their present type. Every rank calls it. Where there are
        data-parallel replicas, the first of them writes; DTensors are written whole.

        Args:
            directory: an empty one, or one to be made; on several hosts a shared one.
            tokenizer: another directory, whose tokenizer files are copied.

        Raises:
            ModelError: the model is none of Hugging Face's.
            CheckpointError: on every rank alike: a directory that holds a model already, or cannot be written.
            HandshakeError: the ranks called different things.
        """
        if self._origin is None:
            raise ModelError(
                "the model is none of Hugging Face's, whose directories have a configuration; save its state_dict, "
                "e.g. with penstock.checkpoint"
            )
        beside = None if tokenizer is None else Path(tokenizer)
        with self._calling("save_pretrained"):
            agree(self._transport, "save_pretrained", number=self._calls, offer=Offer())
            state = self._saved_once()
            if self._writes():
                self._export(Path(directory), state, beside)

    def _writes(self) -> bool:
        """Returns whether this pipeline writes: the first replica, and of those that share DTensors the first."""
        state: dict[str, Any] = self.state_dict()
        later = any(any(value.device_mesh.get_coordinate() or ()) for value in state.values() if is_spread(value))
        if self._replicas is not None and self._replicas.index:
            later = True
        return b"1" not in self.exchange(b"1" if later else b"0")

    def _saved_once(self) -> dict[str, torch.Tensor]:
        """Returns what this rank owns by name, whole; a tied parameter on the first of its stages alone."""
        parameters = {name for work in self._stages.values() for name in _parameter_names(work.module)}
        twice = parameters - self.plan.parameter_stages.keys()
        owned = {name: value for name, value in self.state_dict().items() if name not in twice}
        return {name: whole(value) for name, value in owned.items()}

    def _export(self, directory: Path, state: dict[str, torch.Tensor], beside: Path | None) -> None:
        from penstock.models.hugging_face.export import (
            file_names,
            in_file_form,
            make_directory,
            sizes_of,
            write_rest,
            write_tensors,
        )

        tensors: dict[str, torch.Tensor] = {}

        def prepare() -> dict[str, int]:
            tensors.update(in_file_form(self._origin, state))
            if self.rank == 0:
                make_directory(directory, beside)
            return sizes_of(tensors)

        def write() -> None:
            file = file_names(sizes)[self.rank]
            if file:
                write_tensors(directory / file, tensors)

        def finish() -> None:
            kinds = [value.dtype for name, value in state.items() if name in self.plan.parameter_stages]
            if self.rank == 0:
                dtype = str(kinds[0] if kinds else torch.get_default_dtype()).removeprefix("torch.")
                write_rest(directory, self._origin, sizes, dtype=dtype, beside=beside)

        sizes = self._together(prepare)
        self._together(write)
        self._together(finish)

    def _together(self, work: Callable[[], Any]) -> list[Any]:
        """Returns what `work` gives on each rank, plain values.

        Raises:
            CheckpointError: on every rank, if it failed on any.
        """
        result, problem = None, ""
        try:
            result = work()
        except Exception as error:  # the other ranks would wait for this one
            problem = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        replies = [json.loads(reply) for reply in self.exchange(json.dumps([problem, result]).encode())]
        for rank, (failed, _) in enumerate(replies):
            if failed:
                raise CheckpointError(f"rank {rank}: {failed}")
        return [given for _, given in replies]


def _parameter_names(module: torch.nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters(remove_duplicate=False)]
