"""The stage `prompts` of a later iteration: files dropped into the run's folder `data` → train.parquet.

Their rows look like those of the run's own source. Nobody moves or changes the files: which of them were taken up is
known by the digests in the manifests.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from stages.contract.columns import PROMPTS, QUESTIONS
from stages.contract.config import deciding
from stages.contract.digest import file_digest
from stages.contract.errors import DataError
from stages.contract.manifest import Manifest, read_manifest, stage_folders
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job, open_stage
from stages.prompts.config import (
    FileSource,
    PlainSource,
    PromptsConfig,
    ReasoningGymSource,
    RowsSource,
    parts_of,
    worded,
)
from stages.prompts.rows import RawPrompt
from stages.prompts.sources import load
from stages.prompts.stage import asked
from stages.prompts.table import NEAR, table

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


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
        heldout = asked(paths.stage(0, "prompts") / "heldout.parquet", desk.read)
        rows = pl.concat(found.tables.values())
        unique = rows.unique("prompt_id", keep="first", maintain_order=True)
        unknown = unique.join(pl.concat(before), on="prompt_id", how="anti", maintain_order="left")
        fresh = unknown.join(heldout, on="prompt_id", how="anti", maintain_order="left")
        desk.drop("equal prompt", rows.height - unique.height)
        desk.drop("trained on already", unique.height - unknown.height)
        desk.drop("held out", unknown.height - fresh.height)
        close = fresh.join(heldout, on=NEAR, how="semi", maintain_order="left")
        if config.near_duplicates == "drop":
            desk.drop("held out but for case and white space", close.height)
            fresh = fresh.join(heldout, on=NEAR, how="anti", maintain_order="left")
        elif close.height:
            found.problems.append(f"{close.height} new prompts are held out too but for case and white space")
        desk.write("train.parquet", fresh.drop(NEAR), PROMPTS)
        desk.write("questions.parquet", fresh.select("prompt_id", NEAR), QUESTIONS)
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
    there = {path: (path.parent, file_digest(path)) for path in _files(paths.data, config)}
    taken, own = set[tuple[Path, str]](), dict[str, tuple[Path, str]]()
    for manifest in _manifests(paths):
        inside = f"{paths.relative(paths.data)}/"
        files = {
            name: ((paths.root / name).parent, record.digest)  # in another part's folder it says something else
            for name, record in manifest.inputs.items()
            if name.startswith(inside)
        }
        if manifest.iteration == k:
            own = files
        else:
            taken |= set(files.values())
    if gone := sorted(name for name, content in own.items() if content not in there.values()):
        raise DataError(
            f"{paths.root / gone[0]}: gone or changed since iteration {k} took it up; put it back as it was"
        )
    found = Found(problems=list(_strays(paths.data, config)))
    for path, content in there.items():
        if content in taken:
            continue
        try:
            found.tables[path] = _read(path, config, paths.data)
        except DataError as error:
            found.problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    return found


def _files(folder: Path, config: PromptsConfig) -> Iterator[Path]:
    """The files in the folder; of a mixture, in a folder inside it for each part."""
    for place in [folder, *(folder / str(part.name) for part in parts_of(config.source).values() if part.name)]:
        yield from _in(place)


def _in(place: Path) -> Iterator[Path]:
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if path.name.endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file():
            yield path


def _strays(folder: Path, config: PromptsConfig) -> Iterator[str]:
    """What to say of folders with files that no part is named after."""
    names = [part.name for part in parts_of(config.source).values() if part.name]
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not place.name.startswith(".") and place.name not in names and any(_in(place)):
            told = (
                f"no part of the mixture has this name, they are {', '.join(names)}" if names else "there are no parts"
            )
            yield f"{place}: its files are not taken up: {told}"


def _manifests(paths: RunPaths) -> Iterator[Manifest]:
    for folder in stage_folders(paths.iterations):
        manifest = read_manifest(folder) if folder.name == "prompts" else None
        if manifest is not None and manifest.iteration > 0:
            yield manifest


def _read(path: Path, config: PromptsConfig, data: Path) -> pl.DataFrame:
    """The table `prompts` of a file, whose rows look like those of the run's source, or of the mixture's part."""
    parts = {part.name: part for part in parts_of(config.source).values()}
    name = path.parent.name if path.parent != data else None
    if name not in parts:
        told = ", ".join(str(part) for part in parts)
        raise DataError(f"{path}: belongs into the folder of a part of the mixture, inside {data}: {told}")
    return table(_rows(path, parts[name].source), worded(config, parts[name]), name)


def _rows(path: Path, source: PlainSource) -> list[RawPrompt]:
    if isinstance(source, ReasoningGymSource):
        family, level = source.dataset, "level" if source.levels else None
        rows = load(FileSource(type="file", path=path, task=f"reasoning_gym/{family}", level_field=level))
        posed = {"source_dataset": family}
        return [replace(row, metadata={**posed, "question": row.prompt, **row.metadata}) for row in rows]
    columns = source.model_dump(include=set(RowsSource.model_fields) - {"type"})
    return load(FileSource(type="file", path=path, **columns))
