"""One file a family of schedules: sizes -> Schedule; and the registry of their names."""

from penstock.schedules.bpipe import bpipe
from penstock.schedules.breadth_first import breadth_first
from penstock.schedules.chimera import chimera
from penstock.schedules.dualpipe import dualpipe, dualpipe_v
from penstock.schedules.eager_1f1b import eager_1f1b
from penstock.schedules.forward_only import forward_only
from penstock.schedules.gis import gis
from penstock.schedules.gpipe import gpipe
from penstock.schedules.interleaved_1f1b import interleaved_1f1b
from penstock.schedules.naive import naive
from penstock.schedules.offloaded import offloaded
from penstock.schedules.one_f_one_b import one_f_one_b
from penstock.schedules.pipedream import pipedream
from penstock.schedules.pipedream_2bw import pipedream_2bw
from penstock.schedules.pipemare import pipemare
from penstock.schedules.registry import ALIASES, SCHEDULES, Family, Given, Sizes, named_schedule
from penstock.schedules.unbroken import unbroken
from penstock.schedules.v_blocks import v_half, v_min, v_zb
from penstock.schedules.wave import wave
from penstock.schedules.zb_auto import zb_auto
from penstock.schedules.zb_h1 import zb_h1
from penstock.schedules.zb_h2 import zb_h2
from penstock.schedules.zb_v import zb_v
from penstock.schedules.zb_v_greedy import zb_v_greedy

__all__ = [
    "ALIASES",
    "SCHEDULES",
    "Family",
    "Given",
    "Sizes",
    "bpipe",
    "breadth_first",
    "chimera",
    "dualpipe",
    "dualpipe_v",
    "eager_1f1b",
    "forward_only",
    "gis",
    "gpipe",
    "interleaved_1f1b",
    "naive",
    "named_schedule",
    "offloaded",
    "one_f_one_b",
    "pipedream",
    "pipedream_2bw",
    "pipemare",
    "unbroken",
    "v_half",
    "v_min",
    "v_zb",
    "wave",
    "zb_auto",
    "zb_h1",
    "zb_h2",
    "zb_v",
    "zb_v_greedy",
]
