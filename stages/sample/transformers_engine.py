"""The engine that draws with the transformers library: batches by prompt length, each prompt prefilled once.

Dimensions: P prompts of a batch, G completions a prompt, B = P·G, S prompt positions, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from stages.contract.progress import Progress, no_progress
from stages.model.load import context_length, load_model, load_tokenizer, vocabulary
from stages.sample.attention import share_heads
from stages.sample.config import SamplingConfig
from stages.sample.engine import Completion
from stages.sample.kv_cache import growing_cache
from stages.sample.token_sampling import draw_tokens, uniforms

BYTES_OF_A_CHARACTER = 4
"""Tokens that a character may take at most: some tokenizers fall back to bytes."""


class TransformersSampler:
    """An `Engine`; keeps the model between calls, by digest."""

    def __init__(self, batch_size: int, device: str) -> None:
        self._batch_size = batch_size
        self._device = device
        self._digest: str | None = None
        self._folder: Path | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._model: PreTrainedModel | None = None

    @property
    def model(self) -> PreTrainedModel:
        """The model that is loaded."""
        assert self._model is not None, "load_policy comes first"
        return self._model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, which only texts that end a completion need."""
        assert self._folder is not None, "load_policy comes first"
        self._tokenizer = self._tokenizer or load_tokenizer(self._folder)
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """Tokens of prompt and completion at most."""
        return context_length(self.model)

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return vocabulary(self.model)

    def trainer_model(self) -> PreTrainedModel:
        """The loaded policy as the trainer has it: the very model that draws."""
        return self.model

    def rest(self) -> dict[str, Any]:
        """Nothing: the model is small beside what the update needs."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Engine and settings, for the manifest; versions of packages are there already."""
        return {"type": "transformers", "batch_size": self._batch_size}

    def close(self) -> None:
        """Drops the model."""
        self._digest, self._model = None, None

    def load_policy(self, folder: Path, digest: str) -> None:
        """Loads a policy unless it is the one that is loaded."""
        if digest != self._digest:
            self._digest, self._model, self._tokenizer = None, None, None
            self._folder = folder
            self._model = load_model(folder, self._device)
            share_heads(self._model)
            self._digest = digest

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        stop: frozenset[int],
        progress: Progress = no_progress,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. Prompts must be of one group size."""
        group = len(seeds[0])
        assert all(len(row) == group for row in seeds)
        at_a_time = max(1, self._batch_size // group)
        by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        out: list[list[Completion]] = [[] for _ in prompts]
        for first in range(0, len(by_length), at_a_time):
            chosen = by_length[first : first + at_a_time]
            flat = self._batch([prompts[i] for i in chosen], [s for i in chosen for s in seeds[i]], sampling, stop)
            for n, i in enumerate(chosen):
                out[i] = flat[n * group : (n + 1) * group]
            progress((first + len(chosen)) * group, len(prompts) * group)
        return out

    def _batch(
        self, prompts: Sequence[Sequence[int]], seeds: list[int], sampling: SamplingConfig, stop: frozenset[int]
    ) -> list[Completion]:
        group = len(seeds) // len(prompts)
        logits_BV, mask_BS, cache = self._prefill(prompts, group)
        uniform_BT = uniforms(seeds, sampling.max_tokens).to(self._device)
        ends = torch.tensor(sorted(stop), device=self._device)
        tokens_BT = torch.full(uniform_BT.shape, -1, dtype=torch.long, device=self._device)
        logprobs_BT = torch.zeros(uniform_BT.shape, device=self._device)
        ended_B = torch.zeros(len(seeds), dtype=torch.bool, device=self._device)
        rows = torch.arange(len(seeds), device=self._device)
        for t in range(sampling.max_tokens):
            drawn, logprobs = draw_tokens(logits_BV, uniform_BT[rows, t], sampling)
            going = ~ended_B[rows]
            tokens_BT[rows[going], t] = drawn[going]
            logprobs_BT[rows[going], t] = logprobs[going]
            ended_B[rows] |= torch.isin(drawn, ends)
            if sampling.stop:
                ended_B[rows] |= self._says_stop(tokens_BT[rows, : t + 1], sampling.stop)
            left = ~ended_B[rows]
            count = int(left.sum())
            if count == 0 or t + 1 == sampling.max_tokens:
                break
            if count <= len(rows) // 2:
                kept = left.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                rows, mask_BS, drawn = rows[kept], mask_BS[kept], drawn[kept]
            mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(rows), 1)], dim=1)
            logits_BV = self._forward(drawn[:, None], mask_BS, cache)
        return _completions(tokens_BT, logprobs_BT, ended_B)

    def _says_stop(self, tokens_BT: Tensor, stop: Sequence[str]) -> Tensor:
        """[B], whether a row's text holds one of the texts that end it; only its last tokens can have completed one."""
        last = tokens_BT[:, -BYTES_OF_A_CHARACTER * max(map(len, stop)) :].tolist()
        texts = self.tokenizer.batch_decode([[t for t in row if t >= 0] for row in last], skip_special_tokens=True)
        return torch.tensor([any(s in text for s in stop) for text in texts], device=self._device)

    def _prefill(self, prompts: Sequence[Sequence[int]], group: int) -> tuple[Tensor, Tensor, DynamicCache]:
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        cache = growing_cache(self.model)
        logits_PV = self._forward(ids.to(self._device), mask.to(self._device), cache)
        cache.batch_repeat_interleave(group)
        return logits_PV.repeat_interleave(group, 0), mask.to(self._device).repeat_interleave(group, 0), cache

    def _forward(self, ids: Tensor, mask_BS: Tensor, cache: DynamicCache) -> Tensor:
        positions = (mask_BS.cumsum(-1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        model: Any = self.model
        output = model(
            input_ids=ids, attention_mask=mask_BS, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def _completions(tokens_BT: Tensor, logprobs_BT: Tensor, ended_B: Tensor) -> list[Completion]:
    lengths = (tokens_BT >= 0).sum(-1).tolist()
    rows = zip(tokens_BT.tolist(), logprobs_BT.tolist(), lengths, ended_B.tolist(), strict=True)
    return [Completion(tokens[:n], logprobs[:n], "stop" if ended else "length") for tokens, logprobs, n, ended in rows]
