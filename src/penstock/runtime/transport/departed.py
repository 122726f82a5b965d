"""Process groups of closed pipelines, until no rank needs them.

A rank may close its pipeline while others are still at work, and nothing of theirs may be cut off. So

    1  close   the rank adds itself to a count in the store and leaves its groups here; it waits for nobody
    2  later   whenever this process makes or closes a pipeline, groups that all of their ranks have left are ended

Ranks that close a pipeline before they make the next thus keep at most one closed pipeline's groups.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from torch import distributed as dist

from penstock.ir.ops import Channel
from penstock.runtime.transport.watch import Watch


@dataclass(eq=False)
class Groups:
    """Connected processes that one rank's transport has made, each ended when nobody holds it any more.

    torch.distributed does not know of them. It names a new group by how many there are, so ranks that had ended theirs
    at different times would give the next one different names.

    Attributes:
        control: all ranks of the pipeline; None once ended.
        channels: channel -> kind of device -> its two ends.
    """

    control: Any = None
    channels: dict[Channel, dict[str, Any]] = field(default_factory=dict)

    def end(self) -> None:
        """Lets go of them."""
        self.control = None
        self.channels.clear()


_left: list[tuple[Watch, Groups]] = []
_lock = threading.RLock()  # the collector may close a pipeline in the middle of any of this


def next_name(store: dist.Store, ranks: Sequence[int], rank: int) -> str:
    """Returns a name for the next pipeline of `ranks`, the same on each of them and no other pipeline's.

    Args:
        store: the job's. It counts, not the process: one that replaces another goes on where that was.
        ranks: of the job, in the pipeline's order.
        rank: this one's place among them.
    """
    among = blake2b(str(list(ranks)).encode(), digest_size=8).hexdigest()
    return f"{among}.{store.add(f'penstock/made/{among}/{rank}', 1)}"


def leave(watch: Watch, groups: Groups) -> None:
    """Ends `groups` as soon as all ranks have closed their pipeline, which `watch` knows."""
    with _lock:
        _left.append((watch, groups))
    end_departed()


def end_departed() -> None:
    """Ends the groups of pipelines that all of their ranks have closed."""
    with _lock:
        for pair in list(_left):
            watch, groups = pair
            if watch.all_have_left() and pair in _left:
                _left.remove(pair)
                groups.end()
                watch.disconnect()
