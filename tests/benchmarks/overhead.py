"""What flows, tasks and artifacts add to the stages: `python -m tests.benchmarks.overhead`, on an idle machine.

Trains the small configuration of the tests with the embedded server, in one process, in interleaved parts: as users do,
without publishing, and by calling the stages one after the other without Prefect. The overhead is the seconds of an
iteration less those that the manifests of its stages say. It takes less than three minutes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

from rich.console import Console

from flows.config.loading import read_config
from flows.config.schema import RunConfig
from flows.execution.run_stage import perform
from flows.inspection.metrics import seconds
from flows.inspection.terminal import Display
from flows.runs import observers
from flows.runs.access import writing
from flows.runs.history import History
from flows.runs.staleness import stages_of, state_of
from flows.serving.prefect_server import prefect_server
from stages.contract.paths import RunPaths
from tests.benchmarks import RESULTS, circumstances, markdown

SMALL = Path(__file__).parents[1] / "data" / "small.yaml"
LIMIT = 0.4
"""Seconds an iteration that the overhead may be."""
Train = Callable[[str, int], None]


class Clock:
    """A watcher that notes when iterations are done."""

    def __init__(self) -> None:
        self.done: dict[int, float] = {}

    def working(self, stage: str, k: int, done: int, total: int) -> None:
        pass

    def stage_done(self, paths: RunPaths, stage: str, k: int, told: str) -> None:
        pass

    def iteration_done(self, paths: RunPaths, k: int) -> None:
        self.done[k] = time.perf_counter()

    def say(self, text: str) -> None:
        print(text)


def bare(artifacts: Path) -> Train:
    """Calls the stages one after the other; what is current is found as the flow finds it."""

    def train(run: str, iterations: int) -> None:
        config = read_config(SMALL, {"run": run})
        paths = RunPaths.named(artifacts, run)
        with writing(paths, config, print):
            for k in range(iterations + 1):
                for stage in stages_of(History(paths), config, k):
                    if state_of(History(paths), config, k, stage).status != "current":
                        perform(paths.root, stage, k, {})
                observers.iteration_done(paths, k)

    return train


def flow(artifacts: Path, published: bool, config: Path = SMALL) -> Train:
    """The flow `train`."""

    def train(run: str, iterations: int) -> None:
        import flows.train

        publishing = nullcontext() if published else patch("flows.train.published", lambda *_: nullcontext())
        with Display(Console(quiet=True), iterations) as display, observers.watching(display), publishing:
            flows.train.train(str(config), run, iterations, None, str(artifacts))

    return train


@contextmanager
def clocked() -> Iterator[Clock]:
    clock = Clock()
    with observers.watching(clock):
        yield clock


def measure(train: Train, artifacts: Path, run: str, start: int, iterations: int) -> list[tuple[float, float]]:
    """(seconds, those of its stages) of each iteration after `start` + 1, in which the engine and the model warm up."""
    with clocked() as clock:
        train(run, start + iterations + 1)
    config = read_config(SMALL, {"run": run})
    return [
        (clock.done[k] - clock.done[j], stage_seconds(artifacts, config, k))
        for j, k in pairwise(sorted(clock.done)[-iterations - 1 :])
    ]


def stage_seconds(artifacts: Path, config: RunConfig, k: int) -> float:
    """What the manifests of an iteration say."""
    return sum(seconds(History(RunPaths.named(artifacts, config.run)), config, k).values())


def table(found: dict[str, list[tuple[float, float]]]) -> str:
    """A row a way of training: medians, and the mean of the overhead, in which pages drawn now and then count."""
    rows = []
    for name, iterations in found.items():
        overheads = [whole - stages for whole, stages in iterations]
        figures = [
            statistics.median(whole for whole, _ in iterations),
            statistics.median(stages for _, stages in iterations),
            statistics.median(overheads),
            statistics.fmean(overheads),
            statistics.quantiles(overheads, n=10, method="inclusive")[-1],
        ]
        rows.append([name, str(len(iterations)), *(f"{figure:.3f}" for figure in figures)])
    header = ["", "iterations", "seconds", "of its stages", "overhead", "its mean", "its 90th percentile"]
    return markdown(header, rows)


def main() -> None:
    """Measures, prints, and writes `results/overhead.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=15, help="of each part")
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        artifacts = Path(folder)
        with prefect_server(artifacts) as wait_for_server:
            wait_for_server()
            ways = {
                "as users do": flow(artifacts, published=True),
                "without publishing": flow(artifacts, published=False),
                "stages alone": bare(artifacts),
            }
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for part in range(a.parts):
                for number, (name, train) in enumerate(ways.items()):
                    start = part * (a.iterations + 1)
                    found[name] += measure(train, artifacts, f"way-{number}", start, a.iterations)
                    print(f"{name}: part {part + 1} of {a.parts}", flush=True)
    mean = statistics.fmean(whole - stages for whole, stages in found["as users do"])
    text = (
        f"# What flows, tasks and artifacts add to an iteration\n\n{table(found)}\n\n"
        f"Seconds; medians where nothing else is said. The overhead, on the average {mean:.3f} s, is to be at most "
        f"{LIMIT} s: {'it is' if mean <= LIMIT else 'it is not'}.\n"
        "The embedded server runs in a process of its own on the same machine.\n\n"
        f"{circumstances()}\n"
    )
    print(text)
    a.results.mkdir(parents=True, exist_ok=True)
    (a.results / "overhead.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
