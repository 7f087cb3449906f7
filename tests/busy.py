"""Other work on the machine, and the environment that users have."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

THREADS = ("OMP_", "GOMP_", "MKL_", "KMP_")


@contextmanager
def busy(processes: int = 2) -> Iterator[None]:
    """Keeps so many processes busy while the block runs."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def default_threads(environment: dict[str, str] | None = None) -> dict[str, str]:
    """An environment without the variables by which a gate or a test may have set threads."""
    kept = dict(os.environ) if environment is None else environment
    return {name: value for name, value in kept.items() if not name.startswith(THREADS)}
