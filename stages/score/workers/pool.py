"""Runs a function over items in worker processes, with a limit of time and memory for each item.

Each worker has a pipe of its own and holds one item at a time, so a death is always the death of a known item. The time
of an item is processor time, counted by the kernel: a busy machine turns no right answer into a timeout, and code that
never returns to the interpreter is ended too.
"""

import atexit
import os
import random
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Generic, TypeVar

from stages.contract.progress import Progress, no_progress
from stages.score.verdict import Mark, error, ok, timeout
from stages.score.workers.fork_server import Nursery

Argument = TypeVar("Argument")
MEMORY = 2 * 2**30
"""Bytes of address space that a worker may take beyond what it has when it is ready."""
PATIENCE = 10
"""Seconds on the clock for each second of processor time; ends an item that sleeps."""
READY = 60.0
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
    items, and none is left afterwards; what stays is the process that forks them (`Nursery`), one for each function.

    Args:
        function: a module-level function, which is sent to the workers by name.
        items: its arguments.
        seconds: processor time that one item may take.
        warm: does the imports, once in this process's life, so that they do not count as an item's time.
        progress: told of items that have their mark.

    Raises:
        RuntimeError: the imports failed; their traceback is on stderr.
    """
    marks: dict[int, Mark] = {}
    queue = deque(range(len(items)))
    if not items:
        return []
    nursery = _nursery(function, warm)
    workers: list[_Worker[Argument]] = []
    try:
        while len(workers) < min(len(items), len(os.sched_getaffinity(0))):
            workers.append(_Worker(nursery))
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
                    workers[place] = _Worker(nursery)
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

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._process, self.pipe = nursery.fork()
        self.item: int | None = None
        self.deadline = time.monotonic() + READY
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
            self.end()
        except (EOFError, OSError):
            code = self.end()
            mark = timeout(seconds) if code == -signal.SIGPROF else error(f"the worker died with exit code {code}")
        if self.item is None:
            raise RuntimeError(f"a worker for rewards was not ready: {mark.message}")
        return mark

    def end(self) -> int | None:
        """Its exit code; None where it was ended before."""
        if self.ended:
            return None
        self.ended = True
        self.pipe.close()
        return self._nursery.end(self._process)


_nurseries: dict[tuple[Callable[..., float], Callable[[], None]], Nursery] = {}


def _nursery(function: Callable[[Argument], float], warm: Callable[[], None]) -> Nursery:
    """The nursery of this process for workers of this kind, which stays."""
    key = (function, warm)
    if key in _nurseries and not _nurseries[key].alive:
        _nurseries.pop(key).close()
    if key not in _nurseries:
        _nurseries[key] = Nursery(warm, partial(_serve, function))
    return _nurseries[key]


def nurseries() -> list[int]:
    """The process ids of what stays between calls."""
    return [nursery.pid for nursery in _nurseries.values()]


def close() -> None:
    """Ends what stays between calls; the next one starts it anew."""
    while _nurseries:
        _nurseries.popitem()[1].close()


atexit.register(close)


def _serve(function: Callable[[Argument], float], pipe: Connection) -> None:
    """The life of a worker: it says that it is ready, then answers each item with a mark until the pipe ends."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = taken + MEMORY if most == resource.RLIM_INFINITY else min(most, taken + MEMORY)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send(ok(0))
    with suppress(EOFError, OSError):
        while True:
            item, seconds = pipe.recv()
            signal.setitimer(signal.ITIMER_PROF, seconds)
            mark = _mark(function, item)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send(mark)


def _mark(function: Callable[[Argument], float], item: Argument) -> Mark:
    """The mark of an item. Its random numbers do not depend on the items before it, nor on the worker that has it."""
    random.seed(0)
    if sympy := sys.modules.get("sympy.core.random"):  # simplification tests expressions at random numbers
        sympy.seed(0)
    try:
        return ok(function(item))
    except Exception as failure:  # whatever a verifier raises is that row's error
        return error(f"{type(failure).__name__}: {failure}")
