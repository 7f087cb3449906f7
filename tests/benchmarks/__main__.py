"""How fast, beside TRL: `python -m tests.benchmarks`, on an idle machine.

Writes `results/fast.md`, `results/fast.json`, plots, and the table in README.md; parts that --only does not name, and
other numbers of threads, stay as they were kept. On two cores it takes some three quarters of an hour with `--threads
2`, two hours with both numbers.
"""

import argparse
import importlib
from pathlib import Path

from tests.benchmarks import RESULTS, fast
from tests.benchmarks.settings import Settings
from tests.benchmarks.works import CACHE

README = Path(__file__).parents[2] / "README.md"
PARTS = {
    "iteration": "iteration:measure",
    "update": "update:measure",
    "long": "update:measure_long",
    "wide": "update:measure_wide",
    "deterministic": "update:measure_deterministic",
    "sampling": "sampling:measure",
    "tax": "tax:measure",
    "startup": "startup:measure",
    "commands": "commands:measure",
    "stored": "stored:measure",
    "growth": "growth:measure",
}
"""What is measured, and where; in the table's order."""
BY_THREADS = ("iteration", "update", "sampling")
"""What is measured with each number of threads; the others with the greatest."""


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each side")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--no-write", action="store_true", help="only print")
    a = parser.parse_args()
    for name in filter(a.only.__contains__, PARTS):
        for threads in sorted(a.threads, reverse=True)[: None if name in BY_THREADS else 1]:
            settings = Settings(a.runs, threads, CACHE if a.no_write else RESULTS)
            module, function = PARTS[name].split(":")
            part = getattr(importlib.import_module(f"tests.benchmarks.{module}"), function)(settings)
            print(fast.table({name: part}), part.told, sep="\n\n", flush=True)
            if not a.no_write:
                key = f"{name}, {settings.told()}" if name in BY_THREADS else name
                parts = fast.keep(RESULTS, key, part, list(PARTS))
                pictures = sorted(RESULTS.glob("fast-*.png"))
                fast.put_into(README, fast.table(parts, bars=True))
                (RESULTS / "fast.md").write_text(fast.page(parts, pictures), encoding="utf-8")


if __name__ == "__main__":
    main()
