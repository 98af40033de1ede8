"""The pool of processes: in order, as many as the container may use, none left behind, memory flat."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.cpus import usable_cpus
from cloister_trainer.prepare.job import row_options
from cloister_trainer.prepare.row_worker import RowWorker
from cloister_trainer.prepare.select import select
from cloister_trainer.prepare.sources import open_sources
from cloister_trainer.prepare.survey import survey
from cloister_trainer.prepare.workers import Workers
from cloister_trainer.reporter import Reporter
from support.prepared import DataJob, chat


def double(state: int, task: int) -> int:
    return state + 2 * task


def end_abruptly(state: int, task: int) -> int:
    os._exit(9)


def refuse(state: int, task: int) -> int:
    raise CloisterError(FailureReason.DATASET_INVALID, f"task {task}")


def test_answers_come_in_order_and_errors_come_through() -> None:
    with Workers(partial(int, 1), 2) as workers:
        assert list(workers.map(double, range(50))) == [1 + 2 * task for task in range(50)]
        with pytest.raises(CloisterError, match="task 3") as raised:
            list(workers.map(refuse, [3]))
        assert raised.value.reason is FailureReason.DATASET_INVALID
        with pytest.raises(CloisterError, match="was killed") as killed:
            list(workers.map(end_abruptly, [0]))
        assert killed.value.reason is FailureReason.OUT_OF_MEMORY


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")
    assert usable_cpus(quota) == 1
    quota.write_text("max 100000\n")
    assert usable_cpus(quota) == len(os.sched_getaffinity(0))
    quota.write_text("50000 100000\n")
    assert usable_cpus(quota) == 1


MEASURED = """
import sys
import tracemalloc
from pathlib import Path
from cloister_trainer.prepare import shards
from cloister_trainer.prepare.readers import lines
from support.prepared import DataJob

if __name__ == "__main__":
    lines.CHUNK_BYTES = 1 << 18
    shards.SHARD_BYTES = 1 << 20
    DataJob(Path(sys.argv[1]), Path(sys.argv[2])).prepare()
    print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
"""Prints the process's own peak in KiB; getrusage's would be at least that of the process that started it."""


def test_a_row_leaves_its_hashes_and_nothing_else(small_job: DataJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister_trainer.prepare.readers.lines.CHUNK_BYTES", 1 << 15)
    count = 50_000
    small_job.write([{"text": str(number)} for number in range(count)])
    run = small_job.run()
    sources = open_sources(small_job.storage, run.spec.dataset)
    worker = partial(RowWorker, row_options(run.spec, small_job.storage, small_job.tokenizer_folder, 2048))
    with Workers(worker, 1) as workers, Reporter.silent().progress("Reading rows", None) as progress:
        survey(small_job.storage, sources, workers, progress)
        tracemalloc.start()
        try:
            surveyed = survey(small_job.storage, sources, workers, progress)
            left = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            select([one.rows() for one in surveyed], None, run.spec.dataset, 0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert 24 < left / count < 30
    assert peak / count < 95


def test_memory_does_not_grow_with_the_data(tmp_path: Path, small_tokenizer: Path) -> None:
    peaks = []
    for megabytes in (4, 16):
        job = DataJob(tmp_path / str(megabytes), small_tokenizer)
        job.write([chat("Hi", f"{number} " + "Hello " * 1500) for number in range(megabytes * 115)])
        script = job.folder / "measured.py"
        script.write_text(MEASURED)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, str(script), str(job.folder), str(small_tokenizer)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 12
