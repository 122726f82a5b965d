"""Simulation: (Program, costs, cluster) -> Timeline, deterministic and exact for its cost model."""

from penstock.simulator.events import simulate

__all__ = ["simulate"]
