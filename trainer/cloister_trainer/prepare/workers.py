"""A pool of processes that answers in order, with a bounded number of questions under way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Generic, TypeVar

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason

State = TypeVar("State")
Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_PER_PROCESS = 3

_state: Any = None


class Workers(Generic[State]):
    """Processes that each make one `State` and then answer tasks with it; with one process, this process itself.

    `make_state` and all functions and tasks must be picklable: processes are spawned, never forked.
    """

    def __init__(self, make_state: Callable[[], State], processes: int) -> None:
        self._make_state, self._processes = make_state, processes
        self._pool: ProcessPoolExecutor | None = None
        self._own: State | None = None

    def __enter__(self) -> Workers[State]:
        if self._processes > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._processes, context, _start, (self._make_state, os.getpid()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[State, Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Answers in the tasks' order; tasks are taken only as fast as they are answered.

        Raises what `function` raises; CloisterError OutOfMemory when a process was killed.
        """
        if self._pool is None:
            if self._own is None:
                self._own = self._make_state()
            for task in tasks:
                yield function(self._own, task)
            return
        under_way: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                under_way.append(self._pool.submit(_answer, function, task))
                if len(under_way) >= self._processes * TASKS_PER_PROCESS:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            raise CloisterError(
                FailureReason.OUT_OF_MEMORY,
                "A process that reads and tokenises rows was killed, most likely for lack of memory. Give prepare more "
                "memory (pods.prepare.resources) or fewer CPUs.",
            ) from error


def _start(make_state: Callable[[], Any], parent: int) -> None:
    """Once in each process: the terminal's interrupt is the parent's business, and no process outlives it."""
    global _state  # noqa: PLW0603 (a pool hands its workers nothing else)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _state = make_state()


def _end_with(parent: int) -> None:
    process = multiprocessing.parent_process()
    if process is not None and process.pid == parent:
        process.join()
        os._exit(1)


def _answer(function: Callable[[Any, Task], Result], task: Task) -> Result:
    return function(_state, task)
