"""Weights that correct for the sampler not being the trainer: π_old as the trainer runs it over π as the sampler did.

Truncated: TIS (Yao et al., "Your efficient RL framework secretly brings you off-policy RL training", 2025). Masked, by
token and on both sides: IcePop (arXiv:2510.18855); by sequence: MIS (Liu et al., "When speed kills stability", 2025).
"""

from typing import Literal

import torch
from torch import Tensor


def importance_weights(
    old_N: Tensor,
    sampler_N: Tensor,
    lengths_R: Tensor,
    level: Literal["token", "sequence"],
    kind: Literal["truncate", "mask"],
    low: float | None,
    high: float,
) -> tuple[Tensor, Tensor]:
    """The weight [N] of each token's policy loss, without gradient, and which tokens' weights were changed.

    Args:
        old_N: log-probabilities of the old policy as the trainer runs it (nats).
        sampler_N: log-probabilities that the sampler reported.
        lengths_R: completion tokens of each row.
        level: a token's own ratio, or the product over its row.
        kind: `truncate` brings a weight to the bound that it exceeds, `mask` to 0.
        low: lower bound; None sets none.
        high: upper bound.
    """
    assert old_N.shape == sampler_N.shape
    log_N = (old_N - sampler_N).detach()
    if level == "sequence":
        log_N = torch.segment_reduce(log_N, "sum", lengths=lengths_R).repeat_interleave(lengths_R)
    weight_N = log_N.exp()
    beyond_N = weight_N > high
    if low is not None:
        beyond_N = beyond_N | (weight_N < low)
    if kind == "truncate":
        return weight_N.clamp(low, high), beyond_N
    return weight_N.masked_fill(beyond_N, 0.0), beyond_N
