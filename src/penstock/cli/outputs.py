"""The files that several commands write: pictures, pages and traces of timelines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from penstock.cli.options import OutputFile
from penstock.errors import UserError
from penstock.notation.whole_file import check_writable
from penstock.timeline import Timeline


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """Options that commands with pictures inherit."""

    png: OutputFile = None
    """Draw a picture there; .svg and .pdf work too."""
    svg: OutputFile = None
    """Draw it there as well, as vectors."""
    html: OutputFile = None
    """Write an interactive page there: one file that needs no network."""

    def pictures(self, *others: Path | None) -> list[Path]:
        """Returns the pictures asked for; called before the work, for a result that cannot be written is lost.

        Args:
            others: further files that the command is to write.

        Raises:
            UserError: a suffix of no picture, `--svg` with another kind of file, or a file that cannot be written.
        """
        if self.png is not None:
            from penstock.view.picture import check_format

            check_format(self.png)
        if self.svg is not None and self.svg.suffix.lower() != ".svg":
            raise UserError(f"--svg {self.svg}; name a file that ends in .svg, or use --png, which takes all formats")
        for path in (self.png, self.svg, self.html, *others):
            if path is not None:
                check_writable(path)
        return [path for path in (self.png, self.svg) if path is not None]


def write_timelines(
    console: Console,
    timelines: Mapping[str, Timeline],
    options: PictureOptions,
    *,
    perfetto: Path | None = None,
    above: str = "",
) -> None:
    """Writes the files asked for and says so; `above` is HTML above all else of a page.

    Raises:
        UserError: a file that cannot be written, or a picture of another format.
    """
    for path in options.pictures():
        from penstock.view.picture import draw_timelines

        draw_timelines(timelines, path)
        say_written(console, path)
    if options.html is not None:
        from penstock.view.page import save_page

        save_page(timelines, options.html, above=above)
        say_written(console, options.html)
    if perfetto is not None:
        from penstock.view.perfetto import save_perfetto

        save_perfetto(timelines, perfetto)
        say_written(console, perfetto)


def say_written(console: Console, path: Path) -> None:
    """Prints which file was written."""
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
