"""Work in processes of their own, one for each side of a comparison, which are asked in turns.

A side stays warm between its runs and is idle while the other one works. The peak of its memory is what the kernel
counts (VmHWM, reset before each run): pages of the process in memory, those of mapped files included.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
Figures = dict[str, Any]
MIB = 1024


class Turns:
    """The work's end: waits until it is asked, tells what a run gave."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes to the log
        self.before = resident()["VmRSS"]
        """MiB when the process began: the interpreter and what it had imported."""

    def imported(self) -> None:
        """To be called when all is imported, and no model loaded: memory counts from here."""
        self.before = resident()["VmRSS"]

    def wait(self) -> int:
        """How much is asked for; 0 when all is done."""
        self._say({"ready": True})
        asked = int(sys.stdin.readline() or 0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from now
        return asked

    def done(self, figures: Figures) -> None:
        """Tells a run's figures, the peak of the memory put in."""
        peak = resident()["VmHWM"]
        self._say(figures | {"peak": peak, "above": peak - self.before})

    def _say(self, figures: Figures) -> None:
        print(json.dumps(figures), file=self._answers, flush=True)


class Side:
    """The asking end: a process that runs `doing`, a function `(turns, **arguments)` of this folder's modules."""

    def __init__(self, doing: Callable[..., None], threads: int, log: Path, /, **arguments: Any) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        self._name = f"{doing.__module__}:{doing.__name__}"
        command = [sys.executable, "-m", "tests.benchmarks.side", self._name, json.dumps(arguments)]
        variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True,
            )  # fmt: skip
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, count: int = 1) -> Figures:
        """What the work told of a run."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        figures = self._answer()
        self._answer()  # ready again
        return figures

    def _answer(self) -> Figures:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            end = self._log.read_text(encoding="utf-8", errors="replace")[-4000:]
            raise RuntimeError(f"{self._name} ended, see {self._log}:\n{end}")
        figures: Figures = json.loads(line)
        return figures


LONG = 10
"""Seconds from which on a first run counts like the others: what it warms up is lost in it."""


def in_turns(sides: Mapping[str, Side], runs: int, say: Callable[[str], None]) -> dict[str, list[Figures]]:
    """`runs` runs of each side, in turn, after one of each to warm up, unless that one was long enough to count."""
    found: dict[str, list[Figures]] = {name: [] for name in sides}
    while any(len(counted(figures)) < runs for figures in found.values()):
        for name, side in sides.items():
            found[name].append(side.run())
            say(f"{name}: {found[name][-1]['seconds']:.2f} s")
    return found


def counted(figures: list[Figures]) -> list[Figures]:
    """All but the one that warmed up."""
    return figures if figures and figures[0]["seconds"] > LONG else figures[1:]


def middle(figures: list[Figures], name: str = "seconds") -> float:
    """The median of a figure of the runs that count."""
    return statistics.median(figure[name] for figure in counted(figures))


def resident() -> dict[str, float]:
    """MiB: memory in use (VmRSS) and its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / MIB for line in lines if line.startswith(("VmRSS", "VmHWM"))}


def main() -> None:
    """Runs the work that the arguments name."""
    turns = Turns()
    module, name = sys.argv[1].split(":")
    getattr(importlib.import_module(module), name)(turns, **json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
