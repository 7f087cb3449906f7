"""Training the critic.

Dimensions: N completion tokens of a micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.contract.metrics import Meter
from stages.model.critic import token_values
from stages.model.optim import Optimizer
from stages.update.batch import TrainingRow, row_batches
from stages.update.loss.value import value_loss


@dataclass(frozen=True)
class CriticTrainer:
    """A critic in training."""

    model: PreTrainedModel
    optimizer: Optimizer
    clip: float | None


def accumulate_values(
    trainee: CriticTrainer, rows: Sequence[TrainingRow], micro_batch_tokens: int, device: str, meter: Meter
) -> None:
    """Adds the gradient of the mean value loss over the tokens of one optimizer batch to the critic's parameters'."""
    tokens = sum(len(row.completion) for row in rows)
    for part, batch in row_batches(trainee.model, rows, micro_batch_tokens, device):
        chosen = [rows[i] for i in part]
        values_N = token_values(trainee.model, batch)
        old_N = _joined([row.values_T for row in chosen], device)
        returns_N = _joined([row.returns_T for row in chosen], device)
        loss = value_loss(values_N, returns_N, old_N, trainee.clip).sum() / tokens
        _record(values_N.detach(), returns_N, old_N, trainee.clip, meter)
        meter.sum("value_loss", float(loss.detach()))
        torch.autograd.backward(loss)


def _record(values_N: Tensor, returns_N: Tensor, old_N: Tensor, clip: float | None, meter: Meter) -> None:
    count = len(values_N)
    values, returns = values_N.double(), returns_N.double()
    errors = returns - values
    meter.mean("value_mean", float(values.sum()), count)
    meter.mean("return_mean", float(returns.sum()), count)
    meter.mean("return_square", float((returns**2).sum()), count)
    meter.mean("error_mean", float(errors.sum()), count)
    meter.mean("error_square", float((errors**2).sum()), count)
    if clip is not None:
        meter.mean("value_clip_fraction", float(((values_N - old_N).abs() > clip).sum()), count)


def _joined(parts: list[Tensor | None], device: str) -> Tensor:
    there = [part for part in parts if part is not None]
    assert len(there) == len(parts)
    return torch.cat(there).to(device)
