"""`grpo train` killed in the middle of a stage, with its server: the same command goes on, to the same bytes.

`tests/faults` kills everywhere else.
"""

import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from stages.contract.manifest import read_manifest
from tests.flows.conftest import GRPO, SMALL, environment, run_grpo


def digests(folder: Path) -> dict[str, str]:
    """Digests of all outputs of all stages of the run."""
    out: dict[str, str] = {}
    for path in sorted((folder / "artifacts" / "small" / "iterations").glob("*/*/manifest.json")):
        manifest = read_manifest(path.parent)
        assert manifest is not None
        place = f"{path.parts[-3]}/{path.parts[-2]}"
        out |= {f"{place}/{name}": record.digest for name, record in manifest.outputs.items()}
    return out


def half_made(folder: Path) -> list[Path]:
    """The updates that are at work just now, with no manifest yet."""
    partial = (folder / "artifacts" / "small" / "iterations").glob("000[1-3]/.update.partial")
    return [path for path in partial if not (path / "manifest.json").exists()]


def stop_inside(process: subprocess.Popen[str], folder: Path) -> None:
    """Stops the training while it is at an update; where one ends before the signal comes, the next one serves."""
    deadline = time.monotonic() + 300
    while True:
        while not half_made(folder):
            assert process.poll() is None, f"ended before: {process.stdout.read()}"
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        if half_made(folder):
            return
        process.send_signal(signal.SIGCONT)


@dataclass
class Broken:
    """What came of a training that was killed inside an update, and trained to its end."""

    folder: Path
    iteration: int
    """In which it was killed."""
    pid: int
    refused: subprocess.CompletedProcess[str]
    """A second command, while the first one had the run."""
    again: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    process = subprocess.Popen(
        [str(GRPO), "train", str(SMALL)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        stop_inside(process, folder)
        refused = run_grpo(folder, "stage", "prompts", "small", "--iteration", "0")
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    finally:
        process.kill()
        process.communicate()
    (half,) = half_made(folder)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "the server, or a worker, outlived its parent"
        time.sleep(0.05)
    return Broken(folder, int(half.parent.name), process.pid, refused, run_grpo(folder, "train", SMALL))


def test_it_goes_on_and_ends_with_the_same_bytes(small_folder, broken):
    assert broken.again.returncode == 0, broken.again.stdout + broken.again.stderr
    assert f"took over the lock of process {broken.pid} on" in broken.again.stdout
    expected = digests(small_folder)
    assert {name.split("/")[0] for name in expected} == {"0000", "0001", "0002", "0003"}
    assert "0003/update/policy/model.safetensors" in expected
    assert "0003/update/optimizer.safetensors" in expected
    assert digests(broken.folder) == expected
    assert list((broken.folder / "artifacts/small").rglob("*.partial")) == []
    assert not (broken.folder / "artifacts/small/superseded").exists()


def test_prefect_shows_what_was_reused(broken):
    with closing(sqlite3.connect(broken.folder / "artifacts/.prefect/prefect.db")) as database:
        tasks = set(database.execute("select name, state_name from task_run"))
        flows = {name for (name,) in database.execute("select name from flow_run")}
    before, after = (f"{stage} · small/{broken.iteration}" for stage in ("advantage", "update"))
    assert {
        (before, "Completed"),
        (before, "Reused"),
        (after, "Completed"),
        ("prompts · small/0", "Completed"),
    } <= tasks
    assert (after, "Reused") not in tasks
    assert "small · iteration 3" in flows


def test_a_second_command_of_the_run_is_refused_meanwhile(broken):
    assert broken.refused.returncode == 2
    assert f"in use by process {broken.pid}" in broken.refused.stderr
    assert "Traceback" not in broken.refused.stdout + broken.refused.stderr
