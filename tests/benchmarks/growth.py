"""Seconds a token as the work grows: more completions, longer completions; on a small Llama, sampling and update."""

from collections.abc import Callable
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
"""How seconds a token may grow; a tenth is noise."""
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
            tokens = {times: WORKS[name].rows * WORKS[name].tokens for times, name in works.items()}
            micro = {times: 1e6 * middle(seconds[str(times)]) / tokens[times] for times in works}
            name = f"{stage}, {what} {' '.join(f'{n}×' for n in micro)}"
            if what == "lengths":
                aside = {n: micro[n] - 1e6 * attended(settings, function, works[n]) / tokens[n] for n in works}
                rows.append(bounded(f"{name}, attention aside: µs a token", aside))
                rows.append(Row("… with attention", told(micro), "", growth(micro)))
            else:
                rows.append(bounded(f"{name}: µs a token", micro))
            found[f"{stage}, {what}"] = micro
            settings.say(f"{name}: {told(micro)}")
    plot(found, settings.pictures / "fast-growth.png", settings.told())
    return Part(rows, f"{settings.told_runs()} after one to warm up, {settings.told()}.")


def attended(settings: Settings, function: Callable[..., None], name: str) -> float:
    """Seconds that a run spends in attention, whose work grows with the square of a completion's length."""
    log = settings.log(f"growth-attention-{name}")
    with Side(function, settings.threads, log, work=name, profiled=True) as side:
        return float([side.run()["attention"] for _ in range(2)][-1])


def bounded(name: str, micro: dict[int, float]) -> Row:
    """A row with the bar."""
    ratio = growth(micro)
    return Row(name, told(micro), "", ratio, f"≤ {BAR:g}", ratio <= BAR)


def growth(micro: dict[int, float]) -> float:
    """Seconds a token of the greatest work, of those of the least."""
    return micro[max(micro)] / micro[1]


def told(micro: dict[int, float]) -> str:
    """Microseconds a token, from the least work to the greatest."""
    return ", ".join(f"{value:.0f}" for value in micro.values())


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
