"""The stage `prompts` of a later iteration: files dropped into the run's folder `data` → train.parquet.

Their rows look like those of the run's own source. Nobody moves or changes the files: which of them were taken up is
known by the digests in the manifests.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from stages.contract.columns import PROMPTS
from stages.contract.config import deciding
from stages.contract.digest import file_digest
from stages.contract.errors import DataError
from stages.contract.manifest import Manifest, read_manifest, stage_folders
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job, open_stage
from stages.prompts.config import FileSource, PromptsConfig, ReasoningGymSource, RowsSource
from stages.prompts.rows import RawPrompt
from stages.prompts.sources import load
from stages.prompts.stage import table

SUFFIXES = (".jsonl", ".parquet")


@dataclass
class Found:
    """Files in the folder that no iteration has taken up."""

    tables: dict[Path, pl.DataFrame] = field(default_factory=dict)
    """Table `prompts` of each that can be read."""
    problems: list[str] = field(default_factory=list)
    """Why the others cannot."""


def run(job: Job, config: PromptsConfig) -> None:
    """Writes the new prompts: those of files not taken up yet that are neither trained on nor held out already.

    Raises:
        DataError: there is no file that can be read, or one that this iteration took up before is gone.
    """
    paths, k = job.paths, job.iteration
    with open_stage(job, "prompts", "prompts", deciding(config)) as desk:
        found = new_files(paths, config, k)
        if not found.tables:
            raise DataError(f"{paths.data}: no file with new prompts; {'; '.join(found.problems) or 'none is new'}")
        for path in found.tables:
            desk.take(path)
        before = [desk.read(path, PROMPTS) for path in train_tables(paths, k - 1)]
        heldout = desk.read(paths.stage(0, "prompts") / "heldout.parquet", PROMPTS)
        rows = pl.concat(found.tables.values())
        unique = rows.unique("prompt_id", keep="first", maintain_order=True)
        unknown = unique.join(pl.concat(before), on="prompt_id", how="anti", maintain_order="left")
        fresh = unknown.join(heldout, on="prompt_id", how="anti", maintain_order="left")
        desk.drop("equal prompt", rows.height - unique.height)
        desk.drop("trained on already", unique.height - unknown.height)
        desk.drop("held out", unknown.height - fresh.height)
        desk.write("train.parquet", fresh, PROMPTS)
        desk.metrics["train_prompts"] = fresh.height
        if found.problems:
            desk.notes["warnings"] = found.problems


def train_tables(paths: RunPaths, k: int) -> list[Path]:
    """The tables of training prompts of iterations up to `k`."""
    folders = [paths.stage(j, "prompts") for j in range(k + 1)]
    return [folder / "train.parquet" for folder in folders if folder.is_dir()]


def new_files(paths: RunPaths, config: PromptsConfig, k: int | None = None) -> Found:
    """The files that no iteration but `k` has taken up, read.

    Raises:
        DataError: one that iteration `k` took up is gone or was changed.
    """
    there = {path: file_digest(path) for path in _files(paths.data)}
    taken, own = set[str](), dict[str, str]()
    for manifest in _manifests(paths):
        inside = f"{paths.relative(paths.data)}/"
        files = {name: record.digest for name, record in manifest.inputs.items() if name.startswith(inside)}
        if manifest.iteration == k:
            own = files
        else:
            taken |= set(files.values())
    if gone := sorted(name for name, digest in own.items() if digest not in there.values()):
        raise DataError(
            f"{paths.root / gone[0]}: gone or changed since iteration {k} took it up; put it back as it was"
        )
    found = Found()
    for path, digest in there.items():
        if digest in taken:
            continue
        try:
            found.tables[path] = table(_read(path, config), config)
        except DataError as error:
            found.problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    return found


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (
            path
            for path in sorted(folder.iterdir())
            if path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file()
        )


def _manifests(paths: RunPaths) -> Iterator[Manifest]:
    for folder in stage_folders(paths.iterations):
        manifest = read_manifest(folder) if folder.name == "prompts" else None
        if manifest is not None and manifest.iteration > 0:
            yield manifest


def _read(path: Path, config: PromptsConfig) -> list[RawPrompt]:
    source = config.source
    if isinstance(source, ReasoningGymSource):
        family = source.dataset
        rows = load(FileSource(type="file", path=path, task=f"reasoning_gym/{family}"))
        return [
            RawPrompt(
                row.prompt, row.answer, row.task, {"source_dataset": family, "question": row.prompt, **row.metadata}
            )
            for row in rows
        ]
    columns = source.model_dump(include=set(RowsSource.model_fields) - {"type"})
    return load(FileSource(type="file", path=path, **columns))
