"""Draws that tests of several packages share."""

from hypothesis import reject
from hypothesis import strategies as st

from penstock import Schedule, named_schedule, pipedream, pipedream_2bw, pipemare
from penstock.errors import ScheduleError


def schedule_or_reject(name: str, num_ranks: int, num_microbatches: int) -> Schedule:
    """Returns the schedule called `name`; rejects the example where it is not defined for these sizes."""
    try:
        return named_schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
    except ScheduleError:
        reject()


@st.composite
def asynchronous(draw: st.DrawFn) -> Schedule:
    """Small schedules that never flush, of every weight rule, with and without replicated stages."""
    num_ranks, factor = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    match draw(st.sampled_from(["stash", "vertical", "2bw", "pipemare", "replicas"])):
        case "stash":
            return pipedream(num_ranks, draw(st.integers(1, 7)))
        case "vertical":
            return pipedream(num_ranks, draw(st.integers(1, 7)), vertical_sync=True)
        case "2bw":
            per_version = num_ranks + draw(st.integers(0, 2))
            return pipedream_2bw(num_ranks, factor * per_version, microbatches_per_version=per_version)
        case "pipemare":
            per_version = draw(st.integers(1, 3))
            return pipemare(num_ranks, factor * per_version, microbatches_per_version=per_version)
    replicas, vertical_sync = draw(st.sampled_from([((2, 1), False), ((2, 1), True), ((1, 2), False), ((2, 2), True)]))
    return pipedream(sum(replicas), 2 * factor, replicas=replicas, vertical_sync=vertical_sync)
