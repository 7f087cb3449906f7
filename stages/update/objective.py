"""The loss of an optimizer batch, micro-batch by micro-batch, and the figures that tell its health.

Dimensions: N completion tokens of a micro-batch, R its rows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.contract.metrics import Meter
from stages.update.config import UpdateConfig
from stages.update.loss.kl import k1, k2, k3, kl_estimate
from stages.update.loss.mismatch import importance_weights
from stages.update.loss.reduce import token_weights
from stages.update.surrogate import Surrogate, surrogate


@dataclass(frozen=True)
class LossInputs:
    """What the loss of a micro-batch needs beside what the policy says of it; all [N] but the lengths."""

    old_N: Tensor
    advantages_N: Tensor
    reference_N: Tensor | None
    lengths_R: Tensor
    sampler_N: Tensor | None = None
    """The sampler's log-probabilities; None where the old policy's are taken from it."""
    kept_N: Tensor | None = None
    """Booleans: the tokens that the policy loss is taken over; None takes all."""


def loss_of(
    logprobs_N: Tensor,
    inputs: LossInputs,
    config: UpdateConfig,
    rows: int,
    tokens: int,
    meter: Meter,
    entropy_N: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """The micro-batch's part of the optimizer batch's loss: parts of all micro-batches add up to it.

    loss = Σ w (m f L) + β Σ w KL - c Σ w H, with w by the aggregation, L the token's policy loss, m its weight against
    mismatch (0 for tokens left out by entropy), f the factor. Neither m nor f nor any ratio of L touches KL and H.

    Args:
        logprobs_N: log-probabilities of the policy, with gradient.
        inputs: the rest.
        config: loss, aggregation, β, correction; β as it stands in this iteration.
        rows: rows of the whole optimizer batch.
        tokens: completion tokens of the whole optimizer batch.
        meter: takes the figures.
        entropy_N: entropies of the policy, with gradient; None where there is no bonus.
        factor: of the policy loss of the whole batch (GPG).
    """
    loss = config.loss
    made = surrogate(loss, logprobs_N, inputs.old_N, inputs.advantages_N, inputs.lengths_R)
    weights_N = token_weights(inputs.lengths_R, loss.aggregation, rows, tokens, loss.length)
    loss_N = made.loss_N
    if inputs.sampler_N is not None:
        _record_mismatch(inputs.old_N, inputs.sampler_N, meter)
        if (correct := config.mismatch) is not None:
            bounds = (correct.level, correct.type, correct.low, correct.high)
            importance_N, beyond_N = importance_weights(inputs.old_N, inputs.sampler_N, inputs.lengths_R, *bounds)
            loss_N = loss_N * importance_N
            meter.mean("mismatch_weight_mean", float(importance_N.sum()), len(loss_N))
            meter.mean("mismatch_bounded_fraction", float(beyond_N.sum()), len(loss_N))
    if inputs.kept_N is not None:
        loss_N = loss_N * inputs.kept_N
    policy_loss = (weights_N * loss_N).sum()
    if factor != 1:
        policy_loss = factor * policy_loss
    _record_policy(made, logprobs_N, inputs, meter)
    meter.sum("policy_loss", float(policy_loss.detach()))
    total = policy_loss
    if inputs.reference_N is not None:
        kl_N = kl_estimate(logprobs_N, inputs.old_N, inputs.reference_N, config.kl.estimator, config.kl.clamp)
        _record_kl(kl_N, logprobs_N, inputs.reference_N, meter)
        if config.kl.coefficient > 0:
            kl_loss = config.kl.coefficient * (weights_N * kl_N).sum()
            meter.sum("kl_loss", float(kl_loss.detach()))
            total = policy_loss + kl_loss
    if entropy_N is not None and config.entropy.bonus > 0:
        entropy_loss = -config.entropy.bonus * (weights_N * entropy_N).sum()
        meter.sum("entropy_loss", float(entropy_loss.detach()))
        total = total + entropy_loss
    meter.sum("loss", float(total.detach()))
    return total


def derived(figures: dict[str, float]) -> dict[str, float]:
    """The figures of an optimizer batch, with those put in that are made of several means.

    - `effective_sample_size`: (Σ w)² / (n Σ w²) in (0, 1], w = π / π_sampler of each of the n tokens.
    - `explained_variance`: 1 - Var(R - V) / Var(R) of the critic before its step; left out where returns are constant.
    """
    out = dict(figures)
    mean, square = out.pop("weight_mean", None), out.pop("weight_square", None)
    if mean is not None and square is not None:
        out["effective_sample_size"] = mean**2 / square if square > 0 and math.isfinite(square) else 0.0
    if "return_square" in out:
        error = out.pop("error_square") - out.pop("error_mean") ** 2
        spread = out.pop("return_square") - out["return_mean"] ** 2
        if spread > 0:
            out["explained_variance"] = 1 - error / spread
    return out


@torch.no_grad()
def _record_policy(made: Surrogate, logprobs_N: Tensor, inputs: LossInputs, meter: Meter) -> None:
    count = len(logprobs_N)
    for name, bounded_N in made.bounded.items():
        meter.mean(f"clip_fraction_{name}", float(bounded_N.sum()), count)
    meter.mean("ratio_mean", float(made.ratio_N.sum()), count)
    meter.min("ratio_min", float(made.ratio_N.min()))
    meter.max("ratio_max", float(made.ratio_N.max()))
    behaviour_N = inputs.old_N if inputs.sampler_N is None else inputs.sampler_N
    weight_N = (logprobs_N - behaviour_N).double().exp()
    meter.mean("weight_mean", float(weight_N.sum()), count)
    meter.mean("weight_square", float((weight_N**2).sum()), count)


@torch.no_grad()
def _record_kl(kl_N: Tensor, logprobs_N: Tensor, reference_N: Tensor, meter: Meter) -> None:
    count = len(kl_N)
    meter.mean("kl", float(kl_N.sum()), count)
    for name, estimator in (("kl_k1", k1), ("kl_k2", k2), ("kl_k3", k3)):
        meter.mean(name, float(estimator(logprobs_N, reference_N).sum()), count)


@torch.no_grad()
def _record_mismatch(old_N: Tensor, sampler_N: Tensor, meter: Meter) -> None:
    meter.mean("mismatch_mean", float((old_N - sampler_N).abs().sum()), len(old_N))
    meter.max("mismatch_max", float((old_N - sampler_N).abs().max()))
    meter.mean("mismatch_kl", float(k3(sampler_N, old_N).sum()), len(old_N))
