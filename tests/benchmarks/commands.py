"""`grpo status` and `grpo show` on a run of 100 iterations."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.fast import Part, limit
from tests.benchmarks.overhead import bare
from tests.benchmarks.settings import Settings

ITERATIONS, BAR = 100, 1.5
GRPO = Path(sys.executable).with_name("grpo")
COMMANDS = {"`grpo status`": ["status", "long"], "`grpo show --worst 5`": ["show", "long", "--worst", "5"]}


def measure(settings: Settings) -> Part:
    """Makes the run, and asks."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bare(Path(folder))("long", ITERATIONS)
        for name, words in COMMANDS.items():
            command = [str(GRPO), *words, "--artifacts", folder]
            taken = [seconds(command) for _ in range(settings.runs + 1)][1:]
            rows.append(limit(f"{name} of {ITERATIONS} iterations", statistics.median(taken), BAR))
    return Part(rows, f"medians of {settings.runs} commands after one to warm up.")


def seconds(command: list[str]) -> float:
    """Of a command, its interpreter included."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - begun
