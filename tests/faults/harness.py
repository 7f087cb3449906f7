"""Kills a small training again and again, starts it again, and compares what it ends with with an unbroken one.

`python -m tests.faults.harness --kills 200 --report tests/faults/results.md`. One process loads the libraries once and
forks each training, so that a kill costs about a second; all share one Prefect server. Each training that is started
first proves that what the kill before it left in place is whole and equal to the unbroken run's.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.server import prefect_server
from stages.contract.paths import RunPaths
from tests.faults.report import write_report
from tests.faults.traps import set_traps

SMALL = Path(__file__).parents[1] / "data" / "small.yaml"
KILLED = {-signal.SIGKILL: "killed", -signal.SIGXFSZ: "killed"}
IDLE = {"jemalloc_bg_thd", "polars-ooc-clea"}
"""Threads that begin when pyarrow and polars are imported, and that a fork can do without."""
BROKEN = 3
"""Exit code of a training that found something in place that it should not have found."""
SCENARIOS: dict[str, dict[str, Any]] = {
    "one epoch a batch": {"update.epochs": 1},
    "two epochs a batch": {"update.epochs": 2},
}
LAST = "two epochs a batch"
RERUN = {"score.rewards.1.weight": 0.5}
MANY = ("step", "generate")
"""Places so frequent that one in ten stands for them."""
Digests = dict[str, str]


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it."""

    scenario: str
    place: str
    outcome: str
    """`resumed`, or what was wrong."""


def digests(paths: RunPaths) -> Digests:
    """Of every output in place, by its name in the run."""
    from stages.contract.manifest import read_manifest

    out: Digests = {}
    for folder in sorted(paths.iterations.glob("[0-9]*/[!.]*")):
        manifest = read_manifest(folder)
        assert manifest is not None, f"{folder} has no manifest"
        out |= {paths.relative(folder / name): record.digest for name, record in manifest.outputs.items()}
    return out


def check_left(paths: RunPaths, expected: Digests) -> None:
    """What a kill left in place is whole, and equal to the unbroken run's."""
    from flows.verify import verify

    problems = verify(paths).problems
    assert not problems, problems[0]
    left = digests(paths)
    assert left.items() <= expected.items(), sorted(left.items() - expected.items())[0]


class Range:
    """A folder of runs in which trainings are forked."""

    def __init__(self, folder: Path, write_down: Callable[[list[Kill]], None]) -> None:
        self.folder = folder
        self.kills: list[Kill] = []
        self.write_down = write_down

    def paths(self, run: str) -> RunPaths:
        """A run's places."""
        return RunPaths.named(self.folder, run)

    def fork(self, work: Callable[[], None]) -> int:
        """Begins `work` in a process of its own; its pid."""
        busy = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")} - IDLE
        assert len(busy) == 1, f"a process with threads at work cannot be forked: {busy}"
        pid = os.fork()
        if pid:
            return pid
        try:
            log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            work()
            os._exit(0)
        except AssertionError:
            (self.folder / "broken").write_text(traceback.format_exc())
            os._exit(BROKEN)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def run(self, work: Callable[[], None]) -> int:
        """Runs `work` in a process of its own; its exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.fork(work), 0)[1])

    def must(self, work: Callable[[], None]) -> None:
        """Runs `work`, which has to succeed."""
        code = self.run(work)
        assert code == 0, self._wrong(code)

    def train(self, run: str, overrides: dict[str, Any], trap: str | None = None, limit: int = 0) -> None:
        """Trains a run, in this process, with a trap."""
        from flows.train import train

        os.chdir(self.folder)
        set_traps(self.paths(run).root, trap, limit, lambda place, size: None)
        train(str(SMALL), run, overrides=overrides, artifacts=str(self.folder))

    def trace(self, run: str, overrides: dict[str, Any]) -> tuple[list[str], dict[str, int]]:
        """Trains a run, unbroken; the places that it came by, and the sizes of the files written."""
        from flows.train import train

        def work() -> None:
            with (self.folder / "trace").open("w") as file:
                os.chdir(self.folder)
                set_traps(self.paths(run).root, None, 0, lambda place, size: print(place, size, sep="\t", file=file))
                train(str(SMALL), run, overrides=overrides, artifacts=str(self.folder))

        self.must(work)
        lines = [line.split("\t") for line in (self.folder / "trace").read_text().splitlines()]
        sizes = {place.removeprefix("written "): int(size) for place, size in lines if place.startswith("written ")}
        return [place for place, _ in lines if not place.startswith("written ")], sizes

    def must_digests(self, run: str) -> Digests:
        """The digests of a run, read in a process of its own."""

        def work() -> None:
            (self.folder / "digests").write_text(json.dumps(digests(self.paths(run))))

        self.must(work)
        found: Digests = json.loads((self.folder / "digests").read_text())
        return found

    def note(self, scenario: str, place: str, code: int) -> bool:
        """Notes a kill; whether the training was killed, and not over before."""
        if code == 0:
            return False
        self.kills.append(Kill(scenario, place, "resumed" if code in KILLED else self._wrong(code)))
        self.write_down(self.kills)
        return True

    def spoil(self, wrong: str) -> None:
        """Notes that what came of the last kill is wrong after all."""
        last = self.kills.pop()
        self.kills.append(Kill(last.scenario, last.place, wrong))
        self.write_down(self.kills)

    def _wrong(self, code: int) -> str:
        name = "broken" if code == BROKEN else "log"
        return f"exit code {code}: {(self.folder / name).read_text()[-2000:]}"


def chosen_places(at: Range, scenario: str, overrides: dict[str, Any], count: int, dice: random.Random) -> Digests:
    """Kills a training at `count` of all places that it comes by, one after the other, in their order."""
    all_places, sizes = at.trace("unbroken", overrides)
    expected = at.must_digests("unbroken")
    places = [place for place in all_places if not place.startswith(MANY) or dice.random() < 0.1]
    every = len(places) / min(count, len(places))
    chosen = [places[int(i * every + dice.random() * every)] for i in range(min(count, len(places)))]
    for place in chosen:
        limit = int(sizes.get(place.removeprefix("write "), 0) * dice.random())

        def work(place: str = place, limit: int = limit) -> None:
            check_left(at.paths("chosen"), expected)
            at.train("chosen", overrides, place, limit)

        if not at.note(scenario, place, at.run(work)):  # it was over before: the place does not come after a resume
            shutil.rmtree(at.paths("chosen").root)
    end(at, "chosen", overrides, expected)
    return expected


def random_moments(
    at: Range, scenario: str, overrides: dict[str, Any], count: int, dice: random.Random, expected: Digests
) -> None:
    """Kills a training from outside, at random moments, until it was killed `count` times."""

    def work() -> None:
        check_left(at.paths("random"), expected)
        at.train("random", overrides)

    done, longest = 0, 3.0
    while done < count:
        pid, start = at.fork(work), time.monotonic()
        moment = start + dice.random() * longest
        while time.monotonic() < moment and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if at.note(scenario, "at random, from outside", code):
            done += 1
        else:
            shutil.rmtree(at.paths("random").root)
    end(at, "random", overrides, expected)


def end(at: Range, run: str, overrides: dict[str, Any], expected: Digests) -> None:
    """Lets a training go on to its end, and compares every table's and weight's digest with the unbroken run's."""

    def work() -> None:
        check_left(at.paths(run), expected)
        at.train(run, overrides)
        made = digests(at.paths(run))
        assert made == expected, sorted(made.items() ^ expected.items())[0]
        assert not list(at.paths(run).root.rglob("*.partial")), "something half-written is left"

    if (code := at.run(work)) != 0:
        at.spoil(at._wrong(code))
    shutil.rmtree(at.paths(run).root)


def reruns(at: Range, count: int, dice: random.Random) -> None:
    """Kills a rerun of `score` with a setting at its places: the state before or the one after is found."""
    from flows.stage import stage

    overrides = SCENARIOS["one epoch a batch"]
    before = at.must_digests("unbroken")

    def rerun(run: str, place: str | None, tell: Callable[[str, int], None]) -> None:
        os.chdir(at.folder)
        set_traps(at.paths(run).root, place, 64, tell)
        stage("score", run, 2, overrides=RERUN, artifacts=str(at.folder))

    def traced() -> None:
        with (at.folder / "trace").open("w") as file:
            rerun("rerun", None, lambda place, size: print(place, file=file))

    copy(at, "unbroken", "rerun")
    at.must(traced)
    places = [place for place in (at.folder / "trace").read_text().splitlines() if not place.startswith("written ")]
    at.must(lambda: at.train("rerun", overrides))
    after = at.must_digests("rerun")
    assert after != before
    shutil.rmtree(at.paths("rerun").root)
    around = [place for place in places if place.startswith("rename")]  # the two renames of a rerun are always tried
    others = dice.sample([place for place in places if place not in around], max(0, count - len(around)))
    for place in [*around, *others][:count]:
        copy(at, "unbroken", "rerun")
        code = at.run(lambda place=place: rerun("rerun", place, lambda *_: None))
        assert at.note("a rerun with --set", place, code), f"{place} was not reached"

        def work() -> None:
            at.train("rerun", overrides)
            made = digests(at.paths("rerun"))
            assert made in (before, after), "neither the state before nor the one after"
            moved = any((at.paths("rerun").root / "superseded").glob("*/*"))
            assert moved == (made == after), "what was replaced is kept, and nothing else"

        if (code := at.run(work)) != 0:
            at.spoil(at._wrong(code))
        shutil.rmtree(at.paths("rerun").root)


def copy(at: Range, run: str, other: str) -> None:
    """A copy of a whole run under another name."""
    shutil.copytree(at.paths(run).root, at.paths(other).root)
    config = at.paths(other).config
    config.write_text(config.read_text().replace(f"run: {run}", f"run: {other}"))


def main() -> int:
    """Kills, and says what came of it; 1 where anything but a clean resume did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    dice, start = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, prefect_server(Path(folder)) as wait_for_server:
        preload()
        wait_for_server()
        at = Range(Path(folder), lambda kills: write_down(kills, time.monotonic() - start, options))
        share = max(1, options.kills // 20)
        for name, overrides in SCENARIOS.items():
            expected = chosen_places(at, name, overrides, 6 * share, dice)
            if name == "one epoch a batch":
                reruns(at, 4 * share, dice)
            rest = options.kills - len(at.kills)
            random_moments(at, name, overrides, rest if name == LAST else 2 * share, dice, expected)
            shutil.rmtree(at.paths("unbroken").root)
        kills = at.kills
    seconds = time.monotonic() - start
    wrong = [kill for kill in kills if kill.outcome != "resumed"]
    for kill in wrong:
        print(f"{kill.scenario}: {kill.place}: {kill.outcome}", file=sys.stderr)
    print(f"{len(kills)} kills in {seconds:.0f} s: {dict(Counter(kill.outcome[:40] for kill in kills))}")
    return 1 if wrong else 0


def write_down(kills: list[Kill], seconds: float, options: argparse.Namespace) -> None:
    """Writes what came of the kills so far where it was asked for."""
    if options.json:
        options.json.write_text(json.dumps({"seconds": seconds, "kills": [asdict(kill) for kill in kills]}, indent=1))
    if options.report:
        write_report(options.report, kills, seconds, options.seed)


def preload() -> None:
    """Imports what a training needs, so that no forked one has to."""
    import importlib

    import torch

    for name in (
        "flows.train",
        "flows.stage",
        "flows.verify",
        "transformers.models.llama.modeling_llama",
        "reasoning_gym",
    ):
        importlib.import_module(name)
    for room in ("prompts", "warmstart", "sample", "score", "advantage", "update", "evaluate"):
        importlib.import_module(f"stages.{room}.stage")
    importlib.import_module("stages.sample.transformers_engine")
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
