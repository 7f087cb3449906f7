"""What counts as a stage of a run: its folder in place, inside the run; nothing aside, and nothing behind a link."""

import shutil
from pathlib import Path

import pytest

from flows.reading import sql
from flows.runs import History, chosen
from flows.verify import verify
from stages.contract.manifest import stage_folders
from stages.contract.paths import RunPaths

KEPT = Path(__file__).parents[1] / "data" / "runs" / "version2"


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    shutil.copytree(KEPT, tmp_path / "artifacts" / "old")
    return RunPaths.named(tmp_path / "artifacts", "old")


def test_what_stands_aside_counts_for_nothing(paths: RunPaths) -> None:
    before = stage_folders(paths.iterations)
    shutil.copytree(paths.iteration(2), paths.iterations / "0002.old")
    shutil.copytree(paths.iteration(2), paths.iterations / "3")
    shutil.copytree(paths.stage(2, "sample"), paths.partial(4, "sample"))
    assert stage_folders(paths.iterations) == before
    assert [folder.relative_to(paths.iterations).as_posix() for folder in before][3:7] == [
        f"0001/{stage}" for stage in ("advantage", "sample", "score", "update")
    ]
    assert History(paths).last() == 2
    assert verify(paths).problems == []
    assert chosen(paths, "update/manifest.json", None, "policy") == 2
    assert sql(paths, "select max(iteration) as k, count(*) as n from scores").row(0) == (2, 36)
