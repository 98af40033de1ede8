"""A worker pod that is told to go: its ranks save a checkpoint, its Ray ends, and nothing waits for anything else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cloister_api.events import CheckpointSaved, Progress, Restarted
from cloister_operator.render.ray_job import CPU_WORKER_ENVIRONMENT, PRE_STOP, WORKER_ENVIRONMENT
from cloister_trainer.pre_stop import wait_for_checkpoint
from cloister_trainer.storage import open_storage
from cloister_trainer.train.checkpoint import newest_step
from cloister_trainer.train.stepping import stepping_processes
from support.driver_in_pod import driver_in
from support.odd_rank import STEP_S
from support.pods import Pod, RayPods, require_namespaces, wait_until
from support.tiny_run import make_run

ANNOUNCING = """
import signal, sys, pathlib
from cloister_trainer.train.stepping import announce
signal.signal(signal.SIGTERM, signal.SIG_IGN)
announce(pathlib.Path(sys.argv[1]))
print("announced", flush=True)
signal.pause()
"""


def pre_stop(pod: Pod, timeout_s: float) -> str:
    """Run what the kubelet runs, and return what it says."""
    with pod.command(*PRE_STOP) as process:
        try:
            _, said = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            pod.kill()
            raise
    assert process.returncode == 0, said
    return said


def test_ranks_save_the_step_under_way_before_their_pod_ends_and_a_pod_without_ranks_ends_at_once(
    tmp_path: Path,
) -> None:
    require_namespaces()
    tiny = make_run(tmp_path, steps=100, checkpoint={"interval": "1h"})
    environment = {"CLOISTER_SCRATCH": str(tmp_path / "scratch"), STEP_S: "10"}
    with RayPods(tmp_path, {**WORKER_ENVIRONMENT, **CPU_WORKER_ENVIRONMENT, **environment}) as pods:
        with driver_in(pods.head, tiny) as (events, _), pods.worker() as worker:
            step = next(event.step for event in events if isinstance(event, Progress))
            assert newest_step(open_storage(), tiny.run.layout) == 0
            assert "Ranks asked for a checkpoint: 1; all ended within" in pre_stop(worker, 110)
            saved = newest_step(open_storage(), tiny.run.layout)
            assert saved == step + 1
            wait_until(worker.ended, 10, worker.log)
            told = []
            for event in events:
                told.append(event)
                if isinstance(event, Restarted):
                    break
        assert [event.step for event in told if isinstance(event, CheckpointSaved)] == [saved]

        assert "No rank makes steps" in pre_stop(pods.head, 60)
        wait_until(pods.head.ended, 10, pods.head.log)
        assert "No rank makes steps" in pods.head.log()


def test_only_a_process_that_lives_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ANNOUNCING, str(tmp_path / "runs" / "one")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "announced\n"
        assert stepping_processes(tmp_path) == {process.pid}
        process.terminate()
        assert wait_for_checkpoint(tmp_path, {process.pid}, 0.3) == {process.pid}
        process.kill()
        assert wait_for_checkpoint(tmp_path, {process.pid}, 60) == set()
    assert stepping_processes(tmp_path) == set()


def test_nothing_is_ended_outside_a_container(tmp_path: Path) -> None:
    environment = {**os.environ, "CLOISTER_SCRATCH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, *PRE_STOP[1:]], env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert (ran.returncode, "nothing was ended" in ran.stderr) == (0, True)
