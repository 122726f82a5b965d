"""The bytes that each rank holds over time, as one step curve a rank."""

from __future__ import annotations

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from penstock.timeline import Timeline
from penstock.units import size_unit

_NAMED_RANKS = 8


def draw_memory(axes: Axes, timeline: Timeline) -> None:
    """Draws the memory of `timeline` on `axes`, whose x axis is in seconds."""
    peak = max(timeline.peak_memory)
    unit = size_unit(peak)
    colours = matplotlib.colormaps["viridis"]
    last = max(timeline.num_ranks - 1, 1)
    named = set(range(timeline.num_ranks))
    if timeline.num_ranks > _NAMED_RANKS:
        named = {0, timeline.num_ranks // 2, timeline.num_ranks - 1}
    for rank, curve in enumerate(timeline.memory):
        times = [float(seconds) for seconds, _ in curve] + [float(timeline.makespan)]
        held = [float(num_bytes) * unit.per_base for _, num_bytes in curve]
        held += held[-1:] or [0.0]
        axes.step(
            times,
            held,
            where="post",
            linewidth=1.1,
            color=colours(0.9 * rank / last),
            label=f"rank {rank}" if rank in named else None,
        )
    # Room above the curves for their names.
    axes.set_ylim(0, float(peak) * unit.per_base * 1.35 or 1)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, min_n_ticks=2))
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="y", linewidth=0.4, color="#dddddd")
    axes.set_axisbelow(True)
    axes.set_ylabel(f"memory ({unit.name})", size=7, labelpad=3)
    axes.legend(
        loc="upper right",
        ncols=len(named),
        fontsize=6.5,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.2,
        borderaxespad=0.1,
        borderpad=0.1,
    )
