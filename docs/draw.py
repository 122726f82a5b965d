"""Draws the pictures of README.md and docs/ anew, each by the command that the page shows.

    make pictures                      all of them
    make pictures ARGS="zb_v wave"     these only

What `penstock` draws is kept in 32 colours, a third of the bytes; equal pictures are equal files.
"""

import subprocess
import sys
from pathlib import Path

from PIL import Image

from penstock.schedules import SCHEDULES

IMAGES = Path(__file__).parent / "images"
NUM_COLOURS = 32
COMPARISON = "compare -p 8 -m 32 --forward 1 --input-grad 1.1 --weight-grad 0.7 --transfer 0.05"
COMMANDS = {name: f"show {name} -p 4 -m 8" for name in SCHEDULES} | {"comparison": COMPARISON}
"""File name without its suffix -> arguments of `penstock`."""


def draw(name: str) -> Path:
    """Returns the path of the picture called `name`, drawn anew."""
    path = IMAGES / f"{name}.png"
    command = [sys.executable, "-m", "penstock", *COMMANDS[name].split(), "--png", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(NUM_COLOURS, kmeans=NUM_COLOURS, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
    return path


def main() -> None:
    """Draws the pictures named on the command line, all where there are none."""
    IMAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or COMMANDS:
        path = draw(name)
        print(f"{path.stat().st_size / 1e3:5.1f} kB  {path}")


if __name__ == "__main__":
    main()
