"""The update alone beside TRL's training steps on the same rollouts: works B and C; work D beside a plain pass."""

import json

from tests.benchmarks import ours, trl
from tests.benchmarks.fast import Part, Row, at_most
from tests.benchmarks.settings import Settings
from tests.benchmarks.side import Figures, Side, in_turns, middle
from tests.benchmarks.works import CACHE, WORKS, make, model_folder

TIME, MEMORY, WIDE_TIME, WIDE_MEMORY = 0.5, 0.6, 1.0, 0.25
DETERMINISTIC = 1.02
"""Time with `hardware.deterministic` beside the time without; the excess is within the noise of these runs."""


def best_micro_batch(settings: Settings, name: str) -> int:
    """The micro-batch with which TRL's step is the fastest, by a step over a group each; kept in the cache."""
    path, work = CACHE / "micro_batches.json", WORKS[name]
    known: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if name not in known:
        known[name] = {}
        for size in trl.MICRO_BATCHES:
            rows = max(size, work.group)
            with Side(
                trl.update, settings.threads, settings.log("sweep"), work=name, micro_batch=size, rows=rows
            ) as side:
                known[name][str(size)] = side.run()["seconds"] / rows * work.rows
            settings.say(
                f"TRL, {name}, micro-batch {size}: {known[name][str(size)]:.1f} s a step, from a part of its rows"
            )
        path.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return int(min(known[name], key=lambda size: known[name][size]))


def measure(settings: Settings) -> Part:
    """Time and memory of work B."""
    return measured(settings, "b")


def measure_long(settings: Settings) -> Part:
    """Those of work C."""
    return measured(settings, "c")


def measure_wide(settings: Settings) -> Part:
    """Those of work D beside a plain pass."""
    threads = settings.threads
    make(WORKS["d"])
    with (
        Side(ours.gradient, threads, settings.log("ours-wide"), work="d", plain=False) as parts,
        Side(ours.gradient, threads, settings.log("plain-wide"), work="d", plain=True) as plain,
    ):
        found = in_turns({"ours": parts, "plain": plain}, settings.runs, settings.say)
    peaks, seconds = ([middle(side, name) for side in found.values()] for name in ("peak", "seconds"))
    rows = [
        at_most("update, D, peak memory beside a plain pass", *peaks, WIDE_MEMORY, "MiB"),
        at_most("… its time", *seconds, WIDE_TIME, "s"),
    ]
    return Part(rows, f"D, {settings.told()}, {settings.told_runs()}: forward and backward passes; {same_work(found)}")


def measure_deterministic(settings: Settings) -> Part:
    """Time and memory of works B and C with `hardware.deterministic` and without."""
    rows = []
    for name in ("b", "c"):
        make(WORKS[name])
        with (
            Side(ours.update, settings.threads, settings.log("ours-on"), work=name) as on,
            Side(ours.update, settings.threads, settings.log("ours-off"), work=name, deterministic=False) as off,
        ):
            found = in_turns({"on": on, "off": off}, settings.runs, settings.say)
        same_work(found)
        told = f"update, {name.upper()}, hardware.deterministic on beside off"
        rows.append(at_most(told, *(middle(side) for side in found.values()), DETERMINISTIC, "s"))
        rows.append(peak_row("… its peak memory", *(middle(side, "peak") for side in found.values())))
    return Part(rows, f"B and C, {settings.told()}, {settings.told_runs()}.")


def peak_row(what: str, mine: float, other: float) -> Row:
    """A row of two peaks of memory, of which nothing is wanted."""
    return Row(what, f"{mine:.0f} MiB", f"{other:.0f} MiB", mine / other)


def measured(settings: Settings, name: str) -> Part:
    """Rows of one work."""
    found, told = beside_trl(settings, name)
    mine, theirs = found["ours"], found["TRL"]
    peaks, above = ([middle(side, what) for side in (mine, theirs)] for what in ("peak", "above"))
    with Side(ours.update, settings.threads, settings.log("ours-floor"), work=name, trim=True) as trimmed:
        left = [trimmed.run()["left"] for _ in range(2)][-1]
    imports = peaks[0] - above[0]
    policy = (model_folder(WORKS[name]) / "model.safetensors").stat().st_size / 2**20
    rows = [
        at_most(f"update, {name.upper()}, {settings.told()}", middle(mine), middle(theirs), TIME, "s"),
        at_most(f"… its peak memory, {name.upper()}", *peaks, MEMORY, "MiB"),
        peak_row("… above what the imports take", *above),
        Row("… of it libraries and policy", f"{left:.0f} MiB"),
        Row("… with reading, loading and writing all", f"{middle(mine, 'whole'):.1f} s"),
    ]
    return Part(
        rows,
        f"{told} Of our peak memory the imports are {imports:.0f} MiB; libraries loaded later, and the policy, "
        f"{left - imports:.0f} ({policy:.0f} its weights); gradients ({policy:.0f}), activations or moments, and what "
        f"the allocator keeps, {peaks[0] - left:.0f}.",
    )


def beside_trl(settings: Settings, name: str) -> tuple[dict[str, list[Figures]], str]:
    """The figures of both sides, and how they were got."""
    make(WORKS[name])
    size = best_micro_batch(settings, name)
    with (
        Side(ours.update, settings.threads, settings.log("ours-update"), work=name) as mine,
        Side(trl.update, settings.threads, settings.log("trl-update"), work=name, micro_batch=size) as theirs,
    ):
        found = in_turns({"ours": mine, "TRL": theirs}, settings.runs, settings.say)
    return found, (
        f"{name.upper()}, {settings.told()}, {settings.told_runs()}: TRL's micro-batch is {size}, its best of "
        f"{trl.MICRO_BATCHES}; {same_work(found)}"
    )


def same_work(found: dict[str, list[Figures]]) -> str:
    """Loss and gradient norm of the first step of both sides, which are to agree.

    Raises:
        AssertionError: they do not.
    """
    one, other = (runs[0] for runs in found.values())
    norms = one["gradient_norm"], other["gradient_norm"]
    assert abs(norms[0] / norms[1] - 1) < 1e-3 and abs(one["loss"] - other["loss"]) < 1e-4, (one, other)
    return f"gradient norms {norms[0]:.6g} and {norms[1]:.6g}, losses {one['loss']:.2g} and {other['loss']:.2g}."
