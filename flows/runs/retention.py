"""The retention rule: what of a run's weights and optimizer states is removed. The only code that deletes an output."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.config.schema import KeepConfig, RunConfig
from flows.runs.access import background_of, check_inside
from flows.runs.history import History
from flows.runs.promotion import promoted
from flows.runs.requirements import needed_by
from flows.runs.staleness import made_by
from stages.contract.commit import sync
from stages.contract.errors import ArtifactError
from stages.contract.manifest import stage_folders
from stages.contract.paths import RunPaths
from stages.contract.pruned import note_pruned

WEIGHTS = ("policy/", "average/", "critic/")
OPTIMIZERS = ("optimizer.safetensors", "critic_optimizer.safetensors")


@dataclass(frozen=True)
class Removal:
    """Files that the rule removes from one stage's folder, or a whole folder of what was superseded."""

    folder: Path
    files: tuple[str, ...]
    """Names inside the folder; none for the whole folder."""
    size: int
    """Bytes that no other name of the same files keeps on the disk."""


def plan(paths: RunPaths, config: RunConfig, keep: KeepConfig, unfinished: int) -> list[Removal]:
    """What the rule removes.

    Never iteration 0, the last whole iteration and what follows it, what the next one reads, the promoted policy, and
    what a stage that is not current was made from.

    Args:
        paths: the run.
        config: the run's configuration.
        keep: the rule.
        unfinished: the first iteration of which a stage is not current.

    Raises:
        ArtifactError: what would be removed lies outside the run, behind a symbolic link.
    """
    history = History(paths)
    last = _last_whole(history, unfinished - 1)
    held = {k for k in range(1, last) if _names(history, k)}
    kept = {k for k in held if k > last - keep.last or (keep.every is not None and k % keep.every == 0)}
    kept |= {*_best(history, config, [*held, last], keep.best), promoted(paths) or 0} | _needed(
        history, config, last + 1
    )
    out = []
    for k in sorted(held):
        names = _names(history, k)
        if k in kept:
            names = [name for name in names if name in OPTIMIZERS and keep.optimizer == "last"]
        if names:
            out.append(_removal(paths.stage(k, "update"), names))
    if not keep.superseded:
        for folder in sorted((paths.root / "superseded").glob("*/*")):
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            out.append(Removal(folder, (), _removal(folder, names).size))
    for removal in out:
        for name in removal.files or ("",):
            check_inside(paths, removal.folder / name)
    return out


def remove(removals: list[Removal]) -> None:
    """Removes it. Each folder's removal is noted in it before; a kill in between leaves a run that is whole."""
    for removal in removals:
        if not removal.files:
            shutil.rmtree(removal.folder)
            continue
        note_pruned(removal.folder, frozenset(removal.files))
        for name in removal.files:
            (removal.folder / name).unlink(missing_ok=True)
        for inside in {(removal.folder / name).parent for name in removal.files} - {removal.folder}:
            if not any(inside.iterdir()):
                inside.rmdir()
        sync(removal.folder)


def retain(paths: RunPaths, config: RunConfig, done: int, say: Callable[[str], None]) -> None:
    """Follows the configured rule, where there is one, once iteration `done` is whole. The caller holds the lock.

    Raises:
        StorageError: the optimizer state of that iteration could not be written.
    """
    if config.keep is None:
        return
    if (background := background_of(paths)) is not None:
        background.wait()  # until then it may have to be made again from what is to be removed
    try:
        remove(plan(paths, config, config.keep, done + 1))
        _clear_emptied(paths)
    except (OSError, ArtifactError) as error:
        say(f"the rule `keep` could not be followed, and nothing more was removed: {error}")


def _clear_emptied(paths: RunPaths) -> None:
    """Removes the folders of weights that a kill left empty."""
    for folder in paths.iterations.glob("*/update/*/"):
        if not any(folder.iterdir()):
            folder.rmdir()


def _names(history: History, k: int) -> list[str]:
    """The weights and optimizer states of iteration `k` that are there."""
    folder = history.paths.stage(k, "update")
    if not any((folder / name).exists() for name in (*WEIGHTS, *OPTIMIZERS)):
        return []
    manifest = history.manifest(k, "update")
    names = manifest.outputs if manifest else {}
    return [name for name in names if (name in OPTIMIZERS or name.startswith(WEIGHTS)) and (folder / name).is_file()]


def _last_whole(history: History, k: int) -> int:
    """The last iteration up to `k` whose weights and optimizer state are all there."""
    while k > 0 and (history.manifest(k, "update") is None or history.damaged(k, "update")):
        k -= 1
    return k


def _best(history: History, config: RunConfig, held: list[int], count: int) -> list[int]:
    """Those of the highest held-out success, the earlier one first where two are equal.

    What was evaluated with other settings than the run's, by a night or by hand, is not comparable and left out.
    """
    found = [(k, m) for k in held if (m := history.manifest(k, "evaluate")) and config.made_alike("evaluate", m.config)]
    success = {k: value for k, m in found if (value := m.metrics.get("heldout_success")) is not None}
    return sorted(success, key=lambda k: (-success[k], k))[:count]


def _needed(history: History, config: RunConfig, k: int) -> set[int]:
    """Iterations whose update is read by iteration `k` as configured, or was by a stage of it or of a later one."""
    read = needed_by(history.paths, history.config(k, config), k)
    needed = {int(path.relative_to(history.paths.iterations).parts[0]) for path in read}
    for folder in stage_folders(history.paths.iterations):
        if (j := int(folder.parent.name)) >= k:
            manifest = history.manifest(j, folder.name)
            makers = [made_by(name) for name in (manifest.inputs if manifest else ())]
            needed |= {made[0] for made in makers if made is not None and made[1] == "update"}
    return needed


def _removal(folder: Path, names: list[str]) -> Removal:
    stats = [(folder / name).stat() for name in names]
    return Removal(folder, tuple(names), sum(stat.st_size for stat in stats if stat.st_nlink == 1))
