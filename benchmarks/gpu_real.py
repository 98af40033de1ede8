"""SmolLM2-135M on 2,000 rows on one GPU: a run that is killed twice beside an undisturbed one, both deterministic.

    python -m benchmarks.gpu_real [--rows 2000] [--held-out 200] [--folder .build/gpu-real]

The rows, the job and the places of the kills are those of `make bench-real`, with one GPU in place of two CPU workers.
Ray takes no part: a rank of the code that trains runs in a process of its own, gets SIGKILL at two steps, and the next
one goes on from the newest checkpoint. Prints both runs' figures and whether the adapters are equal, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import ROOT, smollm2
from benchmarks.real_run import kill_steps, make_files, make_spec
from cloister_api.events import Progress
from cloister_api.job import FineTuneJobSpec
from cloister_api.run import Run, RunSettings
from cloister_trainer.prepare.main import prepare
from cloister_trainer.records import PlanFile
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train.messages import Ended
from cloister_trainer.workspace import Workspace
from support.tiny_ranks import run_ranks
from support.tiny_run import UID, TinyRun


def main(arguments: Sequence[str] | None = None) -> int:
    """Both runs; exit code 1 when their adapters differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="rows to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=200, help="rows to measure (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".build" / "gpu-real", help="where everything lies")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No GPU here: nothing is measured.")
        return 0
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in make_files(options.rows, options.held_out).items():
        (folder / name).write_text(content)
    killed = run(folder, "killed", options.held_out, kill_steps(options.rows))
    undisturbed = run(folder, "undisturbed", 0, [])
    same = killed.adapter() == undisturbed.adapter()
    print(f"adapters {'equal, bit by bit' if same else 'DIFFER'}")
    return 0 if same else 1


def run(folder: Path, name: str, samples: int, kills: Sequence[int]) -> TinyRun:
    """Prepare and train, killed at `kills`; prints what the run says of itself."""
    job = make_run(folder, folder / name, samples)
    plan = prepare(job, open_storage(environ={}), Reporter.silent(), Workspace(folder / name / "scratch"), None)
    assert isinstance(plan, PlanFile)
    ranked = TinyRun(folder / name, job, plan)
    began, first_steps = time.monotonic(), []
    for attempt, kill_at in enumerate((*kills, None), start=1):
        seen: list[int] = []

        def watch(message: Any, act: Any, kill_at: int | None = kill_at, seen: list[int] = seen) -> None:
            if isinstance(message, Progress):
                seen.append(message.step)
                if message.step == kill_at:
                    act("kill")

        ranks = run_ranks(ranked, 1, watch, attempt=attempt, device="cuda")
        ended = ranks.ends.get(0)
        if ended != (None if kill_at else Ended("finished", plan.plan.total_steps)):
            sys.exit(f"Start {attempt} of the run {name} ended with: {ended}")
        first_steps.append(seen[0])
    told(name, ranked, first_steps, time.monotonic() - began)
    return ranked


def told(name: str, ranked: TinyRun, first_steps: list[int], seconds: float) -> None:
    """Print the figures."""
    checks, rows = ranked.checks(), ranked.metrics()
    curve = {row["step"]: round(row["loss"], 4) for row in rows if row["step"] in {1, len(rows) // 2, len(rows)}}
    speed = sorted(row["tokensPerSecond"] for row in rows)[len(rows) // 2]
    figures = {
        "steps": len(rows),
        "first step of each start": first_steps,
        "seconds": round(seconds),
        "tokens/s, median": round(speed),
        "loss by step": curve,
        "validation loss of the base": checks["baseLoss"],
        "validation loss": checks["loss"],
        "exact match": checks["exactMatch"],
        "measured memory": checks["measuredMemory"],
    }
    print(name, json.dumps(figures), flush=True)


def make_run(inputs: Path, root: Path, samples: int) -> Run:
    """The job of `make bench-real` on one GPU."""
    spec = make_spec(smollm2().as_uri(), inputs.as_uri(), (root / "out").as_uri(), samples)
    spec["training"]["deterministic"] = True
    spec["distribution"] = {"workers": 1, "gpusPerWorker": 1, "gpuMemory": "80Gi", "zeroStage": 2}
    spec["checkpoint"] = {"interval": "1s"}
    settings = RunSettings(require_enforced_egress=False)
    return Run(uid=UID, namespace="local", name=root.name, spec=FineTuneJobSpec.model_validate(spec), settings=settings)


if __name__ == "__main__":
    sys.exit(main())
