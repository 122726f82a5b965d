"""What to run: a model described by its config, a fleet of devices, and the plans for one on the other."""

from importlib import import_module
from typing import TYPE_CHECKING

from penstock.planner.description import ModelDescription, describe

if TYPE_CHECKING:
    from penstock.planner.candidates import Limits
    from penstock.planner.fleet import DeviceKind, Fleet, Hosts, Network
    from penstock.planner.fleet_file import fleet_from_toml, load_fleet
    from penstock.planner.measured import MeasuredLayers
    from penstock.planner.plan import Forecast, Plan
    from penstock.planner.plan_file import load_plan, plan_from_json, plan_to_json
    from penstock.planner.planning import Planned, Refused, plan_training
    from penstock.planner.work import StateBytes

__all__ = [
    "DeviceKind",
    "Fleet",
    "Forecast",
    "Hosts",
    "Limits",
    "MeasuredLayers",
    "ModelDescription",
    "Network",
    "Plan",
    "Planned",
    "Refused",
    "StateBytes",
    "describe",
    "fleet_from_toml",
    "load_fleet",
    "load_plan",
    "plan_from_json",
    "plan_to_json",
    "plan_training",
]

_HOMES = {
    "candidates": ("Limits",),
    "fleet": ("DeviceKind", "Fleet", "Hosts", "Network"),
    "fleet_file": ("fleet_from_toml", "load_fleet"),
    "measured": ("MeasuredLayers",),
    "plan": ("Forecast", "Plan"),
    "plan_file": ("load_plan", "plan_from_json", "plan_to_json"),
    "planning": ("Planned", "Refused", "plan_training"),
    "work": ("StateBytes",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    # Loaded on first use: timing brings numba in, which whoever only describes a model need not wait for.
    if name not in _HOME:
        raise AttributeError(f"module 'penstock.planner' has no attribute '{name}'")
    return getattr(import_module(f"penstock.planner.{_HOME[name]}"), name)
