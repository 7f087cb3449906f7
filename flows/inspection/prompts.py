"""What a configuration's prompts are, before a run and without Prefect."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.config.schema import RunConfig
from flows.runs.access import ARTIFACTS
from stages.contract import tables
from stages.contract.errors import GrpoError
from stages.contract.paths import RunPaths
from stages.prompts.look import as_seen, groups, histogram, samples, token_lengths
from stages.prompts.prepare import prepare
from stages.prompts.split import Known
from stages.prompts.stage import known_of
from stages.sample.plan import plan
from stages.score.reward_config import reward_name
from stages.warmstart.config import NewModel, RunModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEASURED = 20_000
"""Prompts whose tokens are counted at most."""


def look_at(config: RunConfig, shown: int, artifacts: Path = ARTIFACTS) -> dict[str, Any]:
    """Counts by source, task and level, lengths, what was left out and why, what will be drawn, and some prompts.

    Args:
        config: of a run that need not exist.
        shown: prompts to show.
        artifacts: folder of all runs, where the starting policy is another run's.

    Raises:
        DataError: a source cannot be used.
    """
    before, alone = _before(config, artifacts)
    prepared = prepare(config.prompts, before)
    both = pl.concat([prepared.train, prepared.heldout])
    tokenizer, context, problem = _tokenizer(config, artifacts)
    limit = config.sample.max_prompt_tokens
    if context is not None:
        limit = min(limit, room := context - config.sample.sampling.max_tokens)
        if room < 1:
            problem = f"sample.sampling.max_tokens leaves no room for a prompt in the context of {context} tokens"
    lengths = None if tokenizer is None else token_lengths(both, tokenizer, MEASURED)
    rows = groups(prepared, lengths, limit)
    drawing = plan(prepared.train, config.sample, config.iterations)
    judged = {row["task"]: _rewards(config, row["task"]) for row in rows}
    unjudged = [f"no reward judges the task {task!r}" for task, names in judged.items() if not names]
    unjudged += _unsure(config, rows)
    counts = [] if lengths is None else lengths["tokens"].to_list()
    return {
        "prompts": {"read": prepared.read.height, "train": prepared.train.height, "heldout": prepared.heldout.height},
        "groups": [row | {"rewards": judged[row["task"]]} for row in rows],
        "dropped": {reason: count for reason, count in prepared.dropped.items() if count},
        "warnings": [
            *prepared.warnings,
            *unjudged,
            *drawing.pop("problems"),
            *(told for told in (alone, problem) if told),
        ],
        "tokens": {
            "measured": len(counts),
            "limit": limit,
            "least": min(counts, default=None),
            "most": max(counts, default=None),
            "histogram": histogram(counts),
        },
        "iterations": config.iterations,
        "an_iteration": config.sample.prompts,
        "group_size": config.sample.group_size,
        "curriculum": curriculum.model_dump() if (curriculum := config.sample.curriculum) else None,
        "drawing": drawing,
        "samples": list(as_seen(samples(prepared.train, shown), tokenizer)),
    }


def _before(config: RunConfig, artifacts: Path) -> tuple[Known | None, str | None]:
    """What the phases before were trained on, and why that is not known."""
    from flows.runs.phases import prompts_before

    try:
        folders = prompts_before(RunPaths.named(artifacts, config.run), config)
    except GrpoError as error:
        return None, f"what the phases before were trained on is not known: {error}"
    return known_of(folders, tables.read), None


def _tokenizer(config: RunConfig, artifacts: Path) -> "tuple[PreTrainedTokenizerBase | None, int | None, str | None]":
    """The starting policy's tokenizer, the tokens of its context, and why there are none."""
    model = config.warmstart.model
    if isinstance(model, NewModel):
        from stages.warmstart.new_model import character_tokenizer

        return character_tokenizer(model.characters), model.context_length, None
    if isinstance(model, RunModel):
        from flows.runs.phases import policy_before

        try:
            path = policy_before(RunPaths.named(artifacts, config.run), config)
        except GrpoError as error:
            return None, None, f"lengths and chat template are not known: {error}"
        assert path is not None, "it is of a run"
    else:
        path = model.path
    if not path.is_dir():
        return None, None, f"lengths and chat template are not known: no model at {path}"
    from stages.model.load import folder_context, load_tokenizer

    return load_tokenizer(path), folder_context(path), None


def _unsure(config: RunConfig, rows: list[dict[str, Any]]) -> list[str]:
    """Tasks whose prompts the curriculum goes by, but not the reward that it names."""
    curriculum = config.sample.curriculum
    if curriculum is None or curriculum.reward is None:
        return []
    going = [row["task"] for row in rows if curriculum.type == "success" or row["level"] is not None]
    return [
        f"sample.curriculum.reward {curriculum.reward!r} does not judge the task {task!r}: its successes are unknown"
        for task in dict.fromkeys(going)
        if curriculum.reward not in _rewards(config, task)
    ]


def _rewards(config: RunConfig, task: str) -> list[str]:
    return [reward_name(reward) for reward in config.score.rewards if reward.judges(task)]
