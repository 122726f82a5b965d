"""The engine that walks a verified program over a transport, and the Pipeline that users hold."""

from penstock.runtime.asynchronous.delays import (
    clip_by_stage,
    nesterov_look_ahead,
    pipemare_delays,
    pipemare_learning_rate,
)
from penstock.runtime.loss_scale import LossScaler
from penstock.runtime.memory.recompute import Recompute
from penstock.runtime.pipeline import Pipeline
from penstock.runtime.split_backward import register_weight_gradient
from penstock.runtime.transport.distributed import DistributedTransport
from penstock.runtime.transport.loopback import LoopbackTransport, run_ranks
from penstock.runtime.transport.protocol import Pending, Transport

__all__ = [
    "DistributedTransport",
    "LoopbackTransport",
    "LossScaler",
    "Pending",
    "Pipeline",
    "Recompute",
    "Transport",
    "clip_by_stage",
    "nesterov_look_ahead",
    "pipemare_delays",
    "pipemare_learning_rate",
    "register_weight_gradient",
    "run_ranks",
]
