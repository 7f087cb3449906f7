"""From a file of a run back to all that it came from, by the manifests alone."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.config.stages import ITERATION, REWARD_MODEL, START
from flows.runs.forking import Fork, read_fork
from flows.runs.snapshot import steady
from flows.runs.staleness import made_by
from stages.contract.digest import file_digest
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.manifest import Manifest, read_manifest
from stages.contract.paths import MANIFEST, RunPaths
from stages.contract.pruned import pruned

Read = Callable[[Path], Manifest | None]
ORDER = (*START, REWARD_MODEL, *ITERATION, "evaluate")


def lineage(path: Path) -> dict[str, Any]:
    """What a file, or a whole folder of a stage, came from.

    An input is looked for where its maker writes, and where that holds another one by now, in what reruns superseded;
    one that lies in another run, from which a phase began, is followed there.

    Returns:
        run: the run's name; file: the name in the run; told: whether the file is as its manifest says; stages: those
        that it came from, the last one first, each with its run and folder, its inputs, the settings by which it
        departed from the run's configuration, and the run that it is shared with. An input has name, digest, run and
        folder of its maker, and its name in that: null for a file from outside all runs, and where the maker holds
        another one by now (`lost`).

    Raises:
        ConfigError: no such file, or none that a stage of a run made.
        RunInUseError: a stage of the run was made again meanwhile.
    """
    paths, folder = _place(path)
    with steady(paths):
        return _traced(path, paths, folder)


def _traced(path: Path, paths: RunPaths, folder: Path) -> dict[str, Any]:
    read = functools.cache(read_manifest)
    manifest = read(folder)
    if manifest is None:
        raise ConfigError(f"{folder}: holds no manifest; only what a stage has made whole has a lineage")
    fork_of = functools.cache(read_fork)
    waiting, found = [(paths, folder, manifest)], dict[Path, dict[str, Any]]()
    while waiting:
        run, at, made = waiting.pop()
        if at in found:
            continue
        found[at] = _stage(run, fork_of(run), at, made, read)
        waiting += _makers(run, made, read)
    stages = sorted(found.values(), key=lambda s: (s["iteration"], ORDER.index(s["stage"]), s["folder"]), reverse=True)
    runs = list(dict.fromkeys(stage["run"] for stage in found.values()))
    stages.sort(key=lambda stage: runs.index(stage["run"]))
    name = _whole(path).relative_to(paths.root).as_posix()
    return {"run": paths.root.name, "file": name, "told": _told(_whole(path), folder, manifest), "stages": stages}


def _whole(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _place(path: Path) -> tuple[RunPaths, Path]:
    """The run of a file, and the folder of the stage that made it."""
    whole = _whole(path)
    root = _root_of(whole)
    if root is None:
        raise ConfigError(f"{path}: lies in no run; name a file below artifacts/<run>/iterations")
    parts = whole.relative_to(root).parts
    if len(parts) < 3 or parts[0] not in {"iterations", "superseded"} or parts[2].startswith("."):
        raise ConfigError(f"{path}: was made by no stage; name a file below {root / 'iterations'}, or a stage's folder")
    return RunPaths(root), root.joinpath(*parts[:3])


def _root_of(path: Path) -> Path | None:
    """The folder of the run that a file lies in."""
    return next((above for above in path.parents if (above / "run.yaml").is_file()), None)


def _told(path: Path, folder: Path, manifest: Manifest) -> str:
    if path in {folder, folder / MANIFEST}:
        return "the stage's whole output"
    name = path.relative_to(folder).as_posix()
    inside = [output for output in manifest.outputs if output.startswith(f"{name}/")]
    record = manifest.outputs.get(name)
    if record is None and not inside:
        raise ConfigError(f"{path}: the manifest beside it names no such file")
    if any(output in pruned(folder) and not (folder / output).exists() for output in [name, *inside]):
        return "removed by the retention rule"
    if record is None:
        return f"a folder of {len(inside)} files"
    if not path.is_file():
        return "missing"
    return f"{record.digest[:8]}, " + (
        "as its manifest says" if file_digest(path) == record.digest else "CHANGED since"
    )


def _stage(paths: RunPaths, fork: Fork | None, folder: Path, manifest: Manifest, read: Read) -> dict[str, Any]:
    name = folder.relative_to(paths.root).as_posix()
    shared = fork is not None and fork.manifests.get(f"{name}/{MANIFEST}") == file_digest(folder / MANIFEST)
    return {
        "run": paths.root.name,
        "stage": manifest.stage,
        "iteration": manifest.iteration,
        "folder": name,
        "shared_with": fork.run if fork is not None and shared else None,
        "superseded": name.startswith("superseded/"),
        "started": manifest.started,
        "overrides": manifest.overrides,
        "source": manifest.config.get("source"),
        "inputs": [
            {
                "name": name,
                "digest": record.digest,
                "run": home.root.name if maker else None,
                "maker": maker.relative_to(home.root).as_posix() if maker else None,
                "file": there.split("/", 3)[3] if maker else None,
                "lost": maker is None and _inside(there),
            }
            for name, record in manifest.inputs.items()
            for home, there in [_home(paths, name)]
            for maker in [_maker(home, there, record.digest, read)]
        ],
    }


def _makers(paths: RunPaths, manifest: Manifest, read: Read) -> list[tuple[RunPaths, Path, Manifest]]:
    homes = {name: _home(paths, name) for name in manifest.inputs}
    found = [(homes[name][0], _maker(*homes[name], record.digest, read)) for name, record in manifest.inputs.items()]
    return [
        (home, folder, made) for home, folder in dict.fromkeys(found) if folder is not None and (made := read(folder))
    ]


def _home(paths: RunPaths, name: str) -> tuple[RunPaths, str]:
    """The run that an input lies in, and its name there."""
    root = _root_of(Path(name)) if Path(name).is_absolute() else None
    return (paths, name) if root is None else (RunPaths(root), Path(name).relative_to(root).as_posix())


def _inside(name: str) -> bool:
    """Whether a stage of the run made the file: what is in place, or what a rerun replaced."""
    return name.startswith("superseded/") or made_by(name) is not None


def _maker(paths: RunPaths, name: str, digest: str, read: Read) -> Path | None:
    """The folder whose manifest says that it holds just this input: the one in place, or a superseded one."""
    if not _inside(name):
        return None
    _, k, place, inside = name.split("/", 3)
    named, stage = paths.root / Path(name).parents[inside.count("/")], place.split(".")[0]
    for folder in (named, *sorted(paths.superseded(int(k), stage, 1).parent.glob(f"{stage}.*"))):
        try:
            manifest = read(folder)
        except ArtifactError:
            if folder == named:
                raise
            continue  # one damaged superseded output is none, and hides no other
        if manifest is not None and inside in manifest.outputs and manifest.outputs[inside].digest == digest:
            return folder
    return None
