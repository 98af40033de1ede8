"""The quickstart's store, started again on its data until Ctrl-C: `make store`. Prints what to set in another shell."""

from __future__ import annotations

import signal
import sys
import threading

from quickstart import FOLDER, Places, make_buckets, open_store


def main() -> int:
    """Serve until SIGINT or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with open_store(Places(FOLDER)) as store:
        make_buckets(store)
        for name, value in store.environment().items():
            print(f"export {name}={value}")
        print(
            "Paste these lines into another shell. Ctrl-C stops the store and keeps its data.",
            file=sys.stderr,
            flush=True,
        )
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
