"""On a terminal, a run shows one live line."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from tests.train.runs import ROOT, options


def test_a_terminal_shows_step_loss_rate_and_time_left_in_one_live_line(text: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "src"), TERM="xterm", OMP_NUM_THREADS="1")
    environment.pop("COLUMNS", None)
    words = options(data__paths=text, run__output=tmp_path / "run", run__steps=40, run__dtype="bfloat16")
    command = [sys.executable, "-m", "penstock", "train", *words]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        shown = _read_to_end(ours)
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(60)) == (b"", 0)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    live = re.findall(r"step +\d+/40 [^\r\n]*? loss \d\.\d+ +[\d,]+ tokens/s +time left +[\d:-]+", plain)
    assert len(live) > 3, plain
    assert all(len(line) <= 80 for line in live), "the line would break"
    assert "step 20: held-out loss" in plain
    assert not re.search(r"^step \d+/40 .* s left", plain, re.MULTILINE), "the lines of a log, too"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor stays hidden"


def _read_to_end(descriptor: int) -> str:
    shown = bytearray()
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # how Linux tells that the other side is closed
            part = b""
        if not part:
            os.close(descriptor)
            return shown.decode()
        shown += part
