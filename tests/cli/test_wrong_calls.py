"""Calls as a new user gets them wrong: each gives one sentence with the wrong value and what to do instead."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock import (
    Cluster,
    Schedule,
    StageCosts,
    bpipe,
    breadth_first,
    chimera,
    dualpipe,
    dualpipe_v,
    eager_1f1b,
    gis,
    gpipe,
    interleaved_1f1b,
    load_schedule,
    lower,
    naive,
    named_schedule,
    one_f_one_b,
    parse_grid,
    pipedream,
    pipedream_2bw,
    pipemare,
    program_from_json,
    program_to_json,
    schedule_from_json,
    schedule_to_json,
    simulate,
    wave,
    zb_auto,
    zb_h2,
)
from penstock.cli.main import main
from penstock.errors import UserError
from penstock.ir import Placement
from penstock.notation import draw_grid

Said = tuple[str, str]
"""The wrong value, and the remedy, as the sentence has them."""

WHOLE = schedule_to_json(gpipe(2, 2))
FILES = {
    "torn.json": WHOLE[:90],
    "empty.json": "",
    "newer.json": WHOLE.replace('"version":1', '"version":7'),
    "half.json": WHOLE.replace('"num_microbatches":2', '"num_microbatches":2.5'),
    "misspelt.json": WHOLE.replace("1B1", "1b1"),
    "foreign.json": json.dumps({"format": "other.schedule", "version": 1}),
    "program.json": program_to_json(lower(gpipe(2, 2))),
    "torn-program.json": program_to_json(lower(gpipe(2, 2)))[:-9],
    "whole.json": WHOLE,
    "short.txt": draw_grid(gpipe(2, 2)).rsplit("\n", 1)[0],
    "misspelt.txt": draw_grid(gpipe(2, 2)).replace("F1", "f1"),
    "cell.csv": "0F0,0B0\n1F0,1Z0\n",
}
"""Files that the commands below name."""

COMMANDS: dict[str, Said] = {
    "show gpipe -p 0": ("num_ranks=0", "use at least 1, e.g. num_ranks=4"),
    "verify gpipe -p -4": ("num_ranks=-4", "use at least 1, e.g. num_ranks=4"),
    "show gpipe -m -1": ("num_microbatches=-1", "use at least 1, e.g. num_microbatches=4"),
    "simulate 1f1b -m 0": ("num_microbatches=0", "use at least 1, e.g. num_microbatches=4"),
    "show interleaved_1f1b -v 0": ("num_chunks=0", "use at least 1, e.g. num_chunks=4"),
    "show wave -v 3": ("num_chunks=3", "use an even number, e.g. num_chunks=4"),
    "verify zb_v -v 3": ("num_chunks=3", "it is defined for 2 a rank, leave num_chunks out"),
    "simulate gpipe -v 2": ("num_chunks=2", "it is defined for 1 a rank, leave num_chunks out"),
    "show chimera -p 3": ("num_ranks=3", "use an even number, e.g. num_ranks=4"),
    "verify dualpipe -p 3 -m 8": ("num_ranks=3", "use an even number, e.g. num_ranks=4"),
    "verify dualpipe -p 4 -m 9": ("num_microbatches=9", "use an even number, e.g. num_microbatches=10"),
    "verify dualpipe -p 4 -m 6": ("num_microbatches=6", "use at least 2 a rank, e.g. num_microbatches=8"),
    "simulate dualpipe_v -p 4 -m 7": ("num_microbatches=7", "use at least 2 a rank, e.g. num_microbatches=8"),
    "simulate zb_h2 -p 4 -m 7": ("num_microbatches=7", "use at least twice as many as ranks, num_microbatches=8"),
    "show gpip": ('unknown schedule "gpip"', 'Did you mean "GPipe"?'),
    "verify one_f_1b": ('unknown schedule "one_f_1b"', 'Did you mean "one_f_one_b"?'),
    "simulate 42": ('unknown schedule "42"', "Known: bpipe, "),
    "simulate gpipe --forward nan": ("forward=nan", "a cost is finite and not negative, e.g. forward=1.0"),
    "simulate gpipe --forward inf": ("forward=inf", "a cost is finite and not negative, e.g. forward=1.0"),
    "simulate gpipe --backward -2": ("backward=-2", "a cost is finite and not negative, e.g. backward=1.0"),
    "simulate gpipe --transfer nan": ("--transfer nan", "give seconds, not negative, e.g. --transfer 0.1"),
    "simulate gpipe --transfer -0.5": ("--transfer -0.5", "give seconds, not negative, e.g. --transfer 0.1"),
    "verify torn.json": ("torn.json: not a schedule file: Input data was truncated", "write it again"),
    "show empty.json": ("empty.json: not a schedule file: Input data was truncated", "write it again"),
    "verify newer.json": ("newer.json: the file has version 7", "this penstock reads version 1; write it again"),
    "show half.json": ("half.json: not a schedule file", "Expected `int`, got `float` - at `$.num_microbatches`"),
    "verify misspelt.json": ('misspelt.json: rank 1: "1b1" is not an op', "write stage, kind, microbatch, e.g. 0F3"),
    "verify foreign.json": ('format "other.schedule"', 'a schedule says "penstock.schedule"'),
    "show program.json": ('program.json: the file says format "penstock.program"', "which penstock verify takes"),
    "verify torn-program.json": ("torn-program.json: not a schedule file: Input data was truncated", "write it again"),
    "verify short.txt": ("short.txt: header: p=2 and stages on 2 ranks, but 1 rows follow", "write one row a rank"),
    "show misspelt.txt": ('misspelt.txt: rank 0: "f1" is not an op', "write stage, kind, microbatch, e.g. 0F3"),
    "verify cell.csv": ('cell.csv: row 2, cell 2: "1Z0" is no action', "write stage, kind, microbatch, e.g. 0F3"),
    "verify none.json": ("cannot read none.json: No such file or directory", "name a file with a schedule"),
    "verify directory": ("cannot read directory: Is a directory", "name a file with a schedule"),
    "verify whole.json -p 4": ("-p 4 contradicts whole.json, which has 2", "leave -p out for a file"),
    "simulate whole.json -m 3": ("-m 3 contradicts whole.json, which has 2", "leave -m out for a file"),
    "show gpipe -p 4 -m 100000000": ("num_microbatches=100000000", "use at most e.g. num_microbatches=262144"),
    "show gpipe -p 100000000 -m 4": ("num_ranks=100000000", "use at most e.g. num_ranks=64"),
    "show gpipe --png none/a.png": (
        "cannot write none/a.png: there is no folder none, make it first",
        "folder that is",
    ),
    "simulate gpipe --json directory": ("cannot write directory: it is a folder", "name a file in a folder that is"),
    "simulate gpipe --perfetto none/a": ("cannot write none/a: there is no folder none", "name a file in a folder"),
    "profile --output none/p.json": ("cannot write none/p.json: there is no folder none", "name a file in a folder"),
    "profile --hf torn.json": (
        "torn.json: holds no Hugging Face config",
        "name a model's directory or its config.json",
    ),
    "partition --costs none.json": ("none.json: cannot be read as JSON: No such file", "check the path, or write"),
    "optimize --out none/x.json": ("cannot write none/x.json: there is no folder none", "name a file in a folder"),
    "trace .": (
        "cannot read timelines.json: No such file or directory",
        "name the output of a finished penstock train",
    ),
    "trace torn.json": ("torn.json: not a recording of timelines", "name the output of a finished penstock train"),
    "simulate gpipe --profile none.json": ("cannot read none.json", "penstock profile writes one"),
    "simulate gpipe --profile torn.json": ("torn.json: not a profile", "penstock profile writes one"),
    "show whole.json -v 2": ("-v 2 contradicts whole.json, which has 1", "leave -v out for a file"),
}
"""Command line -> what its sentence has."""

OPTIONS: dict[str, Said] = {
    "show gpipe --rank 4": ("--rank, 4", "Perhaps you meant: -p, --ranks INT"),
    "simulate gpipe --foward 2": ("--foward, 2", "Perhaps you meant: --forward FLOAT"),
    "show gpipe --colour": ("--colour", "For full helptext, run penstock show --help"),
    "show gpipe 4 8": ("4, 8", "For full helptext, run penstock show --help"),
    "verify gpipe -p 2.5": ("'2.5'", "-p INT, --ranks INT Number of ranks p"),
    "simulate gpipe --forward one": ("'one'", "--forward FLOAT Seconds of a forward, F."),
    "show gpipe --style colour": ("'colour'", "Expected one of ('auto', 'scale', 'grid')"),
    "show": (
        "Missing from penstock show",
        'NAME|FILE A schedule\'s name, "auto" for the best found by search, or a file with one',
    ),
    "show gpipe -p": ("Missing value for argument '-p/--ranks'", "For full helptext, run penstock show --help"),
}
"""Command lines that cannot be read -> what their message, a box, has."""

CALLS: dict[str, tuple[Callable[[], object], Said]] = {
    "no ranks": (lambda: one_f_one_b(0, 4), ("one_f_one_b: num_ranks=0", "use at least 1")),
    "microbatches below none": (lambda: naive(4, -1), ("naive: num_microbatches=-1", "use at least 1")),
    "a float for a size": (lambda: eager_1f1b(4, 8.0), ("num_microbatches=8.0", "whole number; use e.g.")),  # type: ignore[arg-type]
    "text for a size": (lambda: gpipe("4", 8), ("num_ranks='4'", "is not a whole number; use e.g. num_ranks=4")),  # type: ignore[arg-type]
    "a truth for a size": (lambda: bpipe(4, True), ("num_microbatches=True", "whole number; use e.g.")),
    "no chunks": (lambda: breadth_first(4, 8, num_chunks=0), ("num_chunks=0", "use at least 1")),
    "chunks below none": (lambda: gis(4, 8, num_chunks=-1), ("num_chunks=-1", "use at least 1")),
    "odd chunks for wave": (lambda: wave(4, 8, num_chunks=3), ("num_chunks=3", "use an even number")),
    "chunks that are fixed": (
        lambda: named_schedule("dualpipe_v", num_ranks=4, num_microbatches=8, num_chunks=4),
        ("dualpipe_v: num_chunks=4", "it is defined for 2 a rank, leave num_chunks out"),
    ),
    "a group that is too small": (
        lambda: interleaved_1f1b(4, 8, num_chunks=2, group_size=3),
        ("group_size=3", "use e.g. group_size=4"),
    ),
    "odd ranks for chimera": (lambda: chimera(5, 8), ("num_ranks=5", "use an even number, e.g. num_ranks=6")),
    "odd replicas for chimera": (
        lambda: chimera(8, 8, num_replicas=3),
        ("num_replicas=3", "use an even divisor of 8, e.g. num_replicas=2"),
    ),
    "odd microbatches for dualpipe": (lambda: dualpipe(4, 11), ("num_microbatches=11", "e.g. num_microbatches=12")),
    "too few for dualpipe_v": (lambda: dualpipe_v(4, 7), ("num_microbatches=7", "e.g. num_microbatches=8")),
    "too few for zb_h2": (lambda: zb_h2(8, 15), ("num_microbatches=15", "num_microbatches=16, or zb_h1")),
    "too few a version": (
        lambda: pipedream_2bw(4, 8, microbatches_per_version=2),
        ("microbatches_per_version=2", "use at least 4"),
    ),
    "versions that come out uneven": (
        lambda: pipemare(4, 9, microbatches_per_version=4),
        ("num_microbatches=9", "use a multiple, e.g. num_microbatches=12"),
    ),
    # Symptom: TypeError: 'int' object is not iterable. Cause: replicas was made a tuple unseen.
    "one number of replicas": (
        lambda: pipedream(3, 4, replicas=3),  # type: ignore[arg-type]
        ("replicas=3", "is not a number for each stage; use e.g. (2, 1)"),
    ),
    "replicas by stage in a dictionary": (
        lambda: pipedream(3, 4, replicas={0: 2, 1: 1}),  # type: ignore[arg-type]
        ("replicas={0: 2, 1: 1}", "is not a number for each stage; use e.g. (2, 1)"),
    ),
    "replicas of too few ranks": (lambda: pipedream(3, 4, replicas=(1, 1)), ("replicas=(1, 1)", "e.g. (2, 1)")),
    "microbatches that replicas cannot share": (
        lambda: pipedream(3, 5, replicas=(2, 1)),
        ("num_microbatches=5", "use a multiple of 2, e.g. num_microbatches=6"),
    ),
    "vertical sync of uneven replicas": (
        lambda: pipedream(3, 4, replicas=(1, 2), vertical_sync=True),
        ("replicas=(1, 2) with vertical_sync", "as in (2, 1)"),
    ),
    "a memory limit that no schedule meets": (
        lambda: zb_auto(4, 8, costs=StageCosts(activation_bytes=100, deferred_bytes=40), memory_limit=99),
        ("memory_limit=99 on rank 0", "one microbatch takes 100; no schedule meets that, use 100 or more"),
    ),
    "a memory limit that one rank cannot meet": (
        lambda: zb_auto(3, 8, memory_limit=(3, 3, 0.5)),
        ("memory_limit=0.5 on rank 2", "use 1 or more"),
    ),
    "a memory limit that is no number": (
        lambda: zb_auto(4, 8, memory_limit=math.nan),
        ("memory_limit=nan", "use 1 or more"),
    ),
    "memory limits of other ranks": (
        lambda: zb_auto(4, 8, memory_limit=(9, 9)),
        ("memory_limit has 2 values for 4 ranks", "give one number a rank"),
    ),
    "an unknown name": (
        lambda: named_schedule("interleavd-1f1b", num_ranks=4, num_microbatches=8),
        ('"interleavd-1f1b"', 'Did you mean "interleaved_1f1b"?'),
    ),
    "a cost that is not a number": (lambda: StageCosts(forward=math.nan), ("forward=nan", "e.g. forward=1.0")),
    "a cost below nothing": (lambda: StageCosts(weight_grad=(1, -2)), ("weight_grad=-2", "finite and not negative")),
    "a cost in words": (lambda: StageCosts(forward="1 s"), ("forward='1 s'", "give seconds or bytes")),
    "costs of different lengths": (
        lambda: StageCosts(forward=(1, 2), backward=(1, 2, 3)),
        ("{'forward': 2, 'backward': 3}", "give one number a stage"),
    ),
    "costs of other stages": (
        lambda: simulate(gpipe(4, 8), StageCosts(forward=(1, 2, 3))),
        ("forward has 3 values for 4 stages", "give one number a stage"),
    ),
    "costs a rank where stages are chunks": (
        lambda: simulate(interleaved_1f1b(2, 4, num_chunks=2), StageCosts(forward=(1, 2))),
        ("forward has 2 values for 4 stages", "give one number a stage"),
    ),
    "a cluster of other ranks": (
        lambda: simulate(gpipe(4, 8), StageCosts(), Cluster.uniform(3)),
        ("the cluster has 3 devices for 4 ranks", "give one a rank"),
    ),
    "a cluster of other ranks to search for": (
        lambda: zb_auto(4, 8, cluster=Cluster.uniform(8)),
        ("the cluster has 8 devices for 4 ranks", "give one a rank"),
    ),
    "a cluster of no ranks": (lambda: Cluster.uniform(0), ("num_ranks=0", "a whole number of ranks, e.g. 4")),
    "a latency below nothing": (
        lambda: Cluster.uniform(4, latency_seconds=-1),
        ("latency_seconds=-1", "latency ≥ 0, bandwidth > 0"),
    ),
    "a placement with a gap": (lambda: Placement(((0, 2),)), ("ranks [0, 2]", "here [0, 1]")),
    "a schedule of no microbatches": (
        lambda: Schedule("mine", Placement.looped(2), 0, ((), ())),
        ("num_microbatches=0", "use at least 1"),
    ),
    "a schedule of other ranks": (
        lambda: Schedule("mine", Placement.looped(2), 1, ((),)),
        ("mine has ops for 1 ranks but places stages on 2", "give one row of ops a rank"),
    ),
    "text that is no JSON": (lambda: schedule_from_json("gpipe"), ("not a schedule file", "no JSON, write it again")),
    "a schedule for a program": (
        lambda: program_from_json(WHOLE),
        ('format "penstock.schedule"', 'a program says "penstock.program"'),
    ),
    "no grid": (lambda: parse_grid(""), ("a grid has a header line", "see penstock.notation.grid")),
    "no file": (lambda: load_schedule("none.json"), ("none.json: No such file", "name a file with a schedule")),
}  # fmt: skip


def test_there_are_enough_of_them() -> None:
    assert len(COMMANDS) + len(OPTIONS) + len(CALLS) >= 80


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts FILES and a directory where the commands run."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "directory").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("line", COMMANDS)
def test_a_wrong_command_gives_one_sentence(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    _check(captured.err.removesuffix("\n"), COMMANDS[line])
    assert captured.err.startswith("penstock: ")


@pytest.mark.parametrize("line", OPTIONS)
def test_an_option_that_cannot_be_read_is_told_with_its_help(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    message = " ".join(re.sub(r"(?m)[─│╭╮╰╯+]|-{3,}|^\||\|$", " ", captured.err).split())
    value, remedy = OPTIONS[line]
    assert value in message
    assert remedy in message


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_gives_one_sentence(name: str) -> None:
    call, said = CALLS[name]
    with pytest.raises(UserError) as refused:
        call()
    _check(str(refused.value), said)


def _check(sentence: str, said: Said) -> None:
    value, remedy = said
    assert value in sentence
    assert remedy in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert sentence == sentence.strip()
