"""What makes files on disk be there whole or not at all: sync, then rename."""

import os
from pathlib import Path

from stages.contract.manifest import Manifest
from stages.contract.paths import MANIFEST, RunPaths


def commit(paths: RunPaths, k: int, place: str, manifest: Manifest) -> None:
    """Syncs the partial folder, writes the manifest last, and renames the folder into place."""
    partial, target = paths.partial(k, place), paths.stage(k, place)
    (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    if target.exists():
        n = 1
        while (old := paths.superseded(k, place, n)).exists():
            n += 1
        old.parent.mkdir(parents=True, exist_ok=True)
        target.rename(old)
        sync(old.parent)
    partial.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Forces a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    aside.replace(path)
    sync(path.parent)
