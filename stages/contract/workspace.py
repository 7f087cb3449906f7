"""The one way in which a stage's output comes into being: grow aside, sync, manifest, rename."""

import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from stages.contract import tables
from stages.contract.background import Background, Content, Growing, await_all, write_all
from stages.contract.columns import Table
from stages.contract.commit import aside, commit, discard, next_superseded
from stages.contract.config import config_digest
from stages.contract.digest import known_digest, names_digest
from stages.contract.errors import ArtifactError
from stages.contract.machine import Machine
from stages.contract.manifest import FileRecord, Manifest, code_version, package_versions, read_manifest
from stages.contract.paths import RunPaths
from stages.contract.progress import Progress, no_progress
from stages.contract.pruned import pruned
from stages.contract.storage import storage_errors


@dataclass(frozen=True)
class Job:
    """One stage of one iteration of one run: all that a stage function is told beside its own configuration."""

    paths: RunPaths
    iteration: int
    seed: int
    overrides: dict[str, Any] = field(default_factory=dict)
    progress: Progress = no_progress
    machine: Machine = field(default_factory=Machine)
    background: Background | None = None
    """Where the process that runs the stage has large files written while it goes on; None writes all at once."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return self.machine.device


@dataclass
class Workspace:
    """A stage's desk: reads inputs against their digests, writes outputs, keeps the figures for the manifest."""

    paths: RunPaths
    folder: Path
    """Where outputs are written; becomes the stage's folder when all is done."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    _inputs: dict[str, FileRecord] = field(default_factory=dict)
    _rows: dict[str, int] = field(default_factory=dict)
    _background: Background | None = None
    _growing: dict[str, Growing] = field(default_factory=dict)
    _started: datetime = field(default_factory=lambda: datetime.now(UTC))
    _clock: float = field(default_factory=time.perf_counter)

    def read(self, path: Path, table: Table) -> pl.DataFrame:
        """Reads an input table, once its bytes are known to be those its maker wrote."""
        self.take(path)
        frame = tables.read(path, table)
        name = self._name(path)
        self._inputs[name] = self._inputs[name].model_copy(update={"rows": frame.height})
        return frame

    def take(self, path: Path) -> Path:
        """Notes a file as an input.

        Raises:
            ArtifactError: the file is missing, or a file of this run is not as its maker's manifest says.
        """
        if not path.is_file():
            self._await(path)
        if not path.is_file():
            raise ArtifactError(f"{path}: missing{self._never_made(path) or self._remedy(path)}")
        record = FileRecord(digest=known_digest(path), size=path.stat().st_size)
        made_by = self.paths.stage_of(path)
        if made_by is not None:
            manifest = read_manifest(made_by)
            known = manifest.outputs.get(path.relative_to(made_by).as_posix()) if manifest else None
            if known is None or known.digest != record.digest:
                raise ArtifactError(f"{path}: its content is not what its manifest says{self._remedy(path)}")
        self._inputs[self._name(path)] = record
        return path

    def take_folder(self, folder: Path) -> str:
        """Notes each file of a folder (a policy, say) as an input; returns the folder's digest.

        A file that the manifest of the folder's maker names belongs to it, also where it is gone.
        """
        made_by = self.paths.stage_of(folder)
        manifest = read_manifest(made_by) if made_by is not None else None
        files = {path for path in folder.rglob("*") if path.is_file()}
        if made_by is not None and manifest is not None:
            files |= {path for name in manifest.outputs if (path := made_by / name).is_relative_to(folder)}
        if not files:
            raise ArtifactError(f"{folder}: missing or empty{self._remedy(folder)}")
        for path in sorted(files):
            self.take(path)
        return names_digest(
            {path.relative_to(folder).as_posix(): self._inputs[self._name(path)].digest for path in files}
        )

    def cite_folder(self, folder: Path) -> str:
        """Notes each file of a folder of this run as an input, unread: by its maker's manifest. Returns its digest.

        Raises:
            ArtifactError: the stage that makes the folder has not been done.
        """
        made_by = self.paths.stage_of(folder)
        manifest = read_manifest(made_by) if made_by is not None else None
        if made_by is None or manifest is None:
            raise ArtifactError(f"{folder}: missing{self._remedy(folder)}")
        inside = {
            (made_by / name).relative_to(folder).as_posix(): record
            for name, record in manifest.outputs.items()
            if (made_by / name).is_relative_to(folder)
        }
        self._inputs |= {self.paths.relative(folder / name): record for name, record in inside.items()}
        return names_digest({name: record.digest for name, record in inside.items()})

    def write(self, name: str, frame: pl.DataFrame, table: Table) -> None:
        """Writes an output table."""
        tables.write(self.folder / name, frame, table)
        self._rows[name] = frame.height

    def write_later(self, name: str, content: Content) -> None:
        """Has a large output file written when the stage is done, while the process goes on.

        Its room on the disk is taken now. Without a background it is written before the stage is done.
        """
        self._growing[name] = Growing(self.folder / name, content)

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts rows that are left out; a count of 0 leaves no trace."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the seconds of a block to the timing of `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[part] = self.timings.get(part, 0.0) + time.perf_counter() - start

    def inputs(self) -> dict[str, FileRecord]:
        """What was read so far."""
        return dict(sorted(self._inputs.items()))

    def outputs(self) -> dict[str, FileRecord]:
        """What was written so far, or is to be."""
        coming = {aside(self.folder / name) for name in self._growing}
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and path not in coming)
        names = {path.relative_to(self.folder).as_posix(): path for path in files}
        written = {
            name: FileRecord(digest=known_digest(path), size=path.stat().st_size, rows=self._rows.get(name))
            for name, path in names.items()
        }
        return dict(sorted((written | {name: growing.record for name, growing in self._growing.items()}).items()))

    def manifest(self, job: Job, stage: str, config: dict[str, Any]) -> Manifest:
        """The manifest of what was read and written so far, and of all that the desk has noted."""
        return Manifest(
            stage=stage,
            iteration=job.iteration,
            seed=job.seed,
            config=config,
            config_digest=config_digest(config),
            overrides=job.overrides,
            inputs=self.inputs(),
            outputs=self.outputs(),
            metrics=self.metrics,
            dropped=self.dropped,
            notes=self.notes,
            started=self._started.isoformat("T", "milliseconds"),
            seconds=time.perf_counter() - self._clock,
            timings=self.timings,
            code=code_version(),
            packages=package_versions(),
            host=platform.node(),
            device=job.machine.device,
            threads=job.machine.threads,
            deterministic=job.machine.deterministic,
            processor=dict(job.machine.processor),
        )

    def growing(self) -> list[Growing]:
        """The files that are still to be written."""
        return list(self._growing.values())

    def _await(self, path: Path) -> None:
        """Waits for a file that may be being written, by this process or another."""
        if self._background is not None:
            self._background.wait()
        elif (made_by := self.paths.stage_of(path)) is not None:
            await_all(made_by)

    def _name(self, path: Path) -> str:
        """The manifest's name for a file; the stage's own former output has the one that it has once it is replaced."""
        place = self.folder.with_name(self.folder.name.removeprefix(".").removesuffix(".partial"))
        if path.is_relative_to(place):
            path = next_superseded(self.paths, int(place.parent.name), place.name) / path.relative_to(place)
        return self.paths.relative(path)

    def _never_made(self, path: Path) -> str | None:
        """What to say of a missing file that its maker's manifest does not name."""
        made_by = self.paths.stage_of(path)
        manifest = read_manifest(made_by) if made_by is not None else None
        if made_by is None or manifest is None or path.relative_to(made_by).as_posix() in manifest.outputs:
            return None
        return (
            f"; {manifest.stage} of iteration {manifest.iteration} was configured without it: a setting that goes on "
            "from iteration to iteration has to hold from the first one"
        )

    def _remedy(self, path: Path) -> str:
        made_by = self.paths.stage_of(path)
        if made_by is None:
            return ""
        if path.relative_to(made_by).as_posix() in pruned(made_by):
            return (
                "; the retention rule `keep` removed it: from an iteration of which `grpo space` shows all, "
                "`grpo stage update` of each that follows, in turn, makes it again"
            )
        stage = "warmstart" if made_by.name == "update" and int(made_by.parent.name) == 0 else made_by.name
        return (
            f"; run `grpo stage {stage} {self.paths.root.name} --iteration {int(made_by.parent.name)}` to make it again"
        )


@contextmanager
def open_stage(job: Job, stage: str, place: str, config: dict[str, Any]) -> Iterator[Workspace]:
    """A workspace whose output is put in place, whole, when the block ends without an error.

    A block that fails leaves no trace, also where the disk is full (`StorageError`); one that is killed leaves a
    partial folder that counts for nothing and is removed by the next attempt. An output that was in place moves to
    `superseded/`, unless it lacked a file and is made again to the same bytes.

    Args:
        job: run, iteration and seed.
        stage: the stage's name, for the manifest.
        place: the folder inside the iteration (the same as `stage`, but for `warmstart`, which writes `update`).
        config: the configuration section that decides the output, as plain data.
    """
    with storage_errors(f"{stage} of iteration {job.iteration}", job.paths.root):
        yield from _open_stage(job, stage, place, config)


def _open_stage(job: Job, stage: str, place: str, config: dict[str, Any]) -> Iterator[Workspace]:
    paths, k = job.paths, job.iteration
    for folder in (paths.root, paths.iterations, paths.iteration(k), paths.root / "superseded"):
        if folder.is_symlink():
            raise ArtifactError(f"{folder}: a symbolic link; nothing is written through one: move the folder here")
    if job.background is not None:
        job.background.check()
    partial = paths.partial(k, place)
    if partial.exists():
        discard(partial)
    partial.mkdir(parents=True)
    workspace = Workspace(paths, partial, _background=job.background)
    try:
        yield workspace
        manifest = workspace.manifest(job, stage, config)
        growing = workspace.growing()
        if job.background is None:
            write_all(partial, growing)
        elif growing:
            job.background.wait()
        replaced = commit(paths, k, place, manifest)
    except BaseException:
        for file in workspace.growing():
            file.close()
        with suppress(OSError):
            discard(partial)
        with suppress(OSError):  # another stage of the iteration is there, or nothing is
            partial.parent.rmdir()
        raise
    if job.background is not None and growing:
        names = " and ".join(file.name for file in growing)
        job.background.write(f"writing {names} of iteration {k}", paths.stage(k, place), growing)
    if replaced is not None and _is_remnant(replaced, manifest):
        shutil.rmtree(replaced)
        with suppress(OSError):  # other outputs of the iteration were replaced too
            replaced.parent.rmdir()
            replaced.parent.parent.rmdir()


def _is_remnant(folder: Path, manifest: Manifest) -> bool:
    """Whether a replaced output had lost a file, and what is left of it is in the new one too, by the same digests."""
    try:
        former = read_manifest(folder)
    except ArtifactError:
        return False
    if former is None:
        return False
    left = {name: record for name, record in former.outputs.items() if (folder / name).is_file()}
    lost = former.outputs.keys() - left.keys() - pruned(folder)
    return bool(lost) and left.items() <= manifest.outputs.items()
