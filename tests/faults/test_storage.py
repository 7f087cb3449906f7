"""A disk that is full, read-only or somebody else's: one sentence, the former state, and the run goes on afterwards."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.execution.run_stage import perform
from flows.inspection.queries import status
from flows.runs.access import open_run
from stages.contract.errors import StorageError
from stages.contract.paths import RunPaths
from tests.flows.conftest import ROOT, SMALL, environment, run_grpo
from tests.flows.test_kill import digests

NOBODY = 65534
STAGES = [
    (0, "prompts"),
    (0, "warmstart"),
    *((3, name) for name in ("sample", "score", "advantage", "update", "evaluate")),
]


def mount(folder: Path, *options: str) -> None:
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "-t", "tmpfs", "-o", "size=16M", "tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def paths(small_folder: Path, small_disk: Path) -> RunPaths:
    """The small run on it."""
    shutil.copytree(small_folder / "artifacts/small", small_disk / "artifacts/small")
    return RunPaths.named(small_disk / "artifacts", "small")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill(disk: Path, left: int) -> Path:
    """Takes all room but `left` bytes."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(b"0" * (shutil.disk_usage(disk).free - left))
    return filler


def test_a_stage_on_a_full_disk_leaves_what_was_there_and_is_done_when_there_is_room(paths, small_disk):
    sizes = {path.name: path.stat().st_size for path in paths.stage(3, "update").rglob("*") if path.is_file()}
    weights_alone = sum(sizes.values()) - sizes["optimizer.safetensors"] // 2
    in_the_middle = [(0, "warmstart", 65536), (3, "update", 65536), (3, "update", weights_alone)]
    for k, stage, left in [*((k, stage, 0) for k, stage in STAGES), *in_the_middle]:
        before = contents(paths.root)
        filler = fill(small_disk, left)
        with pytest.raises(StorageError) as caught:
            perform(paths.root, stage, k, {})
        told = str(caught.value)
        assert told.startswith(f"{stage} of iteration {k}: no space left on device (")
        assert told.endswith("what was there before is as it was: make room, and give the same command")
        assert contents(paths.root) == before
        filler.unlink()
        assert not list(paths.root.rglob("*.partial"))
    for k, stage in STAGES:
        place = paths.stage(k, "update" if stage == "warmstart" else stage)
        before = {name: data for name, data in contents(place).items() if not name.endswith("manifest.json")}
        perform(paths.root, stage, k, {})
        assert {name: contents(place)[name] for name in before} == before
        shutil.rmtree(paths.root / "superseded")


def test_a_training_on_a_disk_that_fills_up_goes_on_when_there_is_room(small_folder, small_disk):
    subprocess.run(["mount", "-o", "remount,size=5M", str(small_disk)], check=True)  # Prefect's database is on it too
    first = run_grpo(small_disk, "train", SMALL)
    assert first.returncode == 2, first.stdout + first.stderr
    assert "Traceback" not in first.stdout + first.stderr
    assert "no space left on device" in first.stderr or "is full: make room" in first.stderr
    subprocess.run(["mount", "-o", "remount,size=64M", str(small_disk)], check=True)
    second = run_grpo(small_disk, "train", SMALL)
    assert second.returncode == 0, second.stdout + second.stderr
    assert digests(small_disk) == digests(small_folder)


def test_a_run_on_a_read_only_disk_can_be_looked_at_but_not_written(paths, small_disk):
    before = contents(paths.root)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(
        StorageError, match=r"score of iteration 2: read-only file system \(.*make the file system writ"
    ):
        perform(paths.root, "score", 2, {})
    done = run_grpo(small_disk, "stage", "score", "small", "--iteration", "2")
    assert done.returncode == 2
    assert "read-only file system" in done.stderr.lower()
    assert "Traceback" not in done.stdout + done.stderr
    states = [
        state["status"] for entry in status(*open_run(paths.root.parent, "small")) for state in entry["stages"].values()
    ]
    assert set(states) == {"current"}
    assert contents(paths.root) == before


PERFORM = """
import os, resource, sys
from contextlib import suppress
from pathlib import Path
from flows.execution.run_stage import perform
from stages.contract.errors import GrpoError

root, scratch, stage, user = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
perform(scratch, stage, 2, {})  # so that no library opens anything for the first time
if user != os.getuid():
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
for free in map(int, sys.argv[5:]):
    taken = []
    if free >= 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
    for file in taken[:free]:
        os.close(file)
    try:
        perform(root, stage, 2, {})
    except GrpoError as error:
        print(error)
    for file in taken[free:]:
        os.close(file)
"""


def perform_apart(root: Path, scratch: Path, stage: str, user: int, free: list[int]) -> list[str]:
    """Runs a stage as a user, in a process that may open as many files more (-1: any), once for each of `free`; what it
    says each time. `scratch` is done first."""
    done = subprocess.run(
        [sys.executable, "-c", PERFORM, *map(str, (root, scratch, stage, user, *free))],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_run_of_another_user_is_refused_and_left_alone(small_folder, tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root can run a process as another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = Path(folder) / "artifacts/small"
        shutil.copytree(small_folder / "artifacts/small", root)
        for path in [root.parent, root, *root.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        before = contents(root)
        told = perform_apart(root, shutil.copytree(root, tmp_path / "scratch/small"), "score", NOBODY, [-1])[0]
        assert told.startswith("score of iteration 2: permission denied (")
        assert "allow this user to write there" in told
        assert contents(root) == before


@pytest.mark.parametrize(("stage", "free"), [("score", [1, 2]), ("update", [1])])
def test_too_many_open_files_are_told_and_nothing_is_changed(stage, free, small_folder, tmp_path):
    root = tmp_path / "artifacts/small"
    shutil.copytree(small_folder / "artifacts/small", root)
    scratch = shutil.copytree(root, tmp_path / "scratch/small")
    before = contents(root)
    refusals = perform_apart(root, scratch, stage, os.getuid(), free)
    assert len(refusals) == len(free)
    for told in refusals:
        assert told.startswith(f"{stage} of iteration 2: too many open files (")
        assert "raise the limit of open files" in told
    assert contents(root) == before
