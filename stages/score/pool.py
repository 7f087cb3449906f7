"""Runs a function over items in worker processes, with a limit of time and memory for each item."""

import multiprocessing
import os
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from stages.score.mark import Mark, error, ok, timeout

Argument = TypeVar("Argument")
MEMORY = 4 * 2**30
"""Bytes of address space of a worker."""


def run_limited(
    function: Callable[[Argument], float], items: Sequence[Argument], seconds: float, warm: Callable[[], None]
) -> list[Mark]:
    """A mark for each item: the function's value, `timeout` where it took too long, `error` where it raised or died.

    Only the worker of a failed item is ended; the others go on. No worker is started where there are no items.

    Args:
        function: a module-level function, which is sent to the workers by name.
        items: its arguments.
        seconds: wall time that one item may take.
        warm: run once in each worker before its first item, so that imports do not count as an item's time.
    """
    if not items:
        return []
    from pebble import ProcessExpired, ProcessPool

    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=os.cpu_count() or 1, initializer=_prepare, initargs=(warm,), context=context) as pool:
        futures = [pool.schedule(function, args=(item,), timeout=seconds) for item in items]
        marks = []
        for future in futures:
            try:
                marks.append(ok(future.result()))
            except (FutureTimeout, TimeoutError):
                marks.append(timeout(seconds))
            except ProcessExpired as failure:
                marks.append(error(f"the worker died with exit code {failure.exitcode}"))
            except Exception as failure:  # whatever a verifier raises is that row's error
                marks.append(error(f"{type(failure).__name__}: {failure}"))
    return marks


def _prepare(warm: Callable[[], None]) -> None:
    warm()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
