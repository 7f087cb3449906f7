"""How fast, beside TRL: `python -m tests.benchmarks`, on an idle machine.

Writes `results/fast.md`, `results/fast.json` and plots. Parts that are not named by --only stay as they were kept.
"""

import argparse
import importlib

from tests.benchmarks import RESULTS, fast
from tests.benchmarks.settings import Settings

PARTS = ["iteration", "update", "sampling", "tax", "startup", "commands", "stored", "growth"]


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each side")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--no-write", action="store_true", help="only print")
    a = parser.parse_args()
    settings = Settings(a.runs, a.threads)
    for name in PARTS:
        if name in a.only:
            part = importlib.import_module(f"tests.benchmarks.{name}").measure(settings)
            print(fast.table({name: part}, PARTS), part.told, sep="\n\n", flush=True)
            if not a.no_write:
                parts = fast.keep(RESULTS, name, part)
                pictures = sorted(RESULTS.glob("fast-*.png"))
                (RESULTS / "fast.md").write_text(fast.page(parts, PARTS, pictures), encoding="utf-8")


if __name__ == "__main__":
    main()
