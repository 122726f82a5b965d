"""A memory curve is the timeline's, in the unit on the axis, up to the end of the step."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from penstock.costs import StageCosts
from penstock.schedules import one_f_one_b
from penstock.simulator import simulate
from penstock.view.curves import draw_memory


def drawn(num_ranks: int) -> Axes:
    axes = Figure().add_subplot()
    draw_memory(axes, simulate(one_f_one_b(num_ranks, 12), StageCosts(activation_bytes=2 << 20)))
    return axes


def test_curves_peak_at_the_ranks_peaks_in_mebibytes() -> None:
    axes = drawn(4)
    assert [max(line.get_ydata()) for line in axes.lines] == [8, 6, 4, 2]
    assert "MiB" in axes.get_ylabel()


def test_curves_last_to_the_end_of_the_step() -> None:
    assert {line.get_xdata()[-1] for line in drawn(4).lines} == {45}


def test_a_few_ranks_are_all_named_and_of_many_only_some() -> None:
    few, many = drawn(8).get_legend(), drawn(12).get_legend()
    assert few is not None and many is not None
    assert len(few.get_texts()) == 8
    assert [text.get_text() for text in many.get_texts()] == ["rank 0", "rank 6", "rank 11"]
