"""Optimizer steps over an iteration's rows.

Dimensions: N completion tokens of a micro-batch, T of one row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.contract.errors import DivergenceError
from stages.contract.metrics import Meter
from stages.contract.workspace import Progress
from stages.model.batch import micro_batches
from stages.model.logprobs import TokenBatch, collate, token_logprobs
from stages.model.optim import Optimizer
from stages.update.batch import TrainingRow, optimizer_batches
from stages.update.config import UpdateConfig
from stages.update.loss.clipped import clip_fractions, clipped
from stages.update.loss.kl import k3
from stages.update.loss.reduce import token_weights


@dataclass(frozen=True)
class LossInputs:
    """What the loss of a micro-batch needs beside the policy's own log-probabilities; all [N] but the lengths."""

    old_N: Tensor
    advantages_N: Tensor
    reference_N: Tensor | None
    lengths_R: Tensor


def loss_of(
    logprobs_N: Tensor, inputs: LossInputs, config: UpdateConfig, rows: int, tokens: int, meter: Meter
) -> Tensor:
    """The micro-batch's part of the optimizer batch's loss: parts of all micro-batches add up to it.

    Args:
        logprobs_N: log-probabilities of the policy, with gradient.
        inputs: the rest.
        config: clip widths, aggregation, β.
        rows: rows of the whole optimizer batch.
        tokens: completion tokens of the whole optimizer batch.
        meter: takes the figures.
    """
    loss = config.loss
    ratio_N = (logprobs_N - inputs.old_N).exp()
    weights_N = token_weights(inputs.lengths_R, loss.aggregation, rows, tokens)
    policy_loss = (weights_N * clipped(ratio_N, inputs.advantages_N, loss.epsilon_low, loss.epsilon_high)).sum()
    total = policy_loss
    with torch.no_grad():
        low_N, high_N = clip_fractions(ratio_N, inputs.advantages_N, loss.epsilon_low, loss.epsilon_high)
        count = len(logprobs_N)
        meter.mean("clip_fraction_low", float(low_N.sum()), count)
        meter.mean("clip_fraction_high", float(high_N.sum()), count)
        meter.mean("ratio_mean", float(ratio_N.sum()), count)
        meter.min("ratio_min", float(ratio_N.min()))
        meter.max("ratio_max", float(ratio_N.max()))
        meter.sum("policy_loss", float(policy_loss))
    if inputs.reference_N is not None:
        kl_N = k3(logprobs_N, inputs.reference_N)
        kl_loss = config.kl.coefficient * (weights_N * kl_N).sum()
        meter.mean("kl", float(kl_N.detach().sum()), count)
        meter.sum("kl_loss", float(kl_loss.detach()))
        total = policy_loss + kl_loss
    meter.sum("loss", float(total.detach()))
    return total


@torch.no_grad()
def old_logprobs(model: PreTrainedModel, rows: Sequence[TrainingRow], budget: int, device: str) -> list[Tensor]:
    """For each row the log-probabilities [T] that the trainer's own model gives before it is changed."""
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    for part in micro_batches([row.length for row in rows], budget):
        chosen = [rows[i] for i in part]
        logprobs_N, _ = token_logprobs(model, _collate(chosen, device))
        for i, logprobs_T in zip(part, logprobs_N.split([len(row.completion) for row in chosen]), strict=True):
            out[i] = logprobs_T.cpu()
    return out


def mismatch(old: Sequence[Tensor], rows: Sequence[TrainingRow]) -> dict[str, float | None]:
    """How far the sampler's log-probabilities are from the trainer's: mean and greatest absolute difference (nats)."""
    differences = torch.cat([(a - row.sampler_T).abs() for a, row in zip(old, rows, strict=True)])
    return {"mismatch_mean": float(differences.mean()), "mismatch_max": float(differences.max())}


def train(
    model: PreTrainedModel,
    optimizer: Optimizer,
    rows: Sequence[TrainingRow],
    old: Sequence[Tensor],
    config: UpdateConfig,
    seed: int,
    device: str,
    progress: Progress,
) -> list[dict[str, float]]:
    """Takes the optimizer steps of an iteration; returns the figures of each.

    Raises:
        DivergenceError: a loss or gradient is not finite.
    """
    steps: list[dict[str, float]] = []
    for epoch, minibatch, chosen in optimizer_batches(len(rows), config.epochs, config.minibatches, seed):
        meter = Meter()
        tokens = sum(len(rows[i].completion) for i in chosen)
        accumulate(model, [rows[i] for i in chosen], [old[i] for i in chosen], config, device, meter)
        figures = meter.result()
        if not math.isfinite(figures["loss"]):
            raise DivergenceError(f"optimizer step {optimizer.steps + 1}: the loss is {figures['loss']}")
        figures |= optimizer.step()
        figures |= {
            "step": optimizer.steps,
            "epoch": epoch,
            "minibatch": minibatch,
            "rows": len(chosen),
            "tokens": tokens,
        }
        steps.append(figures)
        progress(len(steps), config.epochs * config.minibatches)
    return steps


def accumulate(
    model: PreTrainedModel,
    rows: Sequence[TrainingRow],
    old: Sequence[Tensor],
    config: UpdateConfig,
    device: str,
    meter: Meter,
) -> None:
    """Adds the gradient of the loss of one optimizer batch to the parameters', micro-batch by micro-batch."""
    tokens = sum(len(row.completion) for row in rows)
    for part in micro_batches([row.length for row in rows], config.micro_batch_tokens):
        chosen = [rows[i] for i in part]
        logprobs_N, entropy_N = token_logprobs(model, _collate(chosen, device))
        references = [row.reference_T for row in chosen if row.reference_T is not None]
        inputs = LossInputs(
            old_N=torch.cat([old[i] for i in part]).to(device),
            advantages_N=torch.cat([row.advantages_T for row in chosen]).to(device),
            reference_N=torch.cat(references).to(device) if references else None,
            lengths_R=torch.tensor([len(row.completion) for row in chosen], device=device),
        )
        meter.mean("entropy", float(entropy_N.sum()), len(entropy_N))
        torch.autograd.backward(loss_of(logprobs_N, inputs, config, len(rows), tokens, meter))


def _collate(rows: Sequence[TrainingRow], device: str) -> TokenBatch:
    return collate(
        [row.prompt for row in rows], [row.completion for row in rows], [row.temperature for row in rows], device
    )
