"""The values everything else is about: ops, placements, schedules and programs. Pure; no times."""

from penstock.ir.dependencies import Value, ValueKind, carried, consumed, message, produced
from penstock.ir.ops import (
    BACKWARD,
    COMPUTE,
    GUESTS,
    MOVES,
    NO_MICROBATCH,
    ORDERED,
    RECEIVES,
    SENDS,
    Channel,
    Op,
    OpKind,
    Transfer,
)
from penstock.ir.placement import Placement
from penstock.ir.program import Instruction, Program
from penstock.ir.schedule import Schedule, WeightRule

__all__ = [
    "BACKWARD",
    "COMPUTE",
    "GUESTS",
    "MOVES",
    "NO_MICROBATCH",
    "ORDERED",
    "RECEIVES",
    "SENDS",
    "Channel",
    "Instruction",
    "Op",
    "OpKind",
    "Placement",
    "Program",
    "Schedule",
    "Transfer",
    "Value",
    "ValueKind",
    "WeightRule",
    "carried",
    "consumed",
    "message",
    "produced",
]
