"""Reading a run while another process may write to it: what is read together has to belong together."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.contract.errors import GrpoError, RunInUseError
from stages.contract.manifest import stage_folders
from stages.contract.paths import MANIFEST, RunPaths
from stages.contract.pruned import PRUNED


@contextmanager
def steady(paths: RunPaths, up_to: int | None = None) -> Iterator[None]:
    """Refuses what a block has read of a run, and how it failed, where a stage was made again or pruned meanwhile.

    Stages that were done for the first time meanwhile are no reason.

    Args:
        paths: the run.
        up_to: the last iteration that is read; None for all.

    Raises:
        RunInUseError: what was read does not belong together.
    """
    before = _marks(paths, up_to)
    try:
        yield
    except (GrpoError, OSError) as error:
        _check(paths, up_to, before, error)
        raise
    _check(paths, up_to, before, None)


def _check(paths: RunPaths, up_to: int | None, before: dict[Path, tuple[int, int]], cause: Exception | None) -> None:
    now = _marks(paths, up_to)
    files = [file for file in {**before, **now} if file in before or file.name == PRUNED]
    if moved := next((file for file in files if now.get(file) != before.get(file)), None):
        where = f"{paths.relative(moved.parent)} of {paths.root}"
        raise RunInUseError(f"{where} was written to while it was read: give the same command again") from cause


def _marks(paths: RunPaths, up_to: int | None) -> dict[Path, tuple[int, int]]:
    """What tells one making of a stage, or one pruning of it, from the next."""
    found: dict[Path, tuple[int, int]] = {}
    for folder in stage_folders(paths.iterations):
        if up_to is None or int(folder.parent.name) <= up_to:
            for file in (folder / MANIFEST, folder / PRUNED):
                with suppress(FileNotFoundError):
                    stat = file.stat()
                    found[file] = stat.st_ino, stat.st_mtime_ns
    return found
