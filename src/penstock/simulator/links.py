"""How far the messages of a link and of a channel have come."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from penstock.cluster import Link
from penstock.ir.ops import Transfer


@dataclass
class Wire:
    """A directed link and when it is free again."""

    link: Link
    free: float = 0


@dataclass
class Lane:
    """What one channel has posted at one end only, and how many messages both ends have."""

    sends: deque[float] = field(default_factory=deque)
    receives: deque[tuple[float, Transfer]] = field(default_factory=deque)
    matched: int = 0
