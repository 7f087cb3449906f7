"""The clipped surrogate (PPO, arXiv:1707.06347, equation 7; two clip widths: DAPO, arXiv:2503.14476, equation 10)."""

import torch
from torch import Tensor


def clipped(ratio_N: Tensor, advantages_N: Tensor, epsilon_low: float, epsilon_high: float) -> Tensor:
    """-min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A) for each token.

    Args:
        ratio_N: π(token) / π_old(token), with gradient.
        advantages_N: advantage of each token.
        epsilon_low: width of the clip below 1, in [0, 1].
        epsilon_high: width of the clip above 1.
    """
    assert ratio_N.shape == advantages_N.shape
    clip_N = ratio_N.clamp(1 - epsilon_low, 1 + epsilon_high)
    return -torch.minimum(ratio_N * advantages_N, clip_N * advantages_N)


def clip_fractions(
    ratio_N: Tensor, advantages_N: Tensor, epsilon_low: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """Which tokens are clipped below (A < 0) and above (A > 0), as booleans [N]: those whose gradient is cut off."""
    low_N = (ratio_N < 1 - epsilon_low) & (advantages_N < 0)
    high_N = (ratio_N > 1 + epsilon_high) & (advantages_N > 0)
    return low_N, high_N
