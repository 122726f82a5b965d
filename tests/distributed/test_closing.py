"""A closed pipeline leaves nothing behind."""

from pathlib import Path

from tests.distributed.jobs import Job, run_jobs


def test_threads_and_files_do_not_grow_with_closed_pipelines(tmp_path: Path) -> None:
    """Symptom: three threads and their connections more for each pipeline of a process, closed or not.

    Cause: its process groups lived as long as torch.distributed's own.
    """
    jobs = {way: Job("closing.py", (way,), 2) for way in ("memory", "gloo")}
    for rank in (rank for ranks in run_jobs(tmp_path, jobs).values() for rank in ranks):
        assert rank.code == 0, rank.errors
        *rounds, last = rank.lines
        assert [line["total"] for line in rounds] == [2.0] * 6, "the user's own groups stay"
        assert all(line["finite"] for line in rounds)
        for what in ("threads", "files"):
            counts = [line[what] for line in rounds]
            assert max(counts[3:]) <= max(counts[:3]), (what, counts)
        assert last["error"].startswith("this pipeline is closed; make another")
