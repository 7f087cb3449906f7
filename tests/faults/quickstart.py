"""Kills the quickstart again and again beside other work, and compares what it ends with to an unbroken run.

`python -m tests.faults.quickstart FOLDER --kills 30 [--unbroken FOLDER]`: the unbroken run is trained first, before the
other work begins, where none is named. Threads are those that users get. Prints a digest of all outputs of each, as
JSON; exit code 1 where they differ.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from stages.contract.digest import names_digest
from stages.contract.paths import RunPaths
from tests.busy import busy, default_threads
from tests.faults.range import digests
from tests.flows.conftest import GRPO, ROOT, environment

ITERATIONS = 8
EARLY = 4
"""Kills before the starting policy is there."""
CONFIG = ROOT / "configs" / "quickstart.yaml"


def main() -> int:
    """Trains, kills, compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unbroken", type=Path, help="folder in which `artifacts/quickstart` was trained so far")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--busy", type=int, default=2, help="processes beside it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    whole = options.unbroken or options.folder / "unbroken"
    if options.unbroken is None:
        whole.mkdir(parents=True)
        assert train(whole).wait() == 0
    expected = outputs(whole)
    broken = options.folder / "broken"
    broken.mkdir(parents=True)
    with busy(options.busy):
        kill(broken, options.kills, random.Random(options.seed))
        assert train(broken).wait() == 0
    found = outputs(broken)
    apart = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    told = {"unbroken": names_digest(expected), "broken": names_digest(found), "files": len(found), "apart": apart[:5]}
    print(json.dumps(told))
    return 1 if apart else 0


def train(folder: Path) -> subprocess.Popen[bytes]:
    """Begins or resumes the quickstart in a folder."""
    command = [str(GRPO), "train", str(CONFIG), "--iterations", str(ITERATIONS)]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=default_threads(environment()), stdout=log, stderr=log)


def outputs(folder: Path) -> dict[str, str]:
    """Digests of all outputs up to the last iteration that is compared."""
    found = digests(RunPaths.named(folder / "artifacts", "quickstart"))
    return {name: digest for name, digest in found.items() if int(name.split("/")[1]) <= ITERATIONS}


def kill(folder: Path, kills: int, dice: random.Random) -> None:
    """Kills a training so many times: first in the warm start, then in the stage after each that is completed.

    Where a training is over before its kill, its last iteration is removed, and that kill does not count.
    """
    iterations = folder / "artifacts" / "quickstart" / "iterations"
    done = 0
    while done < kills:
        before = stages(iterations)
        early = done < EARLY
        wanted, longest = (max(1, before), 40.0) if early else (max(2, before) + 1, 1.0)
        with train(folder) as process:
            while stages(iterations) < wanted and process.poll() is None:
                time.sleep(0.02)
            time.sleep(dice.random() * longest)
            over = process.poll() is not None
            process.kill()
        if over:
            shutil.rmtree(iterations / f"{ITERATIONS:04d}")
        done += not over
        print(f"{done} kills, the last one after {stages(iterations)} stages", file=sys.stderr, flush=True)


def stages(iterations: Path) -> int:
    """How many stages are completed."""
    return len(list(iterations.glob("*/*/manifest.json")))


if __name__ == "__main__":
    sys.exit(main())
