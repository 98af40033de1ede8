"""Buckets of an object store that has just been started."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from cloister_trainer.reporter import Reporter
from cloister_trainer.storage.s3_errors import error_code

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

PATIENCE_S = 900.0
INTERVAL_S = 5.0


def ensure_buckets(
    client: S3Client,
    names: Sequence[str],
    reporter: Reporter,
    *,
    patience_s: float = PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Make the buckets that are missing, and wait for a store that does not answer yet. False: it never did."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            found = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for name in names:
                if name not in found:
                    client.create_bucket(Bucket=name)
                reporter.say(f"s3://{name} {'is there' if name in found else 'was made'}")
            return True
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() >= deadline:
                what = error_code(error) if isinstance(error, ClientError) else type(error).__name__
                reporter.say(f"The object store at {client.meta.endpoint_url} did not make the buckets: {what}.")
                return False
            sleep(INTERVAL_S)
