"""The optimizer state is written while the run goes on: what that window may hold, and what a death in it costs."""

import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.config.schema import KeepConfig, RunConfig
from flows.execution.run_stage import perform
from flows.inspection.verify import verify
from flows.runs.access import held, open_run
from flows.runs.forking import fork
from flows.runs.history import History
from flows.runs.retention import retain
from flows.runs.staleness import examine
from stages.contract import background
from stages.contract.background import is_coming
from stages.contract.commit import aside
from stages.contract.errors import RunInUseError, StorageError
from stages.contract.paths import RunPaths
from tests.faults.range import digests
from tests.flows.conftest import ROOT, environment, run_grpo

KILLED = """
import os, resource, signal, sys
from pathlib import Path
from flows.execution.run_stage import perform
from flows.runs.access import held
from stages.contract import background
from stages.contract.paths import RunPaths
from tests.faults.test_window import gate

paths = RunPaths.named(Path(sys.argv[1]), "small")
with held(paths, print):
    at, go = gate()
    perform(paths.root, "update", 3, {})
    assert at.wait(60)
    perform(paths.root, "evaluate", 3, {})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))  # ends it in the middle of the write
    go.set()
"""


def gate() -> tuple[threading.Event, threading.Event]:
    """Holds back what is written in the background: an event that it has come there, and one that lets it go on."""
    at, go, pour = threading.Event(), threading.Event(), background.pour

    def held_back(*arguments: Any) -> bool:
        at.set()
        assert go.wait(120)
        return pour(*arguments)

    background.pour = held_back
    return at, go


@pytest.fixture
def gated() -> Iterator[tuple[threading.Event, threading.Event]]:
    pour = background.pour
    at, go = gate()
    yield at, go
    go.set()
    background.pour = pour


@pytest.fixture
def paths(small_folder: Path, tmp_path: Path) -> RunPaths:
    """The small run, of whose last iteration update and evaluate are to be made."""
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "artifacts/small")
    paths = RunPaths.named(tmp_path / "artifacts", "small")
    for stage in ("update", "evaluate"):
        shutil.rmtree(paths.stage(3, stage))
    return paths


@pytest.fixture
def whole(small_folder: Path) -> dict[str, str]:
    return digests(RunPaths.named(small_folder / "artifacts", "small"))


def config(paths: RunPaths) -> RunConfig:
    return open_run(paths.root.parent, "small")[1]


def not_current(paths: RunPaths) -> list[tuple[str, str]]:
    states = examine(History(paths), config(paths), 3)
    return [(state.stage, state.reason) for state in states if state.status != "current"]


def test_in_the_window_the_run_goes_on_and_others_see_what_is_coming(paths, whole, gated, tmp_path):
    at, go = gated
    file = paths.stage(3, "update") / "optimizer.safetensors"
    with held(paths, print):
        perform(paths.root, "update", 3, {})
        assert at.wait(60)
        perform(paths.root, "evaluate", 3, {})
        assert not file.exists() and is_coming(file)
        assert not_current(paths) == []
        seen = run_grpo(tmp_path, "status", "small")
        assert seen.returncode == 0, seen.stderr
        assert "stale" not in seen.stdout
        forking = threading.Thread(target=fork, args=(tmp_path / "artifacts", "small", 3, "child", {}, print))
        forking.start()
        with pytest.raises(RunInUseError), held(paths, print):  # one writer, as long as it is written
            pass
        go.set()
        forking.join(60)
    child = RunPaths.named(tmp_path / "artifacts", "child")
    for run in (paths, child):
        assert digests(run) == whole
        assert verify(run).problems == []
    assert (child.stage(3, "update") / file.name).samefile(file)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("something else")], ids=["Ctrl-C", "error"])
def test_what_ends_the_command_does_not_end_the_write(error, paths, whole, gated):
    at, go = gated
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        go.set()

    with pytest.raises(type(error)), held(paths, say):
        perform(paths.root, "update", 3, {})
        assert at.wait(60)
        if isinstance(error, Exception):
            go.set()
        raise error
    told = [text.partition(",")[0] for text in said]
    assert told == ([] if isinstance(error, Exception) else ["writing optimizer.safetensors of iteration 3"])
    perform(paths.root, "evaluate", 3, {})
    assert digests(paths) == whole
    assert verify(paths).problems == []


def test_a_process_killed_in_the_window_has_its_update_run_again_to_the_same_bytes(paths, whole):
    command = [sys.executable, "-c", KILLED, str(paths.root.parent)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGXFSZ, done.stderr
    file = paths.stage(3, "update") / "optimizer.safetensors"
    assert aside(file).exists()
    (problem,) = verify(paths).problems
    assert (problem.file, problem.stage, problem.iteration) == (paths.relative(file), "update", 3)
    assert problem.problem == "missing: its process ended while it was written"
    assert not_current(paths) == [
        ("update", "optimizer.safetensors is damaged or missing"),
        ("evaluate", "update of iteration 3 is not current"),
    ]
    said: list[str] = []
    with held(paths, said.append):
        assert not aside(file).exists()
        perform(paths.root, "update", 3, {})
    assert "took over the lock" in said[0]
    assert not_current(paths) == []  # what was made from the policy meanwhile still holds
    assert digests(paths) == whole
    assert verify(paths).problems == []
    assert not (paths.root / "superseded").exists()


def fail(go: threading.Event) -> None:
    """Lets the write go on, for which there is no room any more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writing = next(thread for thread in threading.enumerate() if thread.name == "background")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        go.set()
        writing.join(60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_stops_the_next_stage_and_the_update_is_run_again(paths, whole, gated):
    at, go = gated
    with held(paths, print):
        perform(paths.root, "update", 3, {})
        assert at.wait(60)
        fail(go)
        with pytest.raises(StorageError, match=r"writing optimizer\.safetensors of iteration 3: file too large"):
            perform(paths.root, "evaluate", 3, {})
        assert not_current(paths)[0] == ("update", "optimizer.safetensors is damaged or missing")
        for stage in ("update", "evaluate"):
            perform(paths.root, stage, 3, {})
    assert digests(paths) == whole
    assert verify(paths).problems == []


def test_the_rule_removes_nothing_from_which_an_update_may_have_to_be_made_again(paths, whole, gated):
    at, go = gated
    keeping = config(paths).model_copy(update={"keep": KeepConfig(last=1, best=0)})
    before = paths.stage(2, "update") / "optimizer.safetensors"
    with held(paths, print):
        perform(paths.root, "update", 3, {})
        assert at.wait(60)
        fail(go)
        with pytest.raises(StorageError, match=r"writing optimizer\.safetensors of iteration 3"):
            retain(paths, keeping, 3, print)
        assert before.exists()
        perform(paths.root, "update", 3, {})
        retain(paths, keeping, 3, print)
        assert not before.exists()
    perform(paths.root, "evaluate", 3, {})
    assert digests(paths) == whole
    assert verify(paths).problems == []
