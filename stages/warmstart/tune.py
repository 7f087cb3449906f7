"""Supervised tuning on demonstrations."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.contract.errors import DivergenceError
from stages.contract.progress import Progress
from stages.contract.seeds import derive
from stages.model.logprobs import token_logprobs
from stages.model.optim import Optimizer
from stages.model.prefix_batches import token_batches
from stages.warmstart.config import TuningConfig

Pair = tuple[list[int], list[int]]
"""Token ids of a prompt and of its completion, the end token included."""


def tune(
    model: PreTrainedModel, pairs: Sequence[Pair], config: TuningConfig, seed: int, device: str, progress: Progress
) -> list[dict[str, float]]:
    """Minimises the mean over completion tokens of -log π(token); returns the figures of each step.

    Raises:
        DivergenceError: a loss or gradient is not finite.
    """
    optimizer = Optimizer(model, config.optimizer)
    steps: list[dict[str, float]] = []
    for chosen in _batches(len(pairs), config, seed):
        rows = [pairs[i] for i in chosen]
        tokens = sum(len(completion) for _, completion in rows)
        loss = 0.0
        prompts, completions = zip(*rows, strict=True)
        for _, batch in token_batches(
            model, prompts, completions, [1.0] * len(rows), config.micro_batch_tokens, device
        ):
            share = -token_logprobs(model, batch)[0].sum() / tokens
            torch.autograd.backward(share)
            loss += float(share.detach())
        if not math.isfinite(loss):
            raise DivergenceError(f"warmstart, step {optimizer.steps + 1}: the loss is {loss}")
        steps.append(optimizer.step() | {"step": optimizer.steps, "tokens": tokens, "loss": loss})
        progress(len(steps), config.steps)
    return steps


def _batches(rows: int, config: TuningConfig, seed: int) -> Iterator[list[int]]:
    """`config.steps` batches: epochs in an order of their own, strung together."""
    queue: list[int] = []
    epoch = 0
    for _ in range(config.steps):
        while len(queue) < config.batch_size:
            queue += [int(i) for i in np.random.default_rng(derive(seed, epoch)).permutation(rows)]
            epoch += 1
        yield queue[: config.batch_size]
        queue = queue[config.batch_size :]
