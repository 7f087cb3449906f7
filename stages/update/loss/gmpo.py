"""Geometric-mean policy optimization (GMPO, arXiv:2507.20673): its clipped objective."""

import torch
from torch import Tensor

from stages.update.loss.ratio import row_means


def gmpo(
    logprobs_N: Tensor, old_N: Tensor, advantages_N: Tensor, lengths_R: Tensor, epsilon_low: float, epsilon_high: float
) -> Tensor:
    """-A (Π_t ρ'_t)^(1/|o|), the same for each token of a row whose advantages are.

    ρ'_t is the less hopeful of ρ_t and clip(ρ_t, exp(-ε_low), exp(ε_high)): the lesser where A > 0, the greater where
    A < 0. With the aggregation `sequence_mean` the tokens' losses are the paper's 1/G Σ_i.

    Args:
        logprobs_N: log-probabilities of the policy (nats), with gradient.
        old_N: log-probabilities of the old policy.
        advantages_N: advantage of each token.
        lengths_R: completion tokens of each row.
        epsilon_low: width of the clip below a log-ratio of 0 (nats); the paper takes 0.4.
        epsilon_high: width above; the paper takes 0.4.
    """
    assert logprobs_N.shape == old_N.shape == advantages_N.shape
    sign_N = torch.where(advantages_N < 0, -1.0, 1.0).to(logprobs_N.dtype)
    log_ratio_N = logprobs_N - old_N
    clip_N = log_ratio_N.clamp(-epsilon_low, epsilon_high)
    kept_N = sign_N * torch.minimum(sign_N * log_ratio_N, sign_N * clip_N)
    return -advantages_N * row_means(kept_N, lengths_R).exp()
