"""The options that say what a schedule is timed with: seconds of compute, seconds of a message."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from penstock.cli.options import OptionalSeconds
from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.errors import UserError
from penstock.schedules.registry import Given

Transfer = Annotated[float, tyro.conf.arg(aliases=["--latency"])]


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """Options that commands with costs inherit; seconds a microbatch."""

    forward: float = 1.0
    """Seconds of a forward, F."""
    input_grad: float = 1.0
    """Seconds of an input gradient, I."""
    weight_grad: float = 1.0
    """Seconds of a weight gradient, W."""
    backward: OptionalSeconds = None
    """Seconds of a full backward, B; left out, I + W."""
    transfer: Transfer = 0.0
    """Seconds that a message takes from rank to rank."""
    overlap: bool = True
    """Ranks compute while they send; with --no-overlap they stand still until the message has arrived."""

    def costs(self) -> StageCosts:
        """Returns the seconds of compute.

        Raises:
            UserError: one of them is negative or no number.
        """
        return StageCosts(_whole(self.forward), _whole(self.input_grad), _whole(self.weight_grad), self.backward)

    def transfer_seconds(self) -> float:
        """Returns the seconds of a message.

        Raises:
            UserError: they are negative or no number.
        """
        if not 0 <= self.transfer < float("inf"):
            raise UserError(f"--transfer {self.transfer}; give seconds, not negative, e.g. --transfer 0.1")
        return _whole(self.transfer)

    def cluster(self, num_ranks: int) -> Cluster:
        """Returns ranks joined by links that take as long as asked for."""
        cluster = Cluster.uniform(num_ranks, latency_seconds=self.transfer_seconds())
        return replace(cluster, overlap=self.overlap)

    def given(self, num_ranks: int) -> Given:
        """Returns the costs and links for which a schedule is found whose order depends on them."""
        return Given(self.costs(), self.cluster(num_ranks))


def _whole(seconds: float) -> float:
    """Returns whole seconds as an integer, with which a simulation is exact."""
    return int(seconds) if seconds.is_integer() else seconds
