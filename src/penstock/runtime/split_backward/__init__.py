"""Split backward: input gradients at once (I), weight gradients when the schedule says so (W).

    F   forwards, mode ── see a linear-like op on a parameter ──> a hook on its autograd node, or a `DeferredOp`
    I   autograd ── reaches the node ──> input gradient goes on; (output gradient, input) lie on the tape
    W   tape ──> weight gradients, op by op in the order of I, into `.grad`

Parameters of other ops get their gradients in I, by plain autograd. The graph is walked once, by autograd
itself, and freed by I. Modules are the user's own; what is deferred is decided op by op, by a table of rules.
"""

from penstock.runtime.split_backward.forwards import DeferredForward
from penstock.runtime.split_backward.mode import DeferWeightGradients
from penstock.runtime.split_backward.rules import RULES, Operands, Rule, register_weight_gradient
from penstock.runtime.split_backward.tape import Tape, accumulate

__all__ = [
    "RULES",
    "DeferWeightGradients",
    "DeferredForward",
    "Operands",
    "Rule",
    "Tape",
    "accumulate",
    "register_weight_gradient",
]
