"""Kills small trainings, reruns and forks again and again, starts them again, and compares what they end with.

`OPENBLAS_NUM_THREADS=1 python -m tests.faults.harness --kills 200 --report tests/faults/results.md`. One process loads
the libraries once and forks each process that is to be killed, so that a kill costs about a second; all share one
Prefect server. A process in which threads are at work cannot be forked: numpy's, which no stage uses, are left out;
torch's begin in the forked processes, as many as users have. Each process that is started first proves that what the
kill before it left in place is whole and equal to the unbroken run's. One that is over before its kill is compared as
the others are, and counts for none.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from flows.serving.prefect_server import prefect_server
from tests.faults.range import Range
from tests.faults.report import write_report
from tests.faults.scenarios import ALL, KINDS, ONE_EPOCH, TWO_EPOCHS, WORKERS, Trained, forks, reruns

LEAST = 20
"""Kills in which each scenario has its part."""
ROUNDS = 20
"""Attempts at the kills that are left, before that fails."""


def main() -> int:
    """Kills, and says what came of it; 1 where anything but a clean resume did, or where too few were killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=LEAST, help="at least so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    if options.kills < LEAST:
        parser.error(f"--kills: at least {LEAST}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, prefect_server(Path(folder)) as wait_for_server:
        preload()
        wait_for_server()
        dice = random.Random(options.seed)
        at = Range(Path(folder), dice, lambda at: write_down(at, time.monotonic() - start, options))
        (every if options.kills >= 5 * LEAST else briefly)(at, options.kills)
    wrong = [kill for kill in at.kills if kill.outcome != "resumed"]
    for kill in wrong:
        print(f"{kill.scenario}: {kill.place}: {kill.outcome}", file=sys.stderr)
    outcomes = dict(Counter(kill.outcome[:40] for kill in at.kills))
    print(f"{len(at.kills)} kills in {time.monotonic() - start:.0f} s: {outcomes}; {at.missed.total()} came too late")
    if len(at.kills) < options.kills:
        print(f"only {len(at.kills)} of {options.kills} kills came in time", file=sys.stderr)
    return 1 if wrong or len(at.kills) < options.kills else 0


def briefly(at: Range, kills: int) -> None:
    """A few of each: two trainings, one of them with all that can be had at once."""
    trained = Trained(at, ONE_EPOCH)
    trained.chosen(4)
    trained.in_a_row(2)
    reruns(trained, "a rerun with --set", None, 3)
    forks(trained, 3)
    trained = Trained(at, ALL)
    trained.chosen(6)
    rest(trained, kills)


def every(at: Range, kills: int) -> None:
    """Each scenario by itself."""
    share = kills // 20
    trained = Trained(at, ONE_EPOCH)
    trained.chosen(3 * share)
    reruns(trained, "a rerun with --set", None, share)
    reruns(trained, "a rerun with --set and --cascade", 3, share)
    forks(trained, 2 * share)
    trained.in_a_row(2 * share)
    for kind in KINDS:
        Trained(at, kind).chosen(share)
    Trained(at, ALL).chosen(2 * share)
    Trained(at, WORKERS).chosen(share // 2)
    trained = Trained(at, TWO_EPOCHS)
    trained.chosen(3 * share)
    trained.in_a_row(share)
    rest(trained, kills)


def rest(trained: Trained, kills: int) -> None:
    """Kills at random moments until there were enough."""
    for _ in range(ROUNDS):
        if (left := kills - len(trained.at.kills)) <= 0:
            return
        trained.at_random(left)


def write_down(at: Range, seconds: float, options: argparse.Namespace) -> None:
    """Writes what came of the kills so far where it was asked for."""
    if options.json:
        found = {"seconds": seconds, "kills": [asdict(kill) for kill in at.kills], "missed": dict(at.missed)}
        options.json.write_text(json.dumps(found, indent=1))
    if options.report:
        write_report(options.report, at.kills, at.missed, seconds, options.kills, options.seed)


def preload() -> None:
    """Imports what the processes need, so that no forked one has to.

    This process has one thread, after which it can be forked; each stage of a forked one takes torch's own number.
    """
    import importlib

    import torch

    from stages.model.determinism import default_threads

    default_threads()
    torch.set_num_threads(1)
    for name in (
        "flows.train",
        "flows.stage",
        "flows.inspection.verify",
        "transformers.models.llama.modeling_llama",
        "reasoning_gym",
        "peft",
        "anyio._backends._asyncio",
        "fastapi",
        "graphviz",
        "matplotlib.backends.backend_agg",
        "prefect.concurrency.context",
        "prefect.flow_engine",
        "prefect.task_engine",
        "pyarrow.dataset",
    ):
        importlib.import_module(name)
    for room in ("prompts", "warmstart", "sample", "score", "advantage", "update", "evaluate"):
        importlib.import_module(f"stages.{room}.stage")
    importlib.import_module("stages.sample.transformers_engine")


if __name__ == "__main__":
    sys.exit(main())
