"""What `Pipeline.run` has in flight when a checkpoint is taken: each rank's own, for the same layout and plan.

in_flight/RANK/…    as `Pipeline.in_flight_state_dict` names it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from penstock.checkpoint.manifest import Layout, Manifest
from penstock.checkpoint.ranks import Ranks
from penstock.errors import CheckpointError, ModelError
from penstock.runtime import Pipeline

IN_FLIGHT = "in_flight/"


def in_flight_tensors(pipe: Pipeline, ranks: Ranks) -> dict[str, Tensor]:
    """Returns what this rank has in flight by its names in the checkpoint; empty between two steps.

    Raises:
        CheckpointError: it cannot be saved; `drain` helps.
    """
    try:
        state = pipe.in_flight_state_dict()
    except ModelError as error:
        raise CheckpointError(str(error)) from None
    return {f"{IN_FLIGHT}{ranks.rank}/{name}": value for name, value in state.items()}


def in_flight_names(path: Path, manifest: Manifest, pipe: Pipeline, ranks: Ranks) -> list[str]:
    """Returns the names of what this rank has in flight in a checkpoint.

    Raises:
        CheckpointError: the checkpoint was saved under another layout or plan, or something is in flight here.
    """
    found = [name for name in manifest.tensors() if name.startswith(IN_FLIGHT)]
    if pipe.in_flight:
        raise CheckpointError("a checkpoint is loaded while microbatches of run are in flight; call drain first")
    if not found:
        return []
    saved = manifest.layout or Layout(0)
    if saved != ranks.layout or manifest.plan != pipe.plan.proof.program.digest:
        raise CheckpointError(
            f"{path} was saved with microbatches of run in flight on {saved.num_ranks} ranks; load it into a pipeline "
            f"of as many, with the same schedule and partition, and to go on elsewhere save after drain"
        )
    own = f"{IN_FLIGHT}{ranks.rank}/"
    return [name for name in found if name.startswith(own)]


def load_in_flight(pipe: Pipeline, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Puts what was in flight back. Every rank calls it, after weights and optimizers."""
    pipe.load_in_flight_state_dict({name.split("/", 2)[2]: tensors[name].clone() for name in names})
