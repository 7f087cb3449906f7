"""Training of a reward model, and what it says of pairs.

Dimensions: P pairs.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stages.contract.errors import DivergenceError
from stages.contract.metrics import Meter
from stages.contract.progress import Progress
from stages.contract.seeds import derive
from stages.model.microbatches import micro_batches
from stages.model.optim import Optimizer
from stages.model.reward import RewardModel
from stages.reward_model.bradley_terry import losses
from stages.reward_model.config import RewardModelConfig

Tokens = tuple[list[int], list[int]]
"""Token ids of a pair's chosen and rejected conversation."""


def train(
    model: RewardModel, pairs: Sequence[Tokens], config: RewardModelConfig, seed: int, progress: Progress
) -> list[dict[str, float]]:
    """Minimises the mean Bradley–Terry loss over the pairs; returns the figures of each optimizer step.

    The order of each epoch is its own; the size of a micro-batch changes no denominator.

    Raises:
        DivergenceError: a loss or gradient is not finite.
    """
    optimizer = Optimizer(model.model, config.optimizer)
    batches = math.ceil(len(pairs) / config.batch_size)
    steps: list[dict[str, float]] = []
    for epoch in range(config.epochs):
        order = [int(i) for i in np.random.default_rng(derive(seed, epoch)).permutation(len(pairs))]
        for at in range(0, len(order), config.batch_size):
            rows = [pairs[i] for i in order[at : at + config.batch_size]]
            figures = dict.fromkeys(("loss", "accuracy", "margin"), 0.0)
            for part in _parts(rows, config.micro_batch_tokens):
                chosen, rejected = _compared(model, [rows[i] for i in part])
                share = losses(chosen, rejected).sum() / len(rows)
                torch.autograd.backward(share)
                margin = (chosen - rejected).detach()
                figures["loss"] += share.item()
                figures["accuracy"] += float((margin > 0).sum()) / len(rows)
                figures["margin"] += float(margin.sum()) / len(rows)
            if not math.isfinite(figures["loss"]):
                raise DivergenceError(f"reward_model, step {optimizer.steps + 1}: the loss is {figures['loss']}")
            tokens = sum(len(chosen) + len(rejected) for chosen, rejected in rows)
            taken = optimizer.step()
            steps.append(figures | taken | {"step": optimizer.steps, "pairs": len(rows), "tokens": tokens})
            progress(len(steps), config.epochs * batches)
    return steps


def last_epoch(steps: Sequence[dict[str, float]], pairs: int) -> dict[str, float]:
    """Loss, accuracy and margin of the last pass over the pairs, as they were when it came to them."""
    meter, counted = Meter(), 0.0
    for step in reversed(steps):
        if counted == pairs:
            break
        counted += step["pairs"]
        for name in ("loss", "accuracy", "margin"):
            meter.mean(name, step[name] * step["pairs"], step["pairs"])
    return meter.result()


@torch.no_grad()
def judged(model: RewardModel, pairs: Sequence[Tokens], micro_batch_tokens: int) -> tuple[list[float], list[float]]:
    """The rewards [P] of the chosen and of the rejected conversations."""
    chosen, rejected = [0.0] * len(pairs), [0.0] * len(pairs)
    for part in _parts(pairs, micro_batch_tokens):
        for side, values in zip((chosen, rejected), _compared(model, [pairs[i] for i in part]), strict=True):
            for i, value in zip(part, values.tolist(), strict=True):
                side[i] = value
    return chosen, rejected


def figures_of(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, float | None]:
    """Accuracy (a tie is wrong), mean loss and mean margin of pairs; None without any."""
    if not chosen:
        return dict.fromkeys(("accuracy", "loss", "margin"))
    one, other = torch.tensor(chosen), torch.tensor(rejected)
    return {
        "accuracy": float((one > other).float().mean()),
        "loss": float(losses(one, other).mean()),
        "margin": float((one - other).mean()),
    }


def _compared(model: RewardModel, rows: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """One forward pass over both sides."""
    rewards = model.rewards([chosen for chosen, _ in rows] + [rejected for _, rejected in rows])
    return rewards[: len(rows)], rewards[len(rows) :]


def _parts(rows: Sequence[Tokens], tokens: int) -> list[list[int]]:
    return micro_batches([2 * max(len(chosen), len(rejected)) for chosen, rejected in rows], tokens)
