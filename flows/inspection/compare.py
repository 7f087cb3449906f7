"""Two runs side by side: where they part, what differs in their configurations, and their figures by iteration."""

from typing import Any

from flows.config.diff import differing
from flows.config.schema import RunConfig
from flows.config.stages import place_of
from flows.inspection.metrics import iteration_metrics
from flows.inspection.plots import Curve, Panel, draw
from flows.runs.forking import read_fork
from flows.runs.history import History, circumstances
from flows.runs.snapshot import steady
from flows.runs.staleness import stages_of

FIGURES = {
    "reward_mean": ("Reward of the drawn completions", "mean reward"),
    "heldout_success": ("Held-out success", "share of completions"),
    "kl": ("KL from the reference", "nats a token"),
    "mean_length": ("Length of completions", "tokens"),
}
"""The figures that are compared, with the titles and units of their plots."""


def compare(one: History, left: RunConfig, other: History, right: RunConfig) -> dict[str, Any]:
    """What two runs have in common, and what not. Both may be trained meanwhile.

    Returns:
        runs: their names; forked: what each says of its parent; policy: the first iteration whose policies differ, null
        where none does; stage: the first stage whose outputs differ, with its iteration; fields: the configuration
        fields that differ in that iteration (name → values), settings of reruns included; circumstances: what else
        differs between the two makings of that stage; heldout: whether both measure on the same held-out prompts alike;
        iterations: for each the figures of both.

    Raises:
        RunInUseError: one of them had a stage made again meanwhile.
    """
    with steady(one.paths), steady(other.paths):
        return _compared(one, left, other, right)


def _compared(one: History, left: RunConfig, other: History, right: RunConfig) -> dict[str, Any]:
    last = max(one.last(), other.last())
    stage = _first_difference(one, left, other, right, last)
    k = stage["iteration"] if stage else min(one.last(), other.last())
    mine, its = (h.manifest(k, place_of(stage["stage"])) if stage else None for h in (one, other))
    digests = [(j, one.policy_digest(j), other.policy_digest(j)) for j in range(last + 1)]
    prompts = [history.manifest(0, "prompts") for history in (one, other)]
    heldout = [manifest.outputs.get("heldout.parquet") if manifest else None for manifest in prompts]
    return {
        "runs": [history.paths.root.name for history in (one, other)],
        "forked": [
            {"run": fork.run, "iteration": fork.iteration} if (fork := read_fork(history.paths)) else None
            for history in (one, other)
        ],
        "policy": next((j for j, a, b in digests if a and b and a != b), None),
        "stage": stage,
        "fields": _fields(one, left, other, right, k),
        "circumstances": circumstances(mine, its) if mine and its else {},
        "heldout": heldout[0] == heldout[1] and _measured_alike(one, other, last),
        "iterations": [
            {"iteration": j} | {name: [metrics[name] for metrics in both] for name in FIGURES}
            for j in range(last + 1)
            for both in [[iteration_metrics(history, j) for history in (one, other)]]
        ],
    }


def plot(compared: dict[str, Any]) -> bytes | None:
    """A PNG of the figures of both runs, with a line where they part; None where there are none."""
    panels = []
    for name, (title, unit) in FIGURES.items():
        curves = []
        for i, run in enumerate(compared["runs"]):
            values = [(entry["iteration"], entry[name][i]) for entry in compared["iterations"]]
            curves.append(Curve(run, [(k, value) for k, value in values if value is not None]))
        panels.append(Panel(title, unit, curves, mark=compared["policy"]))
    return draw(panels)


def _first_difference(
    one: History, left: RunConfig, other: History, right: RunConfig, last: int
) -> dict[str, Any] | None:
    """The first stage, in the order of the work, that both have and whose outputs differ."""
    for k in range(last + 1):
        for stage in stages_of(one, left, k):
            if stage not in stages_of(other, right, k):
                continue
            mine, its = one.manifest(k, place_of(stage)), other.manifest(k, place_of(stage))
            if mine and its and mine.outputs != its.outputs:
                return {"iteration": k, "stage": stage}
    return None


def _measured_alike(one: History, other: History, last: int) -> bool:
    """Whether no iteration that both have evaluated was evaluated with other settings."""
    pairs = [(one.manifest(k, "evaluate"), other.manifest(k, "evaluate")) for k in range(last + 1)]
    return all(a.config_digest == b.config_digest for a, b in pairs if a and b)


def _fields(one: History, left: RunConfig, other: History, right: RunConfig, k: int) -> dict[str, tuple[str, str]]:
    """What differs in the configurations of iteration `k`, and in the settings with which its stages were rerun."""
    out = differing(one.config(k, left), other.config(k, right))
    for stage in stages_of(one, left, k):
        manifests = one.manifest(k, place_of(stage)), other.manifest(k, place_of(stage))
        mine, its = (manifest.overrides if manifest else {} for manifest in manifests)
        for name in sorted(mine.keys() | its.keys()):
            if mine.get(name) != its.get(name):
                out[name] = (str(mine.get(name, "as configured")), str(its.get(name, "as configured")))
    return out
