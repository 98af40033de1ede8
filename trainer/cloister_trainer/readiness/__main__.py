"""`python -m cloister_trainer.readiness {buckets,inputs}`: steps of the chart that use the object store."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloister_api.errors import CloisterError
from cloister_api.exit_codes import ExitCode
from cloister_api.run import StorageDefaults
from cloister_api.termination import Outcome, TerminationMessage
from cloister_trainer.__main__ import failure_message, write_termination_message
from cloister_trainer.readiness.buckets import ensure_buckets
from cloister_trainer.readiness.tiny import rows, write_model
from cloister_trainer.reporter import Reporter, quiet_libraries
from cloister_trainer.storage import Storage, open_storage
from cloister_trainer.storage.s3_client import make_client

CA_ENVIRONMENT = "CLOISTER_READINESS_CA"
"""Certificates (PEM) of the authority of the object store, as the administrator's settings have them."""


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Do one step and return its exit code; `inputs` leaves a termination message."""
    parser = argparse.ArgumentParser(prog="python -m cloister_trainer.readiness", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    buckets = steps.add_parser("buckets", help="make buckets where they are missing")
    buckets.add_argument("names", nargs="+", metavar="NAME")
    inputs = steps.add_parser("inputs", help="check the store, and write a tiny model and rows to it")
    inputs.add_argument("uri", help="where, for example s3://cloister-runs/readiness")
    inputs.add_argument("--storage", default="{}", metavar="JSON", help="the administrator's endpoint, region, …")
    options = parser.parse_args(arguments)
    reporter = Reporter()
    quiet_libraries()
    if options.step == "buckets":
        made = ensure_buckets(make_client(StorageDefaults(), environ), options.names, reporter)
        return ExitCode.DONE if made else ExitCode.RETRYABLE
    with tempfile.TemporaryDirectory(prefix="cloister-readiness-") as name:
        message = _inputs(options.uri, StorageDefaults.model_validate_json(options.storage), Path(name), environ)
    reporter.say(message.message or f"{options.uri} holds the model and the rows.")
    write_termination_message(message, environ)
    return ExitCode.DONE if message.outcome is Outcome.SUCCEEDED else ExitCode.FAILED


def _inputs(uri: str, defaults: StorageDefaults, folder: Path, environ: Mapping[str, str]) -> TerminationMessage:
    if certificates := environ.get(CA_ENVIRONMENT):
        (folder / "ca.crt").write_text(certificates)
        defaults = defaults.model_copy(update={"ca_file": str(folder / "ca.crt")})
    try:
        write_inputs(open_storage(defaults, environ), uri, folder / "model")
    except CloisterError as error:
        return failure_message(error)
    return TerminationMessage(outcome=Outcome.SUCCEEDED)


def write_inputs(storage: Storage, uri: str, folder: Path) -> None:
    """Check that the store keeps conditions of writes, then write `uri`/model and `uri`/rows.jsonl.

    Raises CloisterError with the store's own reasons, StorageUnsupported among them.
    """
    storage.check_conditional_put(uri)
    write_model(folder)
    for path in sorted(folder.iterdir()):
        storage.upload(path, f"{uri}/model/{path.name}")
    storage.write(f"{uri}/rows.jsonl", rows())


if __name__ == "__main__":
    sys.exit(main())
