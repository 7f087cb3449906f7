"""Killed anywhere, a training that is started again ends with the bytes of one that was not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.busy import default_threads
from tests.flows.conftest import ROOT, environment


def kill(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults.harness", *map(str, options)]
    variables = default_threads(environment()) | {"OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


def test_twenty_kills_lose_nothing(tmp_path):
    done = kill("--kills", 20, "--json", tmp_path / "kills.json")
    assert done.returncode == 0, done.stdout + done.stderr
    kills = json.loads((tmp_path / "kills.json").read_text())["kills"]
    assert len(kills) >= 20
    assert {each["outcome"] for each in kills} == {"resumed"}
    assert {each["scenario"] for each in kills} == {
        "one epoch a batch",
        "two kills in a row",
        "a rerun with --set",
        "a fork",
        "retention, shards, a critic and an average at once",
    }


@pytest.mark.long
def test_two_hundred_kills_lose_nothing():
    done = kill("--kills", 200, "--seed", 1, "--report", Path(__file__).with_name("results.md"))
    assert done.returncode == 0, done.stdout + done.stderr
