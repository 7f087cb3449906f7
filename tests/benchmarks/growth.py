"""Seconds a token as the work grows: more completions, longer completions; on a small Llama, sampling and update."""

from pathlib import Path

from tests.benchmarks import ours
from tests.benchmarks.fast import Part, Row
from tests.benchmarks.settings import Settings
from tests.benchmarks.side import Side, in_turns, middle
from tests.benchmarks.works import WORKS, make

GROWING = {
    "completions": {1: "completions-1", 4: "completions-4", 16: "completions-16"},
    "lengths": {1: "completions-1", 4: "lengths-4"},
}
BAR = 1.1
"""Seconds a token of the greatest work, of those of the least; a tenth is noise and attention's square."""
Found = dict[str, dict[int, float]]


def measure(settings: Settings) -> Part:
    """A row for each way of growing and each stage."""
    rows: list[Row] = []
    found: Found = {}
    for stage, function in (("sampling", ours.sampling), ("update", ours.update)):
        for what, works in GROWING.items():
            sides = {}
            for times, name in works.items():
                make(WORKS[name])
                sides[str(times)] = Side(function, settings.threads, settings.log(f"growth-{stage}-{name}"), work=name)
            seconds = in_turns(sides, settings.runs, lambda _: None)
            for side in sides.values():
                side.close()
            micro = {
                times: 1e6 * middle(seconds[str(times)]) / (WORKS[name].rows * WORKS[name].tokens)
                for times, name in works.items()
            }
            told = ", ".join(f"{value:.0f}" for value in micro.values())
            ratio = micro[max(micro)] / micro[1]
            name = f"{stage}, {what} {' '.join(f'{n}×' for n in micro)}: µs a token"
            rows.append(Row(name, told, "", ratio, f"≤ {BAR:g}", ratio <= BAR))
            found[f"{stage}, {what}"] = micro
            settings.say(f"{name}: {told}")
    plot(found, settings.pictures / "fast-growth.png", settings.told())
    return Part(rows, f"{settings.told_runs()} after one to warm up, {settings.told()}.")


def plot(found: Found, path: Path, threads: str) -> None:
    """A line for each way of growing."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, micro in found.items():
        axes.plot(list(micro), [value / micro[1] for value in micro.values()], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 4, 16], ["1×", "4×", "16×"])
    axes.set_ylim(0)
    axes.set_ylabel("seconds a token, of those at 1×")
    axes.set_xlabel(f"tokens, {threads}")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
