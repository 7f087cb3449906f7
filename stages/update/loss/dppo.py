"""Divergence proximal policy optimization (DPPO, arXiv:2602.04879): a mask by total variation in place of the clip."""

import torch
from torch import Tensor


def dppo_masks(logprobs_N: Tensor, old_N: Tensor, advantages_N: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Tokens left out below (A < 0) and above (A > 0), as booleans [N].

    The binary total variation of a token is |π - π_old|, of probabilities, so that rare tokens may change by large
    ratios and common ones not by much. A token is left out where it exceeds δ and A would drive it on.

    Args:
        logprobs_N: log-probabilities of the policy (nats).
        old_N: log-probabilities of the old policy; the paper takes the sampler's (`old_logprobs: sampler`).
        advantages_N: advantage of each token.
        threshold: δ, in [0, 1].
    """
    difference_N = logprobs_N.detach().exp() - old_N.exp()
    return (difference_N < -threshold) & (advantages_N < 0), (difference_N > threshold) & (advantages_N > 0)


def dppo(ratio_N: Tensor, advantages_N: Tensor, low_N: Tensor, high_N: Tensor) -> Tensor:
    """-M ρ A for each token, M being 0 for the tokens of the two masks and 1 for the others.

    Args:
        ratio_N: π / π_old of each token, with gradient.
        advantages_N: advantage of each token.
        low_N: left out below.
        high_N: left out above.
    """
    assert ratio_N.shape == advantages_N.shape == low_N.shape == high_N.shape
    return torch.where(low_N | high_N, torch.zeros_like(ratio_N), -ratio_N * advantages_N)
