"""Runs a function over items in worker processes, with a limit of time and memory for each item.

Each worker has a pipe of its own and holds one item at a time, so a death is always the death of a known item. The time
of an item is processor time, counted by the kernel: a busy machine turns no right answer into a timeout, and code that
never returns to the interpreter is ended too.
"""

import multiprocessing
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Generic, TypeVar

from stages.contract.progress import Progress, no_progress
from stages.score.mark import Mark, error, ok, timeout

Argument = TypeVar("Argument")
MEMORY = 4 * 2**30
"""Bytes of address space that a worker may take beyond what it has when it is ready."""
PATIENCE = 10
"""Seconds on the clock for each second of processor time; ends an item that sleeps."""
WARM_UP = 300.0
"""Seconds in which a worker has to be ready."""


def run_limited(
    function: Callable[[Argument], float],
    items: Sequence[Argument],
    seconds: float,
    warm: Callable[[], None],
    progress: Progress = no_progress,
) -> list[Mark]:
    """A mark for each item: the function's value, `timeout` where it took too long, `error` where it raised or died.

    Only the worker of a failed item is ended and replaced; the others go on. No worker is started where there are no
    items, and none is left afterwards.

    Args:
        function: a module-level function, which is sent to the workers by name.
        items: its arguments.
        seconds: processor time that one item may take.
        warm: run once in each worker before its first item, so that imports do not count as an item's time.
        progress: told of items that have their mark.

    Raises:
        RuntimeError: a worker died before it was ready; its traceback is on stderr.
    """
    marks: dict[int, Mark] = {}
    queue = deque(range(len(items)))
    workers = [_Worker(function, warm) for _ in range(min(len(items), len(os.sched_getaffinity(0))))]
    try:
        while len(marks) < len(items):
            soonest = min(worker.deadline for worker in workers)
            readable = wait([worker.pipe for worker in workers], max(0.0, soonest - time.monotonic()))
            for place, worker in enumerate(workers):
                if worker.pipe not in readable and time.monotonic() < worker.deadline:
                    continue
                held, mark = worker.item, worker.collect(seconds)
                if held is not None:
                    marks[held] = mark
                    progress(len(marks), len(items))
                if worker.ended and queue:
                    workers[place] = _Worker(function, warm)
                elif queue:
                    at = queue.popleft()
                    worker.give(at, items[at], seconds)
                else:
                    worker.end()
            workers = [worker for worker in workers if not worker.ended]
    finally:
        for worker in workers:
            worker.end()
    return [marks[i] for i in range(len(items))]


class _Worker(Generic[Argument]):
    """A process, the pipe to it and the number of the item it holds."""

    def __init__(self, function: Callable[[Argument], float], warm: Callable[[], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function, warm), daemon=True)
        self.process.start()
        theirs.close()
        self.item: int | None = None
        self.deadline = time.monotonic() + WARM_UP
        self.ended = False

    def give(self, at: int, item: Argument, seconds: float) -> None:
        self.item, self.deadline = at, time.monotonic() + PATIENCE * seconds
        with suppress(OSError):  # it died while it was idle: the next `collect` says so
            self.pipe.send((item, seconds))

    def collect(self, seconds: float) -> Mark:
        """The mark of the item it holds; a mark without meaning where it holds none and is ready for the first."""
        try:
            if self.pipe.poll():
                mark = self.pipe.recv()
                assert isinstance(mark, Mark)
                return mark
            mark = timeout(seconds)
        except (EOFError, OSError):
            self.process.join(1.0)
            late = self.process.exitcode == -signal.SIGPROF
            mark = timeout(seconds) if late else error(f"the worker died with exit code {self.process.exitcode}")
        self.end()
        if self.item is None:
            raise RuntimeError(f"a worker for rewards was not ready: {mark.message}")
        return mark

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.process.kill()
            self.process.join()
            self.process.close()
            self.pipe.close()


def _serve(pipe: Connection, function: Callable[[Argument], float], warm: Callable[[], None]) -> None:
    """The life of a worker: it says that it is ready, then answers each item with a mark until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    warm()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = taken + MEMORY if most == resource.RLIM_INFINITY else min(most, taken + MEMORY)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pipe.send(ok(0))
    with suppress(EOFError, OSError):
        while True:
            item, seconds = pipe.recv()
            signal.setitimer(signal.ITIMER_PROF, seconds)
            mark = _mark(function, item)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send(mark)


def _mark(function: Callable[[Argument], float], item: Argument) -> Mark:
    try:
        return ok(function(item))
    except Exception as failure:  # whatever a verifier raises is that row's error
        return error(f"{type(failure).__name__}: {failure}")
