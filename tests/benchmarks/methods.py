"""All methods from one starting policy: `python -m tests.benchmarks.methods`.

Tunes the quickstart's starting policy once, trains every `configs/quickstart*.yaml` from it with each seed, and writes
held-out success against completions sampled as a table and a plot. What was done already is not done again.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.config.loading import read_config
from flows.config.schema import RunConfig
from flows.config.stages import place_of
from flows.execution.run_stage import perform
from flows.runs.access import writing
from flows.runs.history import History
from flows.runs.staleness import stages_of, state_of
from stages.contract.paths import RunPaths
from tests.benchmarks import RESULTS, circumstances, markdown

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = "quickstart"
LEVEL = 0.8
"""The table says after how many completions this success was reached."""


@dataclass(frozen=True)
class Curve:
    """One training."""

    seed: int
    completions: list[int]
    """Sampled up to each evaluation."""
    success: list[float]
    """On held-out prompts."""
    seconds: float
    """Of its stages, all together."""


def train(paths: RunPaths, config: RunConfig, iterations: int, last_stage: str | None = None) -> None:
    """Makes what is not current of a run, stage by stage in this process; up to one of iteration 0 if it is named."""
    with writing(paths, config, print):
        for k in range(iterations + 1):
            for stage in stages_of(History(paths), config, k):
                if state_of(History(paths), config, k, stage).status != "current":
                    perform(paths.root, stage, k, {})
                if stage == last_stage:
                    return


def curve(paths: RunPaths, config: RunConfig, iterations: int) -> Curve:
    """What the manifests of a run say."""
    history = History(paths)
    completions, success, drawn, seconds = [], [], 0, 0.0
    for k in range(iterations + 1):
        manifests = {stage: history.manifest(k, place_of(stage)) for stage in stages_of(history, config, k)}
        seconds += sum(manifest.seconds for manifest in manifests.values() if manifest)
        sampled, evaluated = manifests.get("sample"), manifests.get("evaluate")
        drawn += int(sampled.metrics["completions"] or 0) if sampled else 0
        if evaluated:
            completions.append(drawn)
            success.append(float(evaluated.metrics["heldout_success"] or 0))
    return Curve(config.seed, completions, success, seconds)


def table(curves: dict[str, list[Curve]]) -> str:
    """A row a method: success at the start, a quarter, half, and over the last tenth; completions to the level."""
    rows = []
    for name, runs in curves.items():
        ends = [mean(run.success[-max(1, len(run.success) // 10) :]) for run in runs]
        reached = [first for run in runs if (first := reaches(run)) is not None]
        after = f"{mean(reached):,.0f}" if len(reached) == len(runs) else f"{len(reached)} of {len(runs)} seeds did"
        parts = [mean([run.success[int(part * (len(run.success) - 1))] for run in runs]) for part in (0, 0.25, 0.5)]
        spread = f" ({min(ends):.3f} to {max(ends):.3f})" if len(ends) > 1 else ""
        cells = [f"{part:.3f}" for part in parts]
        rows.append([name, *cells, f"{mean(ends):.3f}{spread}", after, f"{mean([run.seconds for run in runs]):.0f}"])
    header = ["method", "start", "quarter", "half", "last tenth", f"completions to {LEVEL}", "seconds"]
    return markdown(header, rows)


def reaches(run: Curve) -> int | None:
    """Completions after which the success was at the level."""
    return next((n for n, value in zip(run.completions, run.success, strict=True) if value >= LEVEL), None)


def mean(values: list[float] | list[int]) -> float:
    """The mean."""
    return math.fsum(values) / len(values)


def plot(curves: dict[str, list[Curve]], path: Path) -> None:
    """A line a method: the mean over seeds, with the range of the seeds as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for name, runs in curves.items():
        columns = list(zip(*(run.success for run in runs), strict=True))
        thousands = [mean(list(column)) / 1000 for column in zip(*(run.completions for run in runs), strict=True)]
        (line,) = axes.plot(thousands, [mean(list(column)) for column in columns], label=name, linewidth=1.4)
        if len(runs) > 1:
            low, high = [min(column) for column in columns], [max(column) for column in columns]
            axes.fill_between(thousands, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set_xlabel("completions sampled, thousands")
    axes.set_ylabel("held-out success, sampled at temperature 1")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains, reads, and writes `results/methods.md` and `results/methods.png`."""
    known = sorted(path.stem for path in CONFIGS.glob(f"{QUICKSTART}*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=known, choices=known, help="configurations to train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--iterations", type=int, help="fewer or more than the configurations say")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts") / "methods", help="folder of the runs")
    parser.add_argument("--start", type=Path, help="a starting policy that is there already")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, help="threads of torch")
    arguments = parser.parse_args()
    machine: dict[str, Any] = {"hardware.threads": arguments.threads} if arguments.threads else {}
    start = arguments.start
    if start is None:
        config = read_config(CONFIGS / f"{QUICKSTART}.yaml", machine | {"run": "start"})
        paths = RunPaths.named(arguments.artifacts, config.run)
        train(paths, config, 0, last_stage="warmstart")
        start = paths.policy(0)
    curves: dict[str, list[Curve]] = {}
    for seed in arguments.seeds:
        for name in arguments.methods:
            own = {"run": f"{name}.{seed}", "seed": seed}
            from_start = {"warmstart.model": {"type": "folder", "path": str(start)}, "warmstart.tuning": None}
            config = read_config(CONFIGS / f"{name}.yaml", own | from_start | machine)
            paths = RunPaths.named(arguments.artifacts, config.run)
            iterations = arguments.iterations or config.iterations
            before = time.perf_counter()
            train(paths, config, iterations)
            curves.setdefault(name, []).append(curve(paths, config, iterations))
            done = curves[name][-1]
            print(f"{config.run}: {done.success[0]:.3f} to {done.success[-1]:.3f}", end=", ", flush=True)
            print(f"{done.completions[-1]:,} completions, {time.perf_counter() - before:.0f} s", flush=True)
    names = {name: name.removeprefix(f"{QUICKSTART}-").replace(QUICKSTART, "grpo") for name in curves}
    named = {names[name]: runs for name, runs in curves.items()}
    text = (
        f"# Held-out success of each method on the quickstart's task\n\n{table(named)}\n\n"
        f"One starting policy; means over the seeds {', '.join(map(str, arguments.seeds))}, in brackets their range.\n"
        "Success is that of held-out prompts, sampled at temperature 1.\n\n"
        f"![curves](methods.png)\n\n{circumstances()}\n"
    )
    print(text)
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "methods.md").write_text(text, encoding="utf-8")
    plot(named, arguments.results / "methods.png")


if __name__ == "__main__":
    main()
