"""Front-end for any module: its forward is followed once, block by block, and cut between blocks.

    forward      x ─ down1 ─┬─ down2 ─┬─ middle ─ up2 ─ up1 ─ head
                            │         └──────────── ┘     │         skips
                            └─────────────────────────────┘
    boundaries        {down1}   {down1, down2}   …      each value that is needed later passes every cut between, once

A unit of the partition is one call of a module with state, and what the forward computes after it. Blocks stay as they
are: their code runs, with its branches and loops. Only the code between them is recorded.
"""

from penstock.models.traced.front_end import from_module

__all__ = ["from_module"]
