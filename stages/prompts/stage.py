"""The stage `prompts`: sources → train.parquet, heldout.parquet."""

from pathlib import Path

from stages.contract.columns import PROMPTS
from stages.contract.config import deciding
from stages.contract.workspace import Job, open_stage
from stages.prompts.config import FileSource, HuggingFaceSource, PromptsConfig
from stages.prompts.prepare import prepare


def run(job: Job, config: PromptsConfig) -> None:
    """Writes the run's prompts, split into training and held-out ones that have no prompt in common."""
    with open_stage(job, "prompts", "prompts", deciding(config)) as desk:
        for source in config.plain_sources().values():
            if isinstance(source, FileSource) and source.path.is_file():
                desk.take(source.path)
            elif isinstance(source, HuggingFaceSource) and Path(source.path).is_dir():
                desk.take_folder(Path(source.path))
        made = prepare(config)
        for reason, count in made.dropped.items():
            desk.drop(reason, count)
        desk.write("train.parquet", made.train, PROMPTS)
        desk.write("heldout.parquet", made.heldout, PROMPTS)
        desk.metrics |= {"train_prompts": made.train.height, "heldout_prompts": made.heldout.height}
        if made.warnings:
            desk.notes["warnings"] = made.warnings
