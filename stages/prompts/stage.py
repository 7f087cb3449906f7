"""The stage `prompts`: sources → train.parquet, heldout.parquet."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from blake3 import blake3

from stages.contract import tables
from stages.contract.columns import PROMPTS
from stages.contract.config import deciding
from stages.contract.errors import DataError
from stages.contract.workspace import Job, open_stage
from stages.prompts.config import FileSource, HuggingFaceSource, PromptsConfig
from stages.prompts.rows import RawPrompt
from stages.prompts.sources import load
from stages.prompts.split import split


def run(job: Job, config: PromptsConfig) -> None:
    """Writes the run's prompts, split into training and held-out ones that have no prompt in common."""
    with open_stage(job, "prompts", "prompts", deciding(config)) as desk:
        for source in (config.source, config.heldout_source):
            if isinstance(source, FileSource) and source.path.is_file():
                desk.take(source.path)
            elif isinstance(source, HuggingFaceSource) and Path(source.path).is_dir():
                desk.take_folder(Path(source.path))
        prompts = table(load(config.source, "prompts.source"), config)
        held_source = config.heldout_source
        heldout = table(load(held_source, "prompts.heldout_source"), config) if held_source else None
        train, held, dropped = split(prompts, config.heldout, heldout)
        if not train.height:
            raise DataError(f"prompts: of {prompts.height} prompts none is left to train on ({dropped})")
        for reason, count in dropped.items():
            desk.drop(reason, count)
        desk.write("train.parquet", train, PROMPTS)
        desk.write("heldout.parquet", held, PROMPTS)
        desk.metrics |= {"train_prompts": train.height, "heldout_prompts": held.height}


def table(raw: Sequence[RawPrompt], config: PromptsConfig) -> pl.DataFrame:
    """The table `prompts` of what a source said: template and system message applied, answers cut out, ids given."""
    messages = [_messages(prompt, config) for prompt in raw]
    return tables.frame(
        PROMPTS,
        {
            "prompt_id": [blake3(json.dumps(m).encode()).hexdigest()[:16] for m in messages],
            "messages": messages,
            "format": [config.format] * len(raw),
            "task": [prompt.task for prompt in raw],
            "answer": [_answer(prompt, config.answer_pattern) for prompt in raw],
            "metadata": [json.dumps(prompt.metadata, default=str, sort_keys=True) for prompt in raw],
        },
    )


def _messages(raw: RawPrompt, config: PromptsConfig) -> list[dict[str, str]]:
    system = [{"role": "system", "content": config.system}] if config.system else []
    if isinstance(raw.prompt, list):
        if config.template != "{prompt}":
            raise DataError("prompts.template: the prompts are lists of messages, which take no template")
        return system + raw.prompt
    try:
        text = config.template.format_map({**raw.metadata, "prompt": raw.prompt})
    except KeyError as error:
        names = sorted({*raw.metadata, "prompt"})
        raise DataError(f"prompts.template: no column {error} in the source, only {names}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"prompts.template: {config.template!r} does not fit {raw.prompt!r:.80}: {error}") from error
    return [*system, {"role": "user", "content": text}]


def _answer(raw: RawPrompt, pattern: str | None) -> str | None:
    if pattern is None or raw.answer is None:
        return raw.answer
    found = re.search(pattern, raw.answer)
    cut = (found.group(1) or "").strip() if found else ""
    if not cut:
        raise DataError(f"prompts.answer_pattern: {pattern!r} is not found in the answer {raw.answer!r:.80}")
    return cut
