"""What is measured: models, prompts and rollouts, made once below a cache folder.

A: the quickstart's tiny model, 64 prompts × 8. B: SmolLM2-135M-Instruct on problems of gsm_symbolic, 8 × 8 × 64
tokens. C: a small Llama with long completions, of 50 to 1,000 tokens. D: a wide vocabulary on a small body. E: 100,000
stored rollouts.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.contract import tables
from stages.contract.columns import ADVANTAGES, KEY, ROLLOUTS, SCORES
from stages.contract.paths import RunPaths
from stages.contract.workspace import Job, open_stage
from tests.benchmarks.reward import reward

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("GRPO_BENCHMARKS", ROOT / "artifacts" / ".benchmarks"))
SMOLLM2 = ROOT / "artifacts" / ".models" / "smollm2"
NEVER = "<empty_output>"
"""Ends completions of work B in place of SmolLM2's own end token: it is not drawn, so that all have 64 tokens."""
GSM_SEED = 1
LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Llama:
    """A random one."""

    hidden: int
    layers: int
    vocabulary: int


@dataclass(frozen=True)
class Work:
    """An iteration's rollouts."""

    name: str
    prompts: int
    group: int
    shortest: int
    """Tokens of the shortest completion; lengths are spread evenly."""
    tokens: int
    """Tokens of the longest completion."""
    model: Llama | None
    """None takes SmolLM2."""
    prompt_tokens: int = 0
    """Of random prompts."""
    micro_batch_tokens: int = 4096
    """`update.micro_batch_tokens`."""

    @property
    def rows(self) -> int:
        """Completions."""
        return self.prompts * self.group

    @property
    def folder(self) -> Path:
        """Where all of it lies."""
        return CACHE / self.name

    @property
    def paths(self) -> RunPaths:
        """The run with its rollouts and advantages."""
        return RunPaths(self.folder / "run")


WORKS = {
    work.name: work
    for work in (
        Work("small", 2, 4, 3, 9, Llama(64, 1, 100), prompt_tokens=5),
        Work("b", 8, 8, 64, 64, None, micro_batch_tokens=512),
        Work("c", 16, 4, 50, 1000, Llama(256, 4, 4096), prompt_tokens=64, micro_batch_tokens=512),
        Work("d", 8, 8, 64, 64, Llama(256, 2, 150_000), prompt_tokens=16, micro_batch_tokens=8 * 8 * 80),
        *(Work(f"completions-{n}", 4 * n, 4, 64, 64, Llama(256, 4, 4096), 64) for n in (1, 4, 16)),
        *(Work(f"lengths-{n}", 4, 4, 64 * n, 64 * n, Llama(256, 4, 4096), 64) for n in (4,)),
    )
}


@dataclass(frozen=True)
class Rollouts:
    """Those of a work, as plain lists; rows of a prompt follow one another."""

    prompts: list[list[int]]
    """Of each row."""
    completions: list[list[int]]
    advantages: list[float]
    """Of each row."""


def model_folder(work: Work) -> Path:
    """The model that the work begins with, made once."""
    folder = work.folder / "model"
    if not (folder / "config.json").is_file():
        partial = work.folder / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _smollm2(partial) if work.model is None else _llama(work.model, partial)
        partial.rename(folder)
    return folder


def questions(work: Work) -> list[str]:
    """Problems for work B."""
    path = work.folder / "questions.json"
    if not path.is_file():
        import reasoning_gym

        posed = reasoning_gym.create_dataset("gsm_symbolic", seed=GSM_SEED, size=work.prompts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([item["question"] for item in posed]), encoding="utf-8")
    asked: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return asked


def prompt_tokens(work: Work) -> list[list[int]]:
    """The prompts as the model sees them: SmolLM2's by its chat template, the others random."""
    if work.model is None:
        from stages.model.load import load_tokenizer
        from stages.model.render import encode, render

        tokenizer = load_tokenizer(model_folder(work))
        asked = [[{"role": "user", "content": text}] for text in questions(work)]
        return [encode(tokenizer, render(tokenizer, messages, "chat"), "chat") for messages in asked]
    rng = np.random.default_rng(1)
    shape = (work.prompts, work.prompt_tokens)
    return [list(map(int, row)) for row in rng.integers(1, work.model.vocabulary, shape)]


def make(work: Work) -> RunPaths:
    """The run with the starting policy, rollouts, scores and advantages of iteration 1, made once."""
    if not work.paths.root.is_dir():
        from stages.warmstart import stage as warmstart
        from stages.warmstart.config import WarmstartConfig

        growing = RunPaths(work.folder / "run.partial")
        shutil.rmtree(growing.root, ignore_errors=True)
        start = {"model": {"type": "folder", "path": model_folder(work)}}
        warmstart.run(Job(growing, 0, seed=1), WarmstartConfig.model_validate(start))
        _put(growing, *_drawn(work))
        growing.root.rename(work.paths.root)
    return work.paths


def rollouts(work: Work) -> Rollouts:
    """The rollouts that `make` put into the run."""
    paths = make(work)
    drawn = tables.read(paths.stage(1, "sample") / "rollouts.parquet", ROLLOUTS)
    advantages = tables.read(paths.stage(1, "advantage") / "advantages.parquet", ADVANTAGES)
    both = tables.join(drawn, advantages.select(*KEY, "advantages"), "rollouts and advantages")
    first = both["advantages"].list.first().to_list()
    return Rollouts(both["prompt_tokens"].to_list(), both["completion_tokens"].to_list(), first)


def group_advantages(rewards: Sequence[float], group: int) -> list[float]:
    """GRPO's, of groups one after the other."""
    rewards_PG = np.array(rewards).reshape(-1, group)
    spread_P1 = rewards_PG.std(1, ddof=1, keepdims=True)
    assert (spread_P1 > 0).all(), "a constant group"
    return list(map(float, ((rewards_PG - rewards_PG.mean(1, keepdims=True)) / (spread_P1 + 1e-4)).ravel()))


def _drawn(work: Work) -> tuple[list[list[int]], list[list[int]], list[list[float]], int]:
    """Prompts, completions, their log-probabilities, and the size of groups: drawn by SmolLM2, else random tokens."""
    import torch

    from stages.model.load import load_model
    from stages.model.logprobs import token_logprobs
    from stages.model.prefix_batches import collate
    from stages.sample.config import SamplingConfig
    from stages.sample.transformers_engine import TransformersSampler

    prompts = prompt_tokens(work)
    each = [prompt for prompt in prompts for _ in range(work.group)]
    if work.model is None:
        engine = TransformersSampler(work.rows, "cpu")
        engine.load_policy(model_folder(work), "benchmark")
        seeds = [[1000 * p + i for i in range(work.group)] for p in range(work.prompts)]
        drawn = engine.generate(prompts, seeds, SamplingConfig(max_tokens=work.tokens), frozenset())
        flat = [completion for row in drawn for completion in row]
        return each, [c.tokens for c in flat], [c.logprobs for c in flat], work.group
    rng = np.random.default_rng(2)
    lengths = rng.permutation(np.linspace(work.shortest, work.tokens, work.rows).round().astype(int))
    completions = [list(map(int, rng.integers(1, work.model.vocabulary, length))) for length in lengths]
    model = load_model(model_folder(work), "cpu")
    logprobs = []
    with torch.no_grad():
        for prompt, completion in zip(each, completions, strict=True):
            logprobs.append(token_logprobs(model, collate([prompt], [completion], [1.0], "cpu"))[0].tolist())
    return each, completions, logprobs, work.group


def _put(
    paths: RunPaths, prompts: list[list[int]], completions: list[list[int]], logprobs: list[list[float]], group: int
) -> None:
    """Writes the three tables as their stages do."""
    count = len(prompts)
    key = {"prompt_id": [f"{n // group:06d}" for n in range(count)], "sample": [n % group for n in range(count)]}
    rewards = reward(completions)
    each = group_advantages(rewards, group)
    drawn = key | {
        "prompt": [""] * count, "prompt_tokens": prompts, "completion": [""] * count,
        "completion_tokens": completions, "sampler_logprobs": logprobs, "finish_reason": ["length"] * count,
        "temperature": [1.0] * count, "seed": list(range(count)), "task": [""] * count, "answer": [None] * count,
        "metadata": ["{}"] * count, "policy_digest": [""] * count, "messages": [None] * count, "format": [None] * count,
    }  # fmt: skip
    nothing = {name: [None] * count for name in _names(SCORES) - set(key) - {"reward"}}
    made = {
        "advantages": [[a] * len(c) for a, c in zip(each, completions, strict=True)],
        "returns": [None] * count, "train": [True] * count, "reason": [None] * count,
        "group_mean": [None] * count, "group_std": [None] * count,
    }  # fmt: skip
    for stage, file, columns, schema in (
        ("sample", "rollouts", drawn, ROLLOUTS),
        ("score", "scores", key | {"reward": rewards} | nothing, SCORES),
        ("advantage", "advantages", key | made, ADVANTAGES),
    ):
        with open_stage(Job(paths, 1, seed=1), stage, stage, {}) as desk:
            desk.write(f"{file}.parquet", tables.frame(schema, columns), schema)


def _names(table: Any) -> set[str]:
    return {field.name for field in table.fields}


def _smollm2(folder: Path) -> None:
    """SmolLM2 with an end token that it does not draw."""
    from stages.model.smollm2 import make_smollm2

    make_smollm2(SMOLLM2)
    for path in SMOLLM2.iterdir():
        shutil.copyfile(path, folder / path.name)
    settings = folder / "tokenizer_config.json"
    end = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    number = next(token["id"] for token in end if token["content"] == NEVER)
    for path, changed in (
        (settings, {"eos_token": NEVER}),
        (folder / "config.json", {"eos_token_id": number}),
        (folder / "generation_config.json", {"eos_token_id": number}),
    ):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed), encoding="utf-8")


def _llama(shape: Llama, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.warmstart.config import NewModel
    from stages.warmstart.new_model import character_tokenizer

    torch.manual_seed(0)
    tokenizer = character_tokenizer(NewModel(type="new").characters)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.hidden * 11 // 4,
        num_hidden_layers=shape.layers, num_attention_heads=shape.hidden // 64, num_key_value_heads=shape.hidden // 64,
        max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
