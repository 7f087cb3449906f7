"""What makes files on disk be there whole or not at all: sync, then rename."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.contract.errors import ArtifactError
from stages.contract.manifest import Manifest
from stages.contract.paths import MANIFEST, RunPaths


def commit(paths: RunPaths, k: int, place: str, manifest: Manifest) -> Path | None:
    """Syncs the partial folder, writes the manifest last, and renames the folder into place.

    The parts that it was made of, which are needed no more once it is whole, are removed before it is in place.
    What was in place moves to `superseded/` first, and back where an error comes in between. A kill between the two
    renames leaves the place empty and the new output, whole, beside it: `finish` completes that.

    Returns:
        Where what was in place is now; None where the place was empty.
    """
    partial, target = paths.partial(k, place), paths.stage(k, place)
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    write_text(partial / MANIFEST, manifest.model_dump_json(indent=1))
    _remove(paths.parts(k, place))
    old = next_superseded(paths, k, place)
    try:
        if target.exists():
            old.parent.mkdir(parents=True, exist_ok=True)
            target.rename(old)
            for folder in (old.parent, old.parent.parent):
                sync(folder)
        partial.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    for folder in (target.parent, paths.iterations, paths.root):
        sync(folder)
    return old if old.exists() else None


def next_superseded(paths: RunPaths, k: int, place: str) -> Path:
    """Where the next rerun will move what it replaces."""
    n = 1
    while (folder := paths.superseded(k, place, n)).exists():
        n += 1
    return folder


def finish(iterations: Path) -> None:
    """Puts in place what a killed process had made whole, where nothing is; to be called by the run's one writer.

    A partial folder with a manifest is whole, since the manifest is written last, and by a rename. One whose place is
    taken is an attempt that was given up, and removed, like files that were still being written into a folder in place.
    """
    for partial in sorted(iterations.glob("*/.*.partial")):
        target = partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))
        if target.exists():
            discard(partial)
        elif (partial / MANIFEST).is_file():
            _remove(target.with_name(f".{target.name}.parts"))
            partial.rename(target)
            sync(target.parent)
    for growing in iterations.glob("[0-9]*/[!.]*/.*.partial"):
        if growing.is_file() and not any(path.is_symlink() for path in (growing.parent, growing.parent.parent)):
            growing.unlink()


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def discard(partial: Path) -> None:
    """Removes a partial folder, its manifest first: what a kill in between leaves is not taken for whole."""
    (partial / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(partial)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that is renamed to it, synced, when the block ends without an error; else it is removed.

    One that a killed process left is begun anew.

    Raises:
        ArtifactError: something is at `target` already, or another live process is making it.
    """
    target = target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(f"{target}: is there already; name a folder that is empty or not there yet")
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(f"{target}: another process is making it; wait until it is done") from None
        try:
            _empty(partial)
            yield partial
            for path in [*partial.rglob("*"), partial]:
                sync(path)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(target.parent)
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def sync(path: Path) -> None:
    """Forces a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all."""
    new = aside(path)
    try:
        new.write_text(text, encoding="utf-8")
        sync(new)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync(path.parent)


def aside(path: Path) -> Path:
    """Where a file grows before it is renamed into place."""
    return path.with_name(f".{path.name}.partial")
