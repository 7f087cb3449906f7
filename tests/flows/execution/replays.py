"""Replays each stage of a run again and again in one process, and prints what was not equal, as JSON.

`python -m tests.flows.execution.replays ARTIFACTS RUN --times 5`: all stages of iterations 0 and 1.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from flows.execution.replay import replay
from flows.runs.access import open_run


def main() -> None:
    """Replays, and counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("run")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    paths, config = open_run(options.artifacts, options.run)
    equal: dict[str, int] = {}
    differing: list[Any] = []
    for _ in range(options.times):
        for result in [*replay(paths, config, 0, None, {}), *replay(paths, config, 1, None, {})]:
            name = f"{result['stage']} {result['iteration']}"
            equal[name] = equal.get(name, 0) + result["equal"]
            differing += [] if result["equal"] else [result]
    print(json.dumps({"equal": equal, "differing": differing}))


if __name__ == "__main__":
    main()
