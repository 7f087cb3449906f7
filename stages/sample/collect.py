"""Prompts and an engine → the table of rollouts. Shared, through the flows, with evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from transformers import GenerationConfig, PreTrainedTokenizerBase

from stages.contract import tables
from stages.contract.columns import ROLLOUTS
from stages.contract.errors import ConfigError, DataError
from stages.contract.workspace import Progress, Workspace
from stages.model.load import load_tokenizer
from stages.model.render import encode, render
from stages.sample.config import SampleConfig
from stages.sample.engine import Engine


def collect(
    desk: Workspace,
    prompts: pl.DataFrame,
    policy: Path,
    engine: Engine,
    config: SampleConfig,
    group_size: int,
    seed_of: Callable[[str, int], int],
    progress: Progress,
) -> pl.DataFrame:
    """The table `rollouts`: `group_size` completions of each prompt by the policy, ordered by prompt and sample.

    Prompts that are too long for the configuration or the model's context are dropped and counted on the desk.

    Args:
        desk: notes the policy as an input, timings, and dropped prompts.
        prompts: table `prompts`.
        policy: the behaviour policy's folder.
        engine: loads that policy and draws.
        config: sampling and the longest prompt.
        group_size: completions of each prompt.
        seed_of: the seed of a completion, from prompt id and sample number.
        progress: told of completions drawn.
    """
    with desk.timed("load"):
        digest = desk.take_folder(policy)
        tokenizer = load_tokenizer(policy)
        engine.load_policy(policy, digest)
    asked = prompts.select("messages", "format").rows()
    texts = [render(tokenizer, messages, kind) for messages, kind in asked]
    ids = [encode(tokenizer, text, kind) for text, (_, kind) in zip(texts, asked, strict=True)]
    limit = _prompt_limit(engine, config)
    keep = [0 < len(row) <= limit for row in ids]
    desk.drop(f"prompt longer than {limit} tokens", sum(len(row) > limit for row in ids))
    desk.drop("empty prompt", sum(not row for row in ids))
    if not any(keep):
        raise DataError(f"none of {len(ids)} prompts has 1 to {limit} tokens: {desk.dropped}")
    chosen = prompts.filter(pl.Series(keep, dtype=pl.Boolean))
    texts = [text for text, kept in zip(texts, keep, strict=True) if kept]
    ids = [row for row, kept in zip(ids, keep, strict=True) if kept]
    seeds = [[seed_of(prompt_id, i) for i in range(group_size)] for prompt_id in chosen["prompt_id"]]
    with desk.timed("generate"):
        answered = engine.generate(ids, seeds, config.sampling, stop_tokens(tokenizer, policy, config), progress)
    flat = [completion for group_of_prompt in answered for completion in group_of_prompt]
    columns: dict[str, Any] = {
        name: chosen[name].repeat_by(group_size).explode() for name in ("prompt_id", "task", "answer", "metadata")
    }
    columns |= {
        "sample": list(range(group_size)) * len(ids),
        "prompt": [text for text in texts for _ in range(group_size)],
        "prompt_tokens": [row for row in ids for _ in range(group_size)],
        "completion": tokenizer.batch_decode([c.tokens for c in flat], skip_special_tokens=True),
        "completion_tokens": [c.tokens for c in flat],
        "sampler_logprobs": [c.logprobs for c in flat],
        "finish_reason": [c.finish_reason for c in flat],
        "temperature": [config.sampling.temperature] * len(flat),
        "seed": [seed for row in seeds for seed in row],
        "policy_digest": [digest] * len(flat),
    }
    return tables.frame(ROLLOUTS, columns)


def stop_tokens(tokenizer: PreTrainedTokenizerBase, policy: Path, config: SampleConfig) -> frozenset[int]:
    """The ids that end a completion: the tokenizer's, the policy's generation settings', the configuration's."""
    ends = {int(tokenizer.eos_token_id), *config.sampling.stop_token_ids}
    if (policy / "generation_config.json").is_file():
        own = GenerationConfig.from_pretrained(policy).eos_token_id
        ends |= set(own) if isinstance(own, list) else {own} - {None}
    return frozenset(ends)


def _prompt_limit(engine: Engine, config: SampleConfig) -> int:
    room = engine.context_length - config.sampling.max_tokens
    if room < 1:
        raise ConfigError(
            f"sample.sampling.max_tokens: {config.sampling.max_tokens} leaves no room for a prompt in the model's "
            f"context of {engine.context_length} tokens"
        )
    return min(config.max_prompt_tokens, room)
