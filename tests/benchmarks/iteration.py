"""A whole iteration of work B, sample to written policy with all artifacts, beside a step of TRL's trainer."""

import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks import ours, trl
from tests.benchmarks.fast import Part, Row, at_most
from tests.benchmarks.overhead import clocked, flow
from tests.benchmarks.settings import Settings
from tests.benchmarks.side import Figures, Side, Turns, counted
from tests.benchmarks.update import best_micro_batch
from tests.benchmarks.works import CACHE, WORKS, make, model_folder, questions

BAR, TAX = 0.6, 0.05
COMPUTED = ("generate", "rewards", "passes")
REWARD = Path(__file__).with_name("reward.py")


def configuration(folder: Path, threads: int, **changed: Any) -> Path:
    """The run of work B, as YAML."""
    work = WORKS["b"]
    asked = "\n".join(json.dumps({"prompt": text}) for text in questions(work))
    (folder / "questions.jsonl").write_text(asked, encoding="utf-8")
    source = {"type": "file", "path": str(folder / "questions.jsonl"), "answer_field": None}
    data = {
        "run": "b",
        "iterations": 1000,
        "prompts": {"source": source, "heldout": 0},
        "warmstart": {"model": {"type": "folder", "path": str(model_folder(work))}},
        "sample": {"prompts": work.prompts, "group_size": work.group, "sampling": {"max_tokens": work.tokens}},
        "score": {"rewards": [{"type": "python", "function": f"{REWARD}:reward"}]},
        "update": ours.settings("b"),
        "evaluate": None,
        "hardware": {"device": "cpu", "threads": threads},
    }
    path = folder / "b.yaml"
    path.write_text(yaml.safe_dump(data | changed), encoding="utf-8")
    return path


def train(turns: Turns, threads: int, config: str | None = None) -> None:
    """The flow `train` with the embedded server; as many iterations a turn as are asked for, and one before them."""
    from flows.config.loading import read_config
    from flows.runs.history import History
    from flows.serving.prefect_server import prefect_server
    from stages.contract.paths import RunPaths

    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        path = Path(config) if config else configuration(folder, threads)
        run = read_config(path, {}).run
        with prefect_server(folder) as wait_for_server:
            wait_for_server()
            training, last = flow(folder, published=True, config=path), 0
            turns.imported()
            while asked := turns.wait():
                with clocked() as clock:
                    training(run, last := last + asked + 1)
                history = History(RunPaths.named(folder, run))
                done = sorted(clock.done)[-asked - 1 :]
                taken = [{"seconds": clock.done[k] - clock.done[j], **parts(history, k)} for j, k in pairwise(done)]
                turns.done({"seconds": statistics.median(one["seconds"] for one in taken), "iterations": taken})


def parts(history: Any, k: int) -> dict[str, float]:
    """Seconds of an iteration's computing, by its manifests: generating, rewards, forward and backward passes."""
    timings = {stage: history.manifest(k, stage).timings for stage in ("sample", "score", "update")}
    score, update = timings["score"], timings["update"]
    passes = score.get("reference", 0.0) + update.get("old_logprobs", 0.0) + update["train"]
    return {"generate": timings["sample"]["generate"], "rewards": score["rewards"], "passes": passes}


def measure(settings: Settings) -> Part:
    """Rows of B, and the picture."""
    make(WORKS["b"])
    size = best_micro_batch(settings, "b")
    mine, theirs = beside_trl(settings, size)
    one, other = divided(mine), divided(theirs)
    saved, tax = other["seconds"] + other["save"], one["rest"] / one["seconds"]
    rows = [
        at_most(f"iteration, B, {settings.told()}", one["seconds"], other["seconds"], BAR, "s"),
        Row("… where TRL saves too", f"{one['seconds']:.1f} s", f"{saved:.1f} s", one["seconds"] / saved),
    ]
    for what, part in (("generating", "generate"), ("forward, backward, step", "passes"), ("rewards", "rewards")):
        rows.append(Row(f"… {what}", f"{one[part]:.2f} s", f"{other[part]:.2f} s", one[part] / other[part]))
    rows.append(Row("… the rest", f"{one['rest']:.2f} s", f"{other['rest']:.2f} s"))
    rows.append(Row("… pipeline tax, the rest of the whole", f"{tax:.1%}", "", None, f"≤ {TAX:.0%}", tax <= TAX))
    plot(one, other, settings.pictures / f"fast-iteration-{settings.threads}.png", settings.told())
    return Part(
        rows,
        f"B, {settings.told_runs()}; TRL's micro-batch is {size}, its saving {other['save']:.1f} s a step. Our step "
        "reads the optimizer's state from its file.",
    )


def beside_trl(settings: Settings, micro_batch: int) -> tuple[list[Figures], list[Figures]]:
    """Iterations and steps, in two portions in turn."""
    threads = settings.threads
    portions = [(settings.runs + 1) // 2, settings.runs // 2]
    mine: list[Figures] = []
    theirs: list[Figures] = []
    with (
        Side(train, threads, settings.log("ours-iteration"), threads=threads) as own,
        Side(trl.iteration, threads, settings.log("trl-iteration"), work="b", micro_batch=micro_batch) as other,
    ):
        for count in filter(None, portions):
            begun = time.perf_counter()
            mine += own.run(count)["iterations"]
            settings.say(f"ours: {[round(one['seconds'], 1) for one in mine]} s ({time.perf_counter() - begun:.0f})")
            theirs += [other.run() for _ in range(count)]
            settings.say(f"TRL: {[round(one['seconds'], 1) for one in theirs]} s")
    return mine, counted(theirs)


def divided(figures: list[Figures]) -> dict[str, float]:
    """Medians of an iteration's parts, and of what they leave."""
    names = {name for name in figures[0] if isinstance(figures[0][name], float)}
    out = {name: statistics.median(one[name] for one in figures) for name in names}
    rest = statistics.median(one["seconds"] - sum(one[part] for part in COMPUTED) for one in figures)
    return out | {"rest": rest}


def plot(one: dict[str, float], other: dict[str, float], path: Path, told: str) -> None:
    """A bar for each side, divided."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
    sides = {"grpo-flows": one, "TRL, saving nothing": other}
    left = [0.0, 0.0]
    for part in (*COMPUTED, "rest"):
        widths = [side[part] for side in sides.values()]
        axes.barh(list(sides), widths, left=left, label=part)
        left = [at + width for at, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds an iteration of work B, {told}")
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
