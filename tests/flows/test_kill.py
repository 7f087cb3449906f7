"""A training that is killed in each of its stages ends with the same bytes as one that is not."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from stages.contract.manifest import read_manifest
from tests.flows.conftest import GRPO, SMALL, environment, run_grpo

STAGES = ("prompts", "warmstart", "sample", "score", "advantage", "update", "evaluate")


def digests(folder: Path) -> dict[str, str]:
    """Digests of all outputs of all stages of the run."""
    out: dict[str, str] = {}
    for path in sorted((folder / "artifacts" / "small" / "iterations").glob("*/*/manifest.json")):
        manifest = read_manifest(path.parent)
        assert manifest is not None
        place = f"{path.parts[-3]}/{path.parts[-2]}"
        out |= {f"{place}/{name}": record.digest for name, record in manifest.outputs.items()}
    return out


def start(folder: Path) -> subprocess.Popen[str]:
    command = [str(GRPO), "train", str(SMALL)]
    return subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def partial(folder: Path, stage: str) -> Path | None:
    """The folder in which the stage is at work just now."""
    iterations = folder / "artifacts" / "small" / "iterations"
    if stage in {"prompts", "warmstart"}:
        path = iterations / "0000" / f".{'update' if stage == 'warmstart' else stage}.partial"
        return path if path.exists() else None
    return next((path for k in range(1, 4) if (path := iterations / f"{k:04d}" / f".{stage}.partial").exists()), None)


def kill_inside(folder: Path, stage: str) -> bool:
    """Starts the training and kills it while the stage is at work; False where it was over before the signal came."""
    process = start(folder)
    try:
        deadline = time.monotonic() + 300
        while partial(folder, stage) is None:
            assert process.poll() is None, f"ended before {stage}: {process.stdout.read()}"
            assert time.monotonic() < deadline
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children), "the server outlived its parent"
    left = partial(folder, stage)
    return left is not None and not (left / "manifest.json").exists()


@pytest.fixture(scope="module")
def broken_folder(tmp_path_factory):
    """A folder with a run that was killed once in each stage, then trained to its end."""
    folder = tmp_path_factory.mktemp("broken")
    for stage in STAGES:
        # A stage of some milliseconds may end before the signal comes; iterations 1 to 3 give a chance each.
        assert kill_inside(folder, stage) or kill_inside(folder, stage), f"never killed inside {stage}"
    done = run_grpo(folder, "train", SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "took over the lock of process" in done.stdout
    return folder


def test_every_file_of_every_stage_has_the_same_digest(small_folder, broken_folder):
    expected = digests(small_folder)
    assert {name.split("/")[0] for name in expected} == {"0000", "0001", "0002", "0003"}
    assert "0003/update/policy/model.safetensors" in expected
    assert "0003/update/optimizer.safetensors" in expected
    assert digests(broken_folder) == expected


def test_nothing_half_written_is_left(broken_folder):
    run = broken_folder / "artifacts" / "small"
    assert list(run.rglob("*.partial")) == []
    assert not (run / "superseded").exists()


ASK = """
import asyncio, json, sys
from pathlib import Path
from flows.server import prefect_server
with prefect_server(Path("artifacts")) as wait_for_server:
    from prefect.client.orchestration import get_client
    wait_for_server()
    async def ask():
        async with get_client() as client:
            tasks = await client.read_task_runs(limit=200)
            flows = await client.read_flow_runs(limit=200)
            return [[t.name, t.state_name] for t in tasks], [f.name for f in flows]
    print(json.dumps(asyncio.run(ask())))
"""


def test_prefect_shows_what_was_reused(broken_folder):
    python = GRPO.with_name("python")
    done = subprocess.run(
        [python, "-c", ASK],
        cwd=broken_folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tasks, flows = json.loads(done.stdout.splitlines()[-1])
    assert ["prompts · small/0", "Reused"] in tasks
    assert ["prompts · small/0", "Completed"] in tasks
    assert ["update · small/3", "Completed"] in tasks
    assert any(name == "small · iteration 3" for name in flows)


def test_two_trainings_of_one_run_at_once_are_refused(tmp_path):
    first = start(tmp_path)
    try:
        deadline = time.monotonic() + 300
        while partial(tmp_path, "warmstart") is None:
            assert first.poll() is None, first.stdout.read()
            assert time.monotonic() < deadline
        os.kill(first.pid, signal.SIGSTOP)  # it stays where it is while the second one tries
        second = run_grpo(tmp_path, "stage", "prompts", "small", "--iteration", "0")
    finally:
        first.kill()
        first.communicate()
    assert second.returncode == 2
    assert f"in use by process {first.pid}" in second.stderr
    assert "Traceback" not in second.stdout + second.stderr
