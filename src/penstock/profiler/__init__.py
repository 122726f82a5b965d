"""Profile: what each layer of a model costs on a device, what the host and the links add, and what a step takes then.

model, one microbatch ──> layers run alone (or by formula) ──┐
ranks' own transport ──> messages of several sizes ──────────┼──> Profile ──> LayerCosts, StageCosts, Cluster
an empty pipeline ──> the host's part of an op ──────────────┘                   └──> predicted step
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.profiler.accelerators import Accelerator, accelerator
    from penstock.profiler.attribution import Causes, causes
    from penstock.profiler.costs import cluster_of, layer_costs
    from penstock.profiler.files import load_profile, save_profile
    from penstock.profiler.measure import profile
    from penstock.profiler.prediction import Prediction, predict
    from penstock.profiler.values import LayerProfile, Profile

_HOMES = {
    "accelerators": ("Accelerator", "accelerator"),
    "attribution": ("Causes", "causes"),
    "costs": ("cluster_of", "layer_costs"),
    "files": ("load_profile", "save_profile"),
    "measure": ("profile",),
    "prediction": ("Prediction", "predict"),
    "values": ("LayerProfile", "Profile"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Accelerator",
    "Causes",
    "LayerProfile",
    "Prediction",
    "Profile",
    "accelerator",
    "causes",
    "cluster_of",
    "layer_costs",
    "load_profile",
    "predict",
    "profile",
    "save_profile",
]


def __getattr__(name: str) -> object:
    # Loaded on first use: whoever reads a profile's file need not wait for torch.
    if name not in _HOME:
        raise AttributeError(f"module 'penstock.profiler' has no attribute '{name}'")
    return getattr(import_module(f"penstock.profiler.{_HOME[name]}"), name)
