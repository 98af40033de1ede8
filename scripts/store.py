"""The quickstart's store, started again on its data until Ctrl-C: `make store`. Prints what to set in another shell."""

from __future__ import annotations

import signal
import sys
import threading

from quickstart import BUCKETS, STORE
from support.seaweedfs import SeaweedFS


def main() -> int:
    """Serve until SIGINT or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with SeaweedFS(STORE, volume_size_mb=512) as store:
        existing = {bucket["Name"] for bucket in store.client().list_buckets()["Buckets"]}
        for bucket in sorted(set(BUCKETS) - existing):
            store.create_bucket(bucket)
        for name, value in store.environment().items():
            print(f"export {name}={value}")
        print(
            "Paste these lines into another shell. Ctrl-C stops the store; its data stay.", file=sys.stderr, flush=True
        )
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
