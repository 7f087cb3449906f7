"""What a frozen model says of each completion token: the reference policy's log-probabilities, the critic's values."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.contract.progress import Progress
from stages.model.critic import token_values
from stages.model.load import load_model
from stages.model.logprobs import token_logprobs
from stages.model.prefix_batches import TokenBatch, token_batches


def reference_logprobs(
    rollouts: pl.DataFrame, policy: Path, micro_batch_tokens: int, device: str, progress: Progress
) -> list[list[float]]:
    """For each rollout the reference policy's log-probabilities [T] (nats) of its completion tokens."""
    model = load_model(policy, device)
    return _each_token(
        rollouts, model, lambda batch: token_logprobs(model, batch)[0], micro_batch_tokens, device, progress
    )


def critic_values(
    rollouts: pl.DataFrame, critic: PreTrainedModel, micro_batch_tokens: int, device: str, progress: Progress
) -> list[list[float]]:
    """For each rollout the critic's values [T] (units of the reward) before each of its completion tokens."""
    return _each_token(
        rollouts, critic, lambda batch: token_values(critic, batch), micro_batch_tokens, device, progress
    )


@torch.no_grad()
def _each_token(
    rollouts: pl.DataFrame,
    model: PreTrainedModel,
    figure: Callable[[TokenBatch], Tensor],
    micro_batch_tokens: int,
    device: str,
    progress: Progress,
) -> list[list[float]]:
    prompts, completions = rollouts["prompt_tokens"].to_list(), rollouts["completion_tokens"].to_list()
    temperatures = rollouts["temperature"].to_list()
    out: list[list[float]] = [[] for _ in prompts]
    done = 0
    for rows, batch in token_batches(model, prompts, completions, temperatures, micro_batch_tokens, device):
        parts = figure(batch).split([len(completions[i]) for i in rows])
        for i, part in zip(rows, parts, strict=True):
            out[i] = part.tolist()
        done += len(rows)
        progress(done, len(prompts))
    return out
