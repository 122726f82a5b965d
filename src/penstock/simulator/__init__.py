"""Simulation: (Program, costs, cluster) -> Timeline, deterministic and exact for its cost model."""

from penstock.simulator.events import simulate, simulated_seconds

__all__ = ["simulate", "simulated_seconds"]
