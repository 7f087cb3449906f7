"""The harness's summary: kills by place and outcome."""

import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from stages.contract.manifest import package_versions

WHAT = {
    "open": "before a file is opened for writing",
    "write": "inside the write of a file, cut at a random byte",
    "sync": "before a file or folder is synced",
    "rename": "before a rename",
    "renamed": "after a rename",
    "mkdir": "before a folder is made",
    "remove": "before a file is removed",
    "rmtree": "before a folder is removed",
    "rmdir": "before a folder is removed",
    "link": "before a file is given a second name",
    "unlock": "before the run's lock is let go",
    "end": "when all is done",
    "begin": "before anything was done",
    "generate": "while the engine generates",
    "step": "before an optimizer step",
    "stepped": "after an optimizer step",
    "at": "at a random moment, from outside",
}


class Noted(Protocol):
    """A kill as the harness notes it."""

    scenario: str
    place: str
    outcome: str


def where(place: str) -> str:
    """A place in words: what happened, and in which stage."""
    kind, _, rest = place.partition(" ")
    stage = re.search(r"(?:iterations| in)[/ ]\d+/\.?([a-z]+)", rest)
    if re.match(r"iterations/\d+/update/\.?(critic_)?optimizer\.safetensors", rest):
        return f"{WHAT[kind]}, optimizer state being written in the background"
    return WHAT[kind] + (f", {stage.group(1)}" if stage else ", superseded" if "superseded/" in rest else "")


def write_report(
    path: Path, kills: Sequence[Noted], missed: Counter[str], seconds: float, wanted: int, seed: int
) -> None:
    """Writes the summary as Markdown."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    rows = Counter((kill.scenario, where(kill.place), kill.outcome.split(":")[0]) for kill in kills)
    total = Counter(kill.outcome.split(":")[0] for kill in kills)
    lines = [
        "# Kills, and what came of them",
        "",
        f"{len(kills)} kills of small trainings, reruns and forks, {datetime.now(UTC):%Y-%m-%d}, commit "
        f"{commit.strip()}, {seconds:.0f} s; {versions}.",
        "",
        f"`python -m tests.faults.harness --kills {wanted} --seed {seed} --report tests/faults/results.md` made them, "
        "as `pytest -m long tests/faults` does.",
        "`resumed`: all in place was whole and equal to the unbroken run's, and what went on ended with the same",
        "digests of every table and weight, the same files, and nothing that `grpo verify` finds; of a rerun, the",
        "state before or the one after was found; of a fork, no run or the whole one, and its parent untouched.",
        "",
        ", ".join(f"**{count} {outcome}**" for outcome, count in total.items()) + ".",
        f"{missed.total()} more processes were over before their kill came: they were compared like the others, and",
        "count for none.",
        "",
        "| scenario | killed | outcome | kills |",
        "| --- | --- | --- | ---: |",
        *(
            f"| {scenario} | {place} | {outcome} | {count} |"
            for (scenario, place, outcome), count in sorted(rows.items())
        ),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
