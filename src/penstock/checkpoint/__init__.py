"""Checkpoints: safetensors by rank, committed by a manifest, opened in any layout."""

from penstock.checkpoint.directory import latest
from penstock.checkpoint.held import Stateful
from penstock.checkpoint.manifest import Manifest, read_manifest
from penstock.checkpoint.read import read_tensors
from penstock.checkpoint.saving import Loaded, Saver, load, save
from penstock.checkpoint.shard import Shard
from penstock.checkpoint.write import Label, write_checkpoint
from penstock.runtime.transport.protocol import Exchange

__all__ = [
    "Exchange",
    "Label",
    "Loaded",
    "Manifest",
    "Saver",
    "Shard",
    "Stateful",
    "latest",
    "load",
    "read_manifest",
    "read_tensors",
    "save",
    "write_checkpoint",
]
