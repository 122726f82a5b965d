"""Checkpoints: safetensors by rank, committed by a manifest, opened in any layout."""

from penstock.checkpoint.directory import latest
from penstock.checkpoint.manifest import Manifest, read_manifest
from penstock.checkpoint.optimizer_state import (
    optimizer_settings,
    optimizer_tensors,
    restore_optimizer,
    restore_settings,
)
from penstock.checkpoint.read import check_fits, load, names_for
from penstock.checkpoint.shard import Shard
from penstock.checkpoint.write import Exchange, save

__all__ = [
    "Exchange",
    "Manifest",
    "Shard",
    "check_fits",
    "latest",
    "load",
    "names_for",
    "optimizer_settings",
    "optimizer_tensors",
    "read_manifest",
    "restore_optimizer",
    "restore_settings",
    "save",
]
