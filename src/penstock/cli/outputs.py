"""The files that several commands write: pictures and traces of timelines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from penstock.timeline import Timeline


def write_timelines(
    console: Console, timelines: Mapping[str, Timeline], *, png: Path | None, perfetto: Path | None
) -> None:
    """Writes the files asked for and says so.

    Raises:
        UserError: a file that cannot be written, or a picture of another format.
    """
    if png is not None:
        from penstock.view.picture import draw_timelines

        draw_timelines(timelines, png)
    if perfetto is not None:
        from penstock.view.perfetto import save_perfetto

        save_perfetto(timelines, perfetto)
    for path in (png, perfetto):
        if path is not None:
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)
