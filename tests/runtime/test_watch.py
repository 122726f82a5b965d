"""The control connection: what fails in one pipeline is told in it and, where there are several, around it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from torch import distributed as dist

from penstock.runtime.transport.watch import Watch


@pytest.fixture
def store() -> Iterator[dist.Store]:
    yield dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def watch_in(store: dist.Store, pipeline: str) -> Watch:
    watch = Watch(dist.PrefixStore(pipeline, store), rank=0, num_ranks=1)
    watch.surround(dist.PrefixStore("around", store), name=pipeline)
    return watch


def test_a_watch_may_be_closed_by_its_own_thread(store: dist.Store) -> None:
    """Symptom: "cannot join current thread", and shared memory was not given back. Cause: a pipeline that nobody holds
    any more is closed by the thread that happens to collect it."""
    watch = watch_in(store, "first")
    errors: list[BaseException] = []

    def close() -> None:
        try:
            watch.close()
        except RuntimeError as error:
            errors.append(error)

    watch._thread = threading.Thread(target=close)
    watch._thread.start()
    watch._thread.join()
    assert not errors


def test_the_first_failure_of_several_pipelines_is_known_to_all(store: dist.Store) -> None:
    first, second, alone = watch_in(store, "first"), watch_in(store, "second"), Watch(store, rank=0, num_ranks=1)
    assert first.fail("overflowed") == "rank 0 overflowed"
    for watch in (first, second, alone):
        watch._read_failure()
    assert first.report == "rank 0 overflowed"
    assert second.report == "first: rank 0 overflowed"
    assert alone.report is None
    assert second.diagnose_replica("connection closed") == "first: rank 0 overflowed"
