"""A folder made from outside a run: whole or not at all, by one process at a time."""

import os
import subprocess
import sys

import pytest

from stages.contract.commit import new_folder
from stages.contract.errors import ArtifactError


def made(target):
    with new_folder(target) as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "a.txt").write_text("a")
        assert not target.exists() or not any(target.iterdir())


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "folders that are missing too"])
def test_the_folder_is_there_when_the_block_ends(tmp_path, before):
    target = tmp_path / ("a/b/made" if "missing" in before else "made")
    if "empty" in before:
        target.mkdir()
    made(target)
    assert (target / "inside" / "a.txt").read_text() == "a"
    assert [path.name for path in target.parent.iterdir()] == ["made"]


def test_a_relative_folder_counts_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_folder(type(tmp_path)("made")) as folder:
        (folder / "a.txt").write_text("a")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("there", ["a file", "a folder"])
def test_what_is_there_is_never_touched(tmp_path, there):
    target = tmp_path / "mine"
    if there == "a file":
        target.write_text("irreplaceable")
    else:
        target.mkdir()
        (target / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(ArtifactError, match="mine: is there already; name a folder that is empty"):
        made(target)
    assert (target if there == "a file" else target / "thesis.tex").read_text() == "irreplaceable"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_block_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "made") as folder:
        (folder / "a.txt").write_text("a")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_begun_anew(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from stages.contract.commit import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'old.txt').write_text('old'); (folder / 'deep').mkdir(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "made")], env=os.environ, check=False, timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == [".made.partial"]
    assert (tmp_path / ".made.partial" / "old.txt").exists()
    made(tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["inside"]


def test_two_processes_do_not_make_the_same_folder(tmp_path):
    with new_folder(tmp_path / "made") as folder:
        (folder / "first.txt").write_text("1")
        with pytest.raises(ArtifactError, match="another process is making it"):
            made(tmp_path / "made")
        assert (folder / "first.txt").exists()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["first.txt"]
