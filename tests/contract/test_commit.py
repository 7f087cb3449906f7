"""Between a stage's two renames, and after kills: the state before or the state after, never neither."""

import os
from pathlib import Path

import pytest

from stages.contract.commit import aside, finish, write_text
from stages.contract.errors import StorageError
from stages.contract.manifest import read_manifest
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job, open_stage


@pytest.fixture
def paths(tmp_path):
    return RunPaths.named(tmp_path, "night")


def make(paths, text, **overrides):
    with open_stage(Job(paths, 1, seed=0, overrides=overrides), "score", "score", {}) as desk:
        (desk.folder / "scores").write_text(text)
    return paths.stage(1, "score")


def failing(monkeypatch, name, place, error):
    """Has the n-th call of a function fail whose first argument lies in the run, counted from 0."""
    real, seen = getattr(os, name), []

    def call(path, *rest, **more):
        seen.append(path)
        if len(seen) == place + 1:
            raise error
        return real(path, *rest, **more)

    monkeypatch.setattr(os, name, call)
    return seen


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["Ctrl-C", "full"])
def test_an_error_between_the_renames_brings_back_what_was_there_with_its_settings(paths, monkeypatch, error):
    folder = make(paths, "before", **{"score.x": 1})
    with monkeypatch.context() as patch:
        renames = failing(patch, "rename", 1, error)
        with pytest.raises((KeyboardInterrupt, StorageError)):
            make(paths, "after")
    assert [Path(path).name for path in renames] == ["score", ".score.partial", "score.1"]
    assert (folder / "scores").read_text() == "before"
    assert read_manifest(folder).overrides == {"score.x": 1}
    assert not list(paths.root.rglob("*.partial"))


def test_each_rename_comes_after_the_content_is_on_the_disk(paths, monkeypatch):
    done = []
    real_sync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(Path(f"/proc/self/fd/{fd}").readlink()), real_sync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append(("rename", Path(a), Path(b))), real_rename(a, b)))
    folder = make(paths, "first")
    partial = paths.partial(1, "score")
    renamed = done.index(("rename", partial, folder))
    before, after = done[:renamed], done[renamed + 1 :]
    assert {partial / "scores", aside(partial / "manifest.json"), partial} <= set(before)
    assert after == [folder.parent, paths.iterations, paths.root]


def test_a_folder_whose_manifest_is_gone_is_not_taken_for_whole(paths, monkeypatch):
    folder = make(paths, "first")
    partial = paths.partial(1, "score")
    folder.rename(partial)
    (partial / "more").write_text("")
    with monkeypatch.context() as patch:  # a kill after the first file that is removed
        failing(patch, "unlink", 1, SystemExit())
        with pytest.raises(SystemExit):
            make(paths, "again")
    finish(paths.iterations)
    assert not folder.exists()


def test_the_parts_of_what_is_whole_are_gone_before_it_is_in_place(paths):
    parts = paths.parts(1, "score")
    parts.mkdir(parents=True)
    (parts / "a.parquet").write_text("a part")
    folder = make(paths, "first")
    assert not parts.exists()
    folder.rename(paths.partial(1, "score"))  # as a kill before the rename leaves it, and one inside the removal
    parts.mkdir()
    finish(paths.iterations)
    assert (folder / "scores").read_text() == "first"
    assert not parts.exists()


def test_an_attempt_that_was_given_up_is_removed_where_its_place_is_taken(paths):
    folder = make(paths, "given up")
    folder.rename(paths.partial(1, "score"))
    make_other = paths.stage(1, "score")
    make_other.mkdir()
    (make_other / "scores").write_text("in place")
    finish(paths.iterations)
    assert (folder / "scores").read_text() == "in place"
    assert not list(paths.root.rglob("*.partial"))


def test_a_small_file_that_cannot_be_written_leaves_the_former_and_nothing_else(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "before")
    with monkeypatch.context() as patch:
        failing(patch, "fsync", 0, OSError(28, "No space left on device"))
        with pytest.raises(OSError, match="No space"):
            write_text(tmp_path / "a", "after")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"
