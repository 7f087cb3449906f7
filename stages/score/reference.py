"""Log-probabilities of the reference policy."""

from pathlib import Path

import polars as pl
import torch

from stages.contract.workspace import Progress
from stages.model.batch import micro_batches
from stages.model.load import load_model
from stages.model.logprobs import collate, token_logprobs


@torch.no_grad()
def reference_logprobs(
    rollouts: pl.DataFrame, policy: Path, micro_batch_tokens: int, device: str, progress: Progress
) -> list[list[float]]:
    """For each rollout the reference policy's log-probabilities [T] (nats) of its completion tokens."""
    model = load_model(policy, device)
    prompts, completions = rollouts["prompt_tokens"].to_list(), rollouts["completion_tokens"].to_list()
    temperatures = rollouts["temperature"].to_list()
    out: list[list[float]] = [[] for _ in prompts]
    done = 0
    for rows in micro_batches([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], micro_batch_tokens):
        batch = collate(
            [prompts[i] for i in rows], [completions[i] for i in rows], [temperatures[i] for i in rows], device
        )
        logprobs, _ = token_logprobs(model, batch)
        parts = logprobs.split([len(completions[i]) for i in rows])
        for i, part in zip(rows, parts, strict=True):
            out[i] = part.tolist()
        done += len(rows)
        progress(done, len(prompts))
    return out
