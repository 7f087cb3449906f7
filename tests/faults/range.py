"""Where runs are made, killed and compared: a folder of runs, in which processes are forked that work on them."""

import json
import os
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from stages.contract.paths import RunPaths
from tests.faults.traps import set_traps

KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)
BROKEN = 3
"""Exit code of a process that found something in place that it should not have found."""
IDLE = {"jemalloc_bg_thd", "polars-ooc-clea"}
"""Threads that begin when pyarrow and polars are imported, and that a fork can do without."""
LIMIT = 300
"""Seconds after which a process that hangs is ended, and told of."""
LINE = 500
"""Bytes that hold any place, so that one write replaces the one before."""
State = dict[str, str]
Work = Callable[[], None]
Overrides = dict[str, Any]


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it."""

    scenario: str
    place: str
    outcome: str
    """`resumed`, or what was wrong."""


def digests(paths: RunPaths) -> State:
    """Of every output that a manifest in place names, by its name in the run."""
    from stages.contract.manifest import read_manifest, stage_folders

    out: State = {}
    for folder in stage_folders(paths.iterations):
        manifest = read_manifest(folder)
        assert manifest is not None, f"{folder} has no manifest"
        out |= {paths.relative(folder / name): record.digest for name, record in manifest.outputs.items()}
    return out


def state(paths: RunPaths) -> State:
    """Those digests, and every file and folder of the iterations, whoever made it."""
    there = {paths.relative(path): "there" for path in paths.iterations.rglob("*")}
    return there | {f"{name} as made": digest for name, digest in digests(paths).items()}


def check_whole(paths: RunPaths, besides: tuple[str, ...] = ()) -> None:
    """Nothing that counts is damaged, but for files of these names."""
    from flows.inspection.verify import verify

    problems = [problem for problem in verify(paths).problems if Path(problem.file).name not in besides]
    assert not problems, problems[0]


def check_left(paths: RunPaths, expected: State) -> None:
    """What a kill left in place is whole, and equal to the unbroken run's; an optimizer state may be missing yet."""
    from flows.runs.retention import OPTIMIZERS

    check_whole(paths, OPTIMIZERS)
    left = {f"{name} as made": digest for name, digest in digests(paths).items()}
    assert left.items() <= expected.items(), sorted(left.items() - expected.items())[0]


def check_end(paths: RunPaths, *expected: State) -> None:
    """A run is whole, and as one of these states, to the last file."""
    check_whole(paths)
    made = state(paths)
    apart = [sorted(made.items() ^ other.items()) for other in expected]
    assert [] in apart, [differences[:3] for differences in apart]


class Range:
    """The folder, what was noted, and the dice."""

    def __init__(self, folder: Path, dice: Random, noted: Callable[["Range"], None]) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.runs.mkdir()
        self.dice = dice
        self.kills: list[Kill] = []
        self.missed: Counter[str] = Counter()
        """Processes that were over before their kill, and that were compared as any other, by scenario."""
        self._noted = noted

    def paths(self, run: str) -> RunPaths:
        """A run's places."""
        return RunPaths.named(self.runs, run)

    def fork(self, work: Work) -> int:
        """Begins `work` in a process of its own; its pid."""
        threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        busy = [name for name in threads if name not in IDLE]
        assert len(busy) == 1, f"a process with threads at work cannot be forked: {busy}"
        (self.folder / "place").unlink(missing_ok=True)
        pid = os.fork()
        if pid:
            return pid
        try:
            log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(self.folder)
            signal.alarm(LIMIT)
            work()
            os._exit(0)
        except AssertionError:
            traceback.print_exc()
            os._exit(BROKEN)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def run(self, work: Work) -> int:
        """Runs `work` in a process of its own; its exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.fork(work), 0)[1])

    def must(self, work: Work) -> None:
        """Runs `work`, which has to succeed."""
        code = self.run(work)
        assert code == 0, self.wrong(code)

    def trap(self, root: Path, at: str | int | None = None, size: int = 0) -> Callable[[str, str], bool]:
        """Sets the traps in this process; the last place that it reached is kept in a file.

        Args:
            root: where.
            at: the place to die at, or its number; None dies nowhere.
            size: that of the file that is written there, which is cut at a random byte of it.
        """
        last = os.open(self.folder / "place", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def tell(place: str, size: int) -> None:
            os.pwrite(last, place.encode().ljust(LINE), 0)

        return set_traps(root, at, int(size * self.dice.random()), tell)

    def trace(self, root: Path, work: Callable[[Callable[[str, str], bool]], None]) -> dict[str, int]:
        """Runs `work` to its end; the places that it came by, in their order, and the size of what is written there."""

        def told() -> None:  # a write for each line: several threads come by places
            file = os.open(self.folder / "trace", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            work(set_traps(root, None, 0, lambda place, size: os.write(file, f"{place}\t{size}\n".encode())))

        self.must(told)
        places: dict[str, int] = {}
        for line in (self.folder / "trace").read_text().splitlines():
            place, size = line.split("\t")
            if place.startswith("written "):
                places[place.replace("written", "write", 1)] = int(size)
            else:
                places[place] = 0
        return places

    def must_state(self, run: str, of: Callable[[RunPaths], State] = state) -> State:
        """The state of a run, read in a process of its own: digests are made by threads, after which none is forked."""

        def work() -> None:
            (self.folder / "state").write_text(json.dumps(of(self.paths(run))))

        self.must(work)
        found: State = json.loads((self.folder / "state").read_text())
        return found

    def attempt(self, scenario: str, place: str | None, work: Work, first: bool = False) -> bool:
        """Runs `work`, which is to be killed, and which compares what it ends with where it is not; whether it was.

        Args:
            scenario: the scenario's name.
            place: where it is to die; None takes the last place that it came by.
            work: checks what the kill before it left, and goes on.
            first: whether no kill came before it, so that nothing may be wrong with what it finds.
        """
        code = self.run(work)
        return self.note(scenario, place or self.place(), code, first)

    def place(self) -> str:
        """The last place that the last process came by."""
        file = self.folder / "place"
        return (file.read_text().strip() if file.exists() else "") or "begin"

    def note(self, scenario: str, place: str, code: int, first: bool = False) -> bool:
        """Notes what came of a process; whether it was killed."""
        if code in KILLED:
            self.kills.append(Kill(scenario, place, "resumed"))
        elif code == 0:
            self.missed[scenario] += 1
        elif first:
            raise AssertionError(self.wrong(code))
        else:
            self.spoil(code)
        self._noted(self)
        return code in KILLED

    def spoil(self, code: int) -> None:
        """Notes that what came of the last kill is wrong after all."""
        last = self.kills.pop()
        self.kills.append(Kill(last.scenario, last.place, self.wrong(code)))

    def end(self, work: Work) -> None:
        """Runs `work`, which goes on after the last kill to the end and compares."""
        if (code := self.run(work)) != 0:
            self.spoil(code)
            self._noted(self)

    def at_random(self, scenario: str, work: Work, longest: float, first: bool = False) -> bool:
        """Kills `work` from outside at a random moment; whether it was not over before."""
        pid, moment = self.fork(work), time.monotonic() + self.dice.random() * longest
        while time.monotonic() < moment and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return self.note(scenario, "at random, from outside", code, first)

    def copy(self, run: str, other: str) -> None:
        """A copy of a whole run under another name; the files of stages, which nobody writes into, are shared."""

        def share(source: str, target: str) -> None:
            (os.link if "/iterations/" in source else shutil.copyfile)(source, target)

        shutil.copytree(self.paths(run).root, self.paths(other).root, copy_function=share)
        config = self.paths(other).config
        config.write_text(config.read_text().replace(f"run: {run}", f"run: {other}"))

    def remove(self, run: str) -> None:
        """Forgets a run."""
        shutil.rmtree(self.paths(run).root, ignore_errors=True)

    def wrong(self, code: int) -> str:
        """What the last process left in its log."""
        return f"exit code {code}: {(self.folder / 'log').read_text()[-2000:]}"


def thinned(places: dict[str, int], many: tuple[str, ...], dice: Random) -> list[str]:
    """The places, of those that are frequent one in ten."""
    return [place for place in places if not place.startswith(many) or dice.random() < 0.1]


def spread(places: list[str], count: int, dice: Random) -> list[str]:
    """So many of them, spread over all, in their order."""
    count = min(count, len(places))
    return [places[int((i + dice.random()) * len(places) / count)] for i in range(count)]
