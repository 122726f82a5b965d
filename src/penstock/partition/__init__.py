"""Partition: which layers form which stage, and which partition takes least time."""

from importlib import import_module
from typing import TYPE_CHECKING

from penstock.partition.ranges import Partition

if TYPE_CHECKING:
    from penstock.partition.balance import Balanced, best_partition
    from penstock.partition.layers import LayerCosts
    from penstock.partition.pipedream import Graph, Level, Replicated, pipedream_partition

__all__ = [
    "Balanced",
    "Graph",
    "LayerCosts",
    "Level",
    "Partition",
    "Replicated",
    "best_partition",
    "pipedream_partition",
]

_HOMES = {
    "balance": ("Balanced", "best_partition"),
    "layers": ("LayerCosts",),
    "pipedream": ("Graph", "Level", "Replicated", "pipedream_partition"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    # Loaded on first use: timing brings numba in, which whoever only states a partition need not wait for.
    if name not in _HOME:
        raise AttributeError(f"module 'penstock.partition' has no attribute '{name}'")
    return getattr(import_module(f"penstock.partition.{_HOME[name]}"), name)
