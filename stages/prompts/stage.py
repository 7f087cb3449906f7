"""The stage `prompts`: sources → train.parquet, heldout.parquet."""

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from stages.contract.columns import PROMPTS, QUESTIONS, Table
from stages.contract.config import deciding
from stages.contract.workspace import Job, open_stage
from stages.prompts.config import FileSource, HuggingFaceSource, PromptsConfig
from stages.prompts.prepare import prepare
from stages.prompts.split import Known
from stages.prompts.table import NEAR, with_near


def run(job: Job, config: PromptsConfig, before: Sequence[Path] = ()) -> None:
    """Writes the run's prompts, split into training and held-out ones that have no prompt in common.

    `before` are the folders of the stages `prompts` of the phases before: none of what these trained on is held out.
    """
    with open_stage(job, "prompts", "prompts", deciding(config)) as desk:
        for source in config.plain_sources().values():
            if isinstance(source, FileSource) and source.path.is_file():
                desk.take(source.path)
            elif isinstance(source, HuggingFaceSource) and Path(source.path).is_dir():
                desk.take_folder(Path(source.path))
        made = prepare(config, known_of(before, desk.read))
        for reason, count in made.dropped.items():
            desk.drop(reason, count)
        desk.write("train.parquet", made.train.drop(NEAR), PROMPTS)
        desk.write("heldout.parquet", made.heldout.drop(NEAR), PROMPTS)
        desk.write("questions.parquet", pl.concat([made.train, made.heldout]).select("prompt_id", NEAR), QUESTIONS)
        desk.metrics |= {"train_prompts": made.train.height, "heldout_prompts": made.heldout.height}
        if made.warnings:
            desk.notes["warnings"] = made.warnings


def known_of(before: Sequence[Path], read: Callable[[Path, Table], pl.DataFrame]) -> Known | None:
    """The prompts in folders of stages `prompts` of the phases before; None where there are none."""
    if not before:
        return None
    trained, heldout = (
        pl.concat([asked(folder / name, read) for folder in before if (folder / name).is_file()])
        for name in ("train.parquet", "heldout.parquet")
    )
    return Known(trained, heldout)


def asked(path: Path, read: Callable[[Path, Table], pl.DataFrame]) -> pl.DataFrame:
    """A table `prompts` of a run, with the column `near`."""
    questions = path.with_name("questions.parquet")
    return with_near(read(path, PROMPTS), read(questions, QUESTIONS) if questions.is_file() else None)
