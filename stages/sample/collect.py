"""Prompts and an engine → the table of rollouts. Shared, through the flows, with evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from transformers import GenerationConfig, PreTrainedTokenizerBase

from stages.contract import tables
from stages.contract.columns import ROLLOUTS
from stages.contract.config import deciding
from stages.contract.errors import ConfigError, DataError, ModelError
from stages.contract.manifest import code_version, package_versions
from stages.contract.policy import take_policy
from stages.contract.progress import Progress
from stages.contract.workspace import Workspace
from stages.model.load import load_tokenizer
from stages.model.render import encode, render
from stages.sample.config import SampleConfig
from stages.sample.engine import Completion, Engine
from stages.sample.shards import Parts, ranges


@dataclass(frozen=True)
class Asked:
    """Prompts as the model sees them; P of them, in the order of the table."""

    prompts: pl.DataFrame
    """Table `prompts`."""
    texts: list[str]
    tokens: list[list[int]]
    seeds: list[list[int]]
    """Of each prompt's completions."""

    def part(self, rows: range) -> "Asked":
        """Some of them."""
        at = slice(rows.start, rows.stop)
        return Asked(self.prompts[at], self.texts[at], self.tokens[at], self.seeds[at])


def collect(
    desk: Workspace,
    prompts: pl.DataFrame,
    policy: Path,
    engine: Engine,
    config: SampleConfig,
    group_size: int,
    seed_of: Callable[[str, int], int],
    progress: Progress,
    parts: Parts | None = None,
    may_be_empty: bool = False,
) -> pl.DataFrame:
    """The table `rollouts`: `group_size` completions of each prompt by the policy, ordered by prompt and sample.

    Prompts that are too long for the configuration or the model's context are dropped and counted on the desk.

    Args:
        desk: notes the policy as an input, the engine, timings, and dropped prompts.
        prompts: table `prompts`.
        policy: the behaviour policy's folder.
        engine: loads that policy and draws.
        config: sampling, the longest prompt, and shards.
        group_size: completions of each prompt.
        seed_of: the seed of a completion, from prompt id and sample number.
        progress: told of completions drawn.
        parts: where shards are kept, until the whole table is in place; None draws all at once.
        may_be_empty: gives an empty table where no prompt fits.

    Raises:
        DataError: no prompt fits.
    """
    with desk.timed("load"):
        digest = take_policy(desk, policy)
        tokenizer = load_tokenizer(policy)
        engine.load_policy(policy, digest)
        desk.notes["engine"] = engine.describe()
    asked = _asked(desk, prompts, tokenizer, engine, config, group_size, seed_of)
    if not asked.tokens:
        if may_be_empty:
            return tables.frame(ROLLOUTS, {field.name: [] for field in ROLLOUTS.fields})
        raise DataError(
            f"none of {prompts.height} prompts has 1 to {_prompt_limit(engine, config)} tokens: {desk.dropped}"
        )
    stop = stop_tokens(tokenizer, policy, config)

    def draw(part: Asked, before: int) -> pl.DataFrame:
        total = len(asked.tokens) * group_size

        def report(done: int, _: int) -> None:
            progress(before * group_size + done, total)

        answers = engine.generate(part.tokens, part.seeds, config.sampling, stop, report)
        return _frame(part, answers, tokenizer, config, digest)

    with desk.timed("generate"):
        if parts is None:
            rollouts = draw(asked, 0)
        else:
            decided = {
                "policy": digest,
                "sample": deciding(config),
                "stop": sorted(stop),
                "packages": package_versions(),
                "code": code_version(),
            }
            rollouts = _in_shards(desk, asked, config.shards, draw, parts, decided)
    return rollouts


def stop_tokens(tokenizer: PreTrainedTokenizerBase, policy: Path, config: SampleConfig) -> frozenset[int]:
    """The ids that end a completion: the tokenizer's, the policy's generation settings', the configuration's."""
    ends = {int(tokenizer.eos_token_id), *config.sampling.stop_token_ids}
    if (policy / "generation_config.json").is_file():
        own = GenerationConfig.from_pretrained(policy).eos_token_id
        ends |= set(own) if isinstance(own, list) else {own} - {None}
    return frozenset(ends)


def _asked(
    desk: Workspace,
    prompts: pl.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    engine: Engine,
    config: SampleConfig,
    group_size: int,
    seed_of: Callable[[str, int], int],
) -> Asked:
    rows = prompts.select("messages", "format").rows()
    texts = [render(tokenizer, messages, kind) for messages, kind in rows]
    ids = [encode(tokenizer, text, kind) for text, (_, kind) in zip(texts, rows, strict=True)]
    limit = _prompt_limit(engine, config)
    keep = [0 < len(row) <= limit for row in ids]
    desk.drop(f"prompt longer than {limit} tokens", sum(len(row) > limit for row in ids))
    desk.drop("empty prompt", sum(not row for row in ids))
    chosen = prompts.filter(pl.Series(keep, dtype=pl.Boolean))
    tokens = [row for row, kept in zip(ids, keep, strict=True) if kept]
    if (highest := max(map(max, tokens), default=0)) >= engine.vocabulary:
        raise ModelError(
            f"the tokenizer gives the token id {highest}, the model's vocabulary ends at {engine.vocabulary - 1}: they "
            "do not belong together"
        )
    seeds = [[seed_of(prompt_id, i) for i in range(group_size)] for prompt_id in chosen["prompt_id"]]
    return Asked(chosen, [text for text, kept in zip(texts, keep, strict=True) if kept], tokens, seeds)


def _in_shards(
    desk: Workspace,
    asked: Asked,
    shards: int,
    draw: Callable[[Asked, int], pl.DataFrame],
    parts: Parts,
    decided: dict[str, Any],
) -> pl.DataFrame:
    frames, kept = [], 0
    for rows in ranges(len(asked.tokens), shards):
        part = asked.part(rows)
        names = {"prompts": part.prompts.to_dicts(), "tokens": part.tokens, "seeds": part.seeds}
        frame = parts.load(decided | names)
        kept += frame is not None
        if frame is None:
            frame = draw(part, rows.start)
            parts.store(decided | names, frame)
        frames.append(frame)
    before = desk.notes.get("shards", {"all": 0, "kept_from_before": 0})
    desk.notes["shards"] = {
        "all": before["all"] + len(frames),
        "kept_from_before": before["kept_from_before"] + kept,
    }
    return pl.concat(frames, rechunk=True)


def _frame(
    asked: Asked,
    answers: Sequence[Sequence[Completion]],
    tokenizer: PreTrainedTokenizerBase,
    config: SampleConfig,
    digest: str,
) -> pl.DataFrame:
    flat = [completion for group in answers for completion in group]
    group = len(flat) // len(asked.tokens)
    prompts = asked.prompts[[row for row in range(asked.prompts.height) for _ in range(group)]]
    same = ("prompt_id", "task", "answer", "metadata", "messages", "format")
    columns: dict[str, Any] = {name: prompts[name] for name in same}
    columns |= {
        "sample": list(range(group)) * len(asked.tokens),
        "prompt": [text for text in asked.texts for _ in range(group)],
        "prompt_tokens": [row for row in asked.tokens for _ in range(group)],
        "completion": tokenizer.batch_decode([c.tokens for c in flat], skip_special_tokens=True),
        "completion_tokens": [c.tokens for c in flat],
        "sampler_logprobs": [c.logprobs for c in flat],
        "finish_reason": [c.finish_reason for c in flat],
        "temperature": [config.sampling.temperature] * len(flat),
        "seed": [seed for row in asked.seeds for seed in row],
        "policy_digest": [digest] * len(flat),
    }
    return tables.frame(ROLLOUTS, columns)


def _prompt_limit(engine: Engine, config: SampleConfig) -> int:
    room = engine.context_length - config.sampling.max_tokens
    if room < 1:
        raise ConfigError(
            f"sample.sampling.max_tokens: {config.sampling.max_tokens} leaves no room for a prompt in the model's "
            f"context of {engine.context_length} tokens"
        )
    return min(config.max_prompt_tokens, room)
