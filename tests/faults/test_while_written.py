"""Fork, replay, compare and lineage of a run that another process is writing: the truth, or a refusal in one sentence.

The reader is stopped at a place where it touches the run's files, the writer does its work, and the reader goes on.
"""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.execution.replay import replay
from flows.inspection.compare import compare
from flows.inspection.lineage import lineage
from flows.inspection.verify import verify
from flows.runs.access import open_run
from flows.runs.forking import fork
from flows.runs.history import History
from stages.contract.digest import file_digest
from stages.contract.errors import GrpoError, RunInUseError
from stages.contract.paths import RunPaths
from tests.flows.conftest import ROOT, environment

KEPT = Path(__file__).parents[1] / "data" / "runs" / "version2"
PLACES = 4
"""At so many of a reader's steps, spread over all, another process writes."""


class Writer:
    """The other process."""

    def __init__(self, runs: Path) -> None:
        command = [sys.executable, "-m", "tests.faults.writer", str(runs)]
        variables = environment() | {"PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._answer() == "ready"

    def does(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._answer() in {"done", "half-way"}

    def end(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written") / "artifacts"


@pytest.fixture(scope="module")
def writer(runs: Path) -> Iterator[Writer]:
    other = Writer(runs)
    yield other
    other.end()


def contents(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): file_digest(path) for path in files if path.name != "run.lock"}


def forked(runs: Path) -> object:
    new = fork(runs, "old", 2, "child", {}, print)
    assert verify(new).problems == []
    made = contents(new.root)
    del made["fork.json"]  # holds the time
    return made


def replayed(runs: Path) -> object:
    paths, config = open_run(runs, "old")
    return [stage | {"circumstances": {}} for stage in replay(paths, config, 2, "advantage", {})]


def compared(runs: Path) -> object:
    (one, left), (other, right) = open_run(runs, "old"), open_run(runs, "twin")
    return compare(History(one), left, History(other), right)


def traced(runs: Path) -> object:
    return lineage(runs / "old/iterations/0002/advantage/advantages.parquet")


READERS: dict[str, Callable[[Path], object]] = {
    "fork": forked,
    "replay": replayed,
    "compare": compared,
    "lineage": traced,
}


def set_out(runs: Path) -> None:
    """The run anew, with a fork of it that stays as it is."""
    shutil.rmtree(runs, ignore_errors=True)
    shutil.copytree(KEPT, runs / "old")
    shutil.copytree(KEPT, runs / "twin")
    config = runs / "twin/run.yaml"
    config.write_text(config.read_text().replace("run: old", "run: twin"))


def found(read: Callable[[Path], object], runs: Path) -> object:
    """What a reader says: its answer, or its refusal, which is one sentence."""
    try:
        return read(runs)
    except GrpoError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return error
    finally:
        shutil.rmtree(runs / "child", ignore_errors=True)


class Steps:
    """Counts the steps of this process to files of a run, and does something at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path, at: int = -1, then: Callable[[], None] = print) -> None:
        self.count = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any = ".", *rest: Any, **more: Any) -> Any:
                if isinstance(path, str | os.PathLike) and str(path).startswith(str(root)):
                    self.count += 1
                    if self.count == at:
                        then()
                return real(path, *rest, **more)

            return call

        for module, name in ((os, "stat"), (os, "open"), (os, "link"), (os, "scandir"), (os, "listdir"), (io, "open")):
            patch.setattr(module, name, counted(getattr(module, name)))


WORK = {
    "made again": ["rerun old 0.5"],
    "between two renames": ["half old 0.5", "go on"],
    "pruned": ["prune old"],
}


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("name", READERS)
def test_a_reader_tells_the_truth_or_refuses_in_one_sentence(name: str, work: str, runs: Path, writer: Writer) -> None:
    read, (begin, *rest) = READERS[name], WORK[work]
    set_out(runs)
    before = found(read, runs)
    assert not isinstance(before, GrpoError)
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch, runs / "old")
        found(read, runs)
    writer.does(begin)
    after = [found(read, runs)]  # also while the writer is half-way
    if rest:
        writer.does(rest[0])
        after.append(found(read, runs))
    refused = 0
    for i in range(PLACES):
        set_out(runs)
        at = 1 + steps.count * i // PLACES
        with pytest.MonkeyPatch.context() as patch:
            reached = Steps(patch, runs / "old", at, lambda: writer.does(begin))
            told = found(read, runs)
        assert reached.count >= at
        if rest:
            writer.does(rest[0])
        truths = [truth for truth in [before, *after] if not isinstance(truth, GrpoError)]
        refusals = [str(truth) for truth in after if isinstance(truth, GrpoError)]
        if isinstance(told, GrpoError):
            refused += 1
            assert isinstance(told, RunInUseError) or str(told) in refusals, told
        else:
            assert told in truths, told
        assert verify(RunPaths(runs / "old")).problems == [] or work != "pruned"
        assert sorted(path.name for path in runs.iterdir()) == ["old", "twin"]
    print(f"{name}, {work}: {steps.count} steps, {refused} of {PLACES} refused")
