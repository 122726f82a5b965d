"""`penstock COMMAND …`: finds the command, runs it, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 an error that the message explains, 2 a command line that cannot be read, 130 Ctrl-C.
A command is a module beside this one with `run(argv) -> int`, loaded only when it is called.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from penstock._version import __version__
from penstock.errors import PenstockError, nearest

COMMANDS = {
    "show": "draw a schedule as a grid of ops, or its simulation as a picture",
    "verify": "prove that a schedule runs correctly, or show why it does not",
    "simulate": "say how long a schedule takes and how large its bubble is, from costs",
    "compare": "set all schedules side by side: bubble, makespan, memory, weights, messages",
    "profile": "measure what each layer of a model costs, and what host and links add, as a file",
    "optimize": "search for the best order under given costs and memory, with a lower bound",
    "partition": "lay layers onto stages so that a step takes least time, and say why",
    "plan": "say how to train a model on a cluster: degrees, schedule, partition, and why",
    "check": "run a model unsplit and split on the same batch, and compare every gradient",
    "train": "train a language model through a pipeline of processes",
    "convert": "turn a checkpoint into other files, or a Hugging Face directory, and back",
    "trace": "say how large the bubble of a training run was, and why",
}
"""Every command and its line in the help."""

_DONE, _FAILED, _USAGE, _INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of the command line `argv`; None means this process's own."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return _FAILED
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _discard_output()
            told = "cannot write: no space left on the device"
        elif error.filename is not None:
            told = f"{error.filename}: {error.strerror}; check the path, and that it is yours"
        else:
            raise
        print(f"penstock: {told}", file=sys.stderr)
        return _FAILED
    except SystemExit as end:
        # The option parser prints help and usage errors itself, then asks to exit.
        return end.code if isinstance(end.code, int) else _DONE if end.code is None else _FAILED


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return _DONE if argv else _USAGE
    name, *rest = argv
    if name == "--version":
        print(f"penstock {__version__}")
        return _DONE
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        known = ", ".join(COMMANDS)
        print(f'penstock: unknown {what} "{name}".{nearest(name, COMMANDS)} Known: {known}', file=sys.stderr)
        return _USAGE
    code: int = import_module(f"penstock.cli.{name}").run(rest)
    return code


def _discard_output() -> None:
    """Lets what is left to write vanish: Python flushes stdout once more at exit, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            "usage: penstock COMMAND …",
            "",
            "Pipeline-parallel training in which the schedule is data.",
            "",
            *lines,
            "",
            "penstock COMMAND --help lists a command's options; penstock --version the version.",
        ]
    )
