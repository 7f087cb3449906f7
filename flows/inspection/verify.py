"""Checks a whole run: files against their makers' manifests, manifests against those they were made from, records."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flows.config.stages import place_of
from flows.inspection.verify_records import records_problems
from flows.runs.access import link_in
from flows.runs.history import History
from flows.runs.staleness import other_inputs
from stages.contract.background import await_all
from stages.contract.commit import aside
from stages.contract.digest import file_digest
from stages.contract.errors import ArtifactError, VersionError
from stages.contract.manifest import FileRecord, Manifest, read_manifest, stage_folders
from stages.contract.paths import MANIFEST, RunPaths
from stages.contract.pruned import PRUNED, pruned


@dataclass(frozen=True)
class Problem:
    """Something that is not as a manifest says, or a record that cannot be true."""

    iteration: int | None
    stage: str | None
    """The stage to run again; None for the run's records."""
    file: str
    """Relative to the run."""
    problem: str
    remedy: str
    """The command that makes it right; where the retention rule removed what it reads, after those that make that.
    Of a record, what to do in words."""


@dataclass(frozen=True)
class Verdict:
    """What was checked, and what is wrong with it."""

    stages: int
    files: int
    size: int
    """Bytes."""
    pruned: int
    """Files that the retention rule removed: they are not there to be checked."""
    problems: list[Problem]


def verify(paths: RunPaths) -> Verdict:
    """Checks all stages in place, in their order, and the run's records; what the retention rule removed is no problem.

    What a live process is still writing is waited for.

    `superseded/` counts for nothing and is not read.

    Raises:
        VersionError: newer code wrote the run.
    """
    history = History(paths)
    manifests: list[Manifest] = []
    problems: list[Problem] = []
    for folder in stage_folders(paths.iterations):
        k, place = int(folder.parent.name), folder.name
        try:
            manifest = read_manifest(folder)
        except VersionError:
            raise
        except ArtifactError as error:
            problems.append(_problem(paths, k, place, None, folder / MANIFEST, str(error).partition(": ")[2]))
            continue
        if manifest is None:
            problems.append(_problem(paths, k, place, None, folder / MANIFEST, "missing"))
            continue
        manifests.append(manifest)
        await_all(folder)
        for name, told in _files(paths, folder, manifest.outputs):
            problems.append(_problem(paths, k, place, manifest, folder / name, told))
        for name, there in other_inputs(history, manifest):
            reader = f"{manifest.stage} of iteration {manifest.iteration}"
            other, missing = (
                f"another one now than {reader} was made from",
                f"read by {reader}, and no manifest names it",
            )
            told = other if there else missing
            problems.append(_problem(paths, k, place, manifest, paths.root / name, told))
    gone = {(m.iteration, place_of(m.stage)): history.pruned(m.iteration, place_of(m.stage)) for m in manifests}
    records = [
        record
        for m in manifests
        for name, record in m.outputs.items()
        if name not in gone[m.iteration, place_of(m.stage)]
    ]
    for file, told, remedy in records_problems(paths):
        problems.append(Problem(None, None, paths.relative(file), told, remedy))
    size, removed = sum(record.size for record in records), sum(len(names) for names in gone.values())
    return Verdict(len(manifests), len(records), size, removed, problems)


def _files(paths: RunPaths, folder: Path, outputs: dict[str, FileRecord]) -> Iterator[tuple[str, str]]:
    """What is wrong with a stage's files, by name."""
    removed = pruned(folder)
    owners = {record.digest: name for name, record in outputs.items()}
    for name, record in outputs.items():
        path = folder / name
        if name in removed and not path.exists():
            continue
        if (link := link_in(paths, path)) is not None:
            yield name, "a symbolic link" if link == path else f"behind a symbolic link, {paths.relative(link)}"
            continue
        if not path.is_file():
            yield name, "missing: its process ended while it was written" if aside(path).exists() else "missing"
            continue
        size = path.stat().st_size
        if (digest := file_digest(path)) == record.digest:
            continue
        if size == 0:
            yield name, f"empty; {record.size} bytes are wanted"
        elif digest in owners:
            yield name, f"swapped: it holds the content of {owners[digest]}"
        elif size != record.size:
            yield name, f"{'truncated' if size < record.size else 'too long'}: {size} bytes of {record.size}"
        else:
            yield name, "damaged: its content is not what the manifest says"
    known = {MANIFEST, PRUNED, aside(Path(PRUNED)).name, *outputs}
    known |= {aside(Path(name)).as_posix() for name in outputs}
    known |= {above.as_posix() for name in outputs for above in PurePosixPath(name).parents}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in known and (path.is_symlink() or not path.is_dir()):
            yield name, "not listed in the manifest: remove it, or run the stage again"


def _problem(paths: RunPaths, k: int, place: str, manifest: Manifest | None, file: Path, told: str) -> Problem:
    stage = manifest.stage if manifest else "warmstart" if (k, place) == (0, "update") else place
    history, commands = History(paths), [_command(paths, k, stage, manifest)]
    j, wanted = {"update": (k - 1, ""), "sample": (k - 1, "policy/"), "evaluate": (k, "policy/")}.get(stage, (0, ""))
    while j > 0 and any(name.startswith(wanted) for name in history.pruned(j, "update")):
        commands.insert(0, _command(paths, j, "update", history.manifest(j, "update")))
        j, wanted = j - 1, ""
    return Problem(k, stage, paths.relative(file), told, " && ".join(commands))


def _command(paths: RunPaths, k: int, stage: str, manifest: Manifest | None) -> str:
    """Makes a stage again, with the settings of its last rerun."""
    overrides = manifest.overrides if manifest else {}
    settings = [f"--set {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in overrides.items()]
    return " ".join(["grpo stage", stage, paths.root.name, f"--iteration {k}", *settings])
