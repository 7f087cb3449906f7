"""A file that is written after its maker's commit: what it holds, and who can tell that it is coming."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages.contract.background import PIECE, Background, Growing, await_all, is_coming, pour
from stages.contract.commit import aside, finish
from stages.contract.digest import file_digest, parts_digest
from stages.contract.errors import ArtifactError, StorageError
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from stages.contract.weights import Serialised, read_tensors
from stages.contract.workspace import Job, open_stage

ROOT = Path(__file__).parents[2]


class Slow:
    """Ten megabytes whose last part comes when it is let go; the first time, for the digest, at once."""

    size = 10_000_000

    def __init__(self) -> None:
        self.go, self._times = threading.Event(), 0

    def parts(self) -> Iterator[memoryview]:
        self._times += 1
        yield memoryview(b"a" * 9_999_999)
        if self._times > 1:
            assert self.go.wait(60)
        yield memoryview(b"z")


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths.named(tmp_path, "night")


def make(paths: RunPaths, content: Slow, background: Background | None) -> Path:
    """A stage whose output is one table of nothing and one large file."""
    with open_stage(Job(paths, 1, seed=0, background=background), "update", "update", {}) as desk:
        (desk.folder / "small").write_text("weights")
        desk.write_later("large", content)
    return paths.stage(1, "update") / "large"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    types = (torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.int32, torch.float32, torch.float64)
    tensors = {f"é.{i}": (torch.arange(15).reshape(3, 5) - 7).to(kind) for i, kind in enumerate(types)}
    tensors |= {"steps": torch.tensor(12), 'a "quoted" one': torch.ones(()), "none": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "theirs")
    mixed = tensors | {"é.5": tensors["é.5"].t().contiguous().t()}  # the same, but not in one piece
    assert not mixed["é.5"].is_contiguous()
    ours = Serialised(mixed)
    assert b"".join(ours.parts()) == (tmp_path / "theirs").read_bytes()
    assert ours.size == (tmp_path / "theirs").stat().st_size
    assert parts_digest(ours.parts()) == file_digest(tmp_path / "theirs")


def test_what_was_read_stays_when_the_file_is_cut(tmp_path: Path) -> None:
    save_file({"a": torch.arange(1_000_000)}, tmp_path / "file")
    read = read_tensors(tmp_path / "file")
    os.truncate(tmp_path / "file", 100)
    assert torch.equal(read["a"], torch.arange(1_000_000))


def test_the_manifest_names_it_and_every_process_can_tell_that_it_is_coming(paths: RunPaths) -> None:
    content, background = Slow(), Background()
    large = make(paths, content, background)
    assert (large.parent / "small").read_text() == "weights"
    assert not large.exists()
    assert is_coming(large)
    with aside(large).open("rb") as file, pytest.raises(BlockingIOError):  # what another process sees
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    waiting = threading.Thread(target=await_all, args=(large.parent,))
    waiting.start()
    content.go.set()
    waiting.join(60)
    assert not waiting.is_alive()
    background.wait()
    manifest = read_manifest(large.parent)
    assert manifest is not None
    assert sorted(manifest.outputs) == ["large", "small"]
    assert manifest.outputs["large"].digest == file_digest(large)
    assert manifest.outputs["large"].size == large.stat().st_size == content.size
    assert sorted(path.name for path in large.parent.iterdir()) == ["large", "manifest.json", "small"]
    assert is_coming(large)
    assert not is_coming(large.with_name("other"))


def test_a_stage_that_reads_it_waits_for_it(paths: RunPaths) -> None:
    content, background = Slow(), Background()
    large = make(paths, content, background)
    threading.Timer(0.2, content.go.set).start()
    with open_stage(Job(paths, 2, seed=0, background=background), "update", "update", {}) as desk:
        assert desk.take(large).stat().st_size == content.size
        (desk.folder / "small").write_text("more")


def test_without_a_background_it_is_there_with_the_commit(paths: RunPaths) -> None:
    content = Slow()
    content.go.set()
    large = make(paths, content, None)
    assert large.read_bytes() == b"a" * 9_999_999 + b"z"
    manifest = read_manifest(large.parent)
    assert manifest is not None
    assert manifest.outputs["large"].digest == file_digest(large)


def test_a_file_of_several_pieces_is_its_parts_one_after_the_other(tmp_path: Path) -> None:
    whole = torch.randint(0, 256, (2 * PIECE + 12_345,), dtype=torch.uint8, generator=torch.manual_seed(1)).numpy().data
    cuts = [0, 8, 5000, PIECE - 1, PIECE + 7, len(whole)]
    path = tmp_path / "large"
    path.touch()
    assert pour(path, (whole[a:b] for a, b in pairwise(cuts)), threading.Event())
    assert path.read_bytes() == bytes(whole)


def test_a_stage_that_fails_leaves_no_trace_of_it(paths: RunPaths) -> None:
    before = open_files()
    with (
        pytest.raises(KeyboardInterrupt),
        open_stage(Job(paths, 1, seed=0, background=Background()), "update", "update", {}) as desk,
    ):
        desk.write_later("large", Slow())
        raise KeyboardInterrupt
    assert not paths.iteration(1).exists()
    assert open_files() == before


def test_writing_that_is_given_up_leaves_no_trace(paths: RunPaths) -> None:
    content, background = Slow(), Background()
    large = make(paths, content, background)
    threading.Timer(0.2, content.go.set).start()
    background.give_up()
    assert sorted(path.name for path in large.parent.iterdir()) == ["manifest.json", "small"]
    assert not is_coming(large)
    given_up = threading.Event()
    given_up.set()
    growing = aside(large)
    growing.write_bytes(b"")
    assert not pour(growing, content.parts(), given_up)
    assert growing.read_bytes() == b""


CHILD = """
import os, resource, signal, sys
from pathlib import Path
from stages.contract.background import Background
from stages.contract.errors import StorageError
from stages.contract.paths import RunPaths
from tests.contract.test_background import Slow, make

content, background = Slow(), Background()
large = make(RunPaths.named(Path(sys.argv[1]), "night"), content, background)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
resource.setrlimit(resource.RLIMIT_FSIZE, (9_999_999, resource.RLIM_INFINITY))  # no room for the last byte
content.go.set()
try:
    background.wait()
except StorageError as error:
    print(error)
background.wait()  # it is told once
"""


def child(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(folder), how]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_process_killed_while_it_writes_leaves_a_stage_to_be_made_again(paths: RunPaths) -> None:
    done = child(paths.root.parent, "kill")
    assert done.returncode == -signal.SIGKILL, done.stderr
    large = paths.stage(1, "update") / "large"
    assert aside(large).exists()
    assert not is_coming(large)
    await_all(large.parent)  # at once: nobody writes
    with (
        pytest.raises(ArtifactError, match=r"large: missing; run `grpo stage update night --iteration 1`"),
        open_stage(Job(paths, 2, seed=0), "update", "update", {}) as desk,
    ):
        desk.take(large)
    finish(paths.iterations)
    assert sorted(path.name for path in large.parent.iterdir()) == ["manifest.json", "small"]
    content = Slow()
    content.go.set()
    background = Background()
    make(paths, content, background)
    background.wait()
    assert large.stat().st_size == content.size
    assert not (paths.root / "superseded").exists()  # nothing was replaced that is not there again
    make(paths, content, None)
    assert (paths.superseded(1, "update", 1) / "large").exists()  # a whole output is kept


def test_what_lost_a_file_and_is_made_again_otherwise_is_kept(paths: RunPaths) -> None:
    content = Slow()
    content.go.set()
    make(paths, content, None).unlink()
    with open_stage(Job(paths, 1, seed=0), "update", "update", {}) as desk:
        (desk.folder / "small").write_text("other weights")
    assert (paths.superseded(1, "update", 1) / "small").read_text() == "weights"


def test_a_write_that_fails_is_told_where_it_is_waited_for(paths: RunPaths) -> None:
    done = child(paths.root.parent, "limit")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("writing large of iteration 1: file too large (")
    assert "raise the limit of a file's size" in done.stdout
    assert sorted(path.name for path in paths.stage(1, "update").iterdir()) == ["manifest.json", "small"]


def test_room_is_taken_before_anything_is_committed(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = open_files()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with (
            pytest.raises(StorageError, match="update of iteration 1: file too large"),
            open_stage(Job(RunPaths.named(tmp_path, "night"), 1, seed=0), "update", "update", {}) as desk,
        ):
            desk.write_later("large", Slow())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert open_files() == before
    assert not (tmp_path / "night/iterations/0001").exists()
    growing = Growing(tmp_path / "file", Slow())
    assert aside(tmp_path / "file").stat().st_size == Slow.size
    growing.close()


PEAK = """
import sys, threading
from pathlib import Path
import torch
from stages.contract.background import Growing
from stages.contract.digest import parts_digest
from stages.contract.weights import Serialised, read_tensors
from stages.model.config import OptimizerConfig
from stages.model.optim import Optimizer

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def grown(work):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    work()
    print(resident("VmHWM") - before)

def write():
    content = Serialised({"steps": torch.tensor(1)} | moments)
    parts_digest(content.parts())
    Growing(file, content).write(file.parent, threading.Event())

file = Path(sys.argv[1])
layers = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(12)))
optimizer = Optimizer(layers, OptimizerConfig())
kinds = ("exp_avg", "exp_avg_sq")
moments = {f"{kind}.{name}": torch.ones_like(p) for kind in kinds for name, p in layers.named_parameters()}
moments |= {f"step.{name}": torch.tensor(1.0) for name, _ in layers.named_parameters()}
parts_digest([memoryview(bytes(1 << 20))])
grown(write)
optimizer.restore(lambda: read_tensors(file))
grown(lambda: optimizer.steps)
assert optimizer.steps == 1
"""


def test_an_optimizer_state_is_held_once_while_it_is_written_and_while_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "optimizer.safetensors"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PEAK, str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    writing, reading = map(int, done.stdout.split())
    assert file.stat().st_size > 100_000_000
    assert writing < 0.2 * file.stat().st_size
    assert 0.9 * file.stat().st_size < reading < 1.2 * file.stat().st_size
