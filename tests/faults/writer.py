"""Writes to a run when it is told to, in a process of its own: `python -m tests.faults.writer RUNS`.

It takes one command a line on its standard input: `rerun RUN WEIGHT` scores the second iteration again with a weight;
`half RUN WEIGHT` does so up to between the two renames, and the rest when the next line comes; `prune RUN` removes the
first iteration's weights. It answers each with a line.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from flows.config.schema import KeepConfig
from flows.execution.run_stage import perform
from flows.runs.access import held, open_run
from flows.runs.retention import plan, remove


def main() -> None:
    """Does what it is told until its input ends."""
    runs, rename = Path(sys.argv[1]), os.rename
    tell("ready")
    for line in sys.stdin:
        what, run, *weight = line.split()
        paths, config = open_run(runs, run)
        with held(paths, lambda text: None):
            if what == "prune":
                remove(plan(paths, config, KeepConfig(last=1, best=0), 3))
            else:
                os.rename = pausing(rename) if what == "half" else rename
                perform(paths.root, "score", 2, {"score.rewards.1.weight": float(weight[0])})
                os.rename = rename
        tell("done")


def pausing(rename: Callable[..., None]) -> Callable[..., None]:
    """Waits for a line when what was in place has been moved away."""

    def moved(source: Path, target: Path) -> None:
        rename(source, target)
        if "superseded" in str(target):
            tell("half-way")
            sys.stdin.readline()

    return moved


def tell(text: str) -> None:
    """Answers."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
