"""The command `grpo`, run as users run it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.flows.serving.served import Served

ROOT = Path(__file__).parents[2]
GRPO = Path(sys.executable).with_name("grpo")
SMALL = ROOT / "tests" / "data" / "small.yaml"
Grpo = Callable[..., subprocess.CompletedProcess[str]]


def environment() -> dict[str, str]:
    """The environment without what would lead to another server or another artifacts folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "GRPO"))}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}


def run_grpo(folder: Path, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `grpo` in a folder, with these variables beside its environment."""
    command = [str(GRPO), *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment() | variables, capture_output=True, text=True, timeout=1800, check=False
    )


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Served]":
    """One `grpo serve` for all tests: each uses runs of its own in it. `configs/small.yaml` is there to choose."""
    from tests.flows.serving.served import serving

    folder = tmp_path_factory.mktemp("served")
    (folder / "configs").mkdir()
    shutil.copy(SMALL, folder / "configs" / "small.yaml")
    with serving(folder) as server:
        yield server
