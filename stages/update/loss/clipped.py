"""The clipped surrogate (PPO, arXiv:1707.06347, equation 7; two clip widths: DAPO, arXiv:2503.14476, equation 10).

With a sequence's ratio it is GSPO (arXiv:2507.18071, equation 5), and summed over tokens LUSPO.
"""

import torch
from torch import Tensor


def clipped(
    ratio_N: Tensor,
    advantages_N: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    dual_clip: float | None = None,
    delta: float | None = None,
) -> Tensor:
    """-min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A) for each token.

    Where A < 0 this has no bound as ρ grows. Two bounds were published, equal where δ = c > 1 + ε_high:

    - dual clip (arXiv:1912.09729): max(min(…), c A) where A < 0.
    - two-sided clip (INTELLECT-2, arXiv:2505.07291): min(min(ρ, δ) A, clip(ρ, …) A), any A.

    Args:
        ratio_N: π(token) / π_old(token), with gradient.
        advantages_N: advantage of each token.
        epsilon_low: width of the clip below 1, in [0, 1].
        epsilon_high: width of the clip above 1.
        dual_clip: c; None sets no bound.
        delta: δ; None sets no bound.
    """
    assert ratio_N.shape == advantages_N.shape
    clip_N = ratio_N.clamp(1 - epsilon_low, 1 + epsilon_high)
    bound_N = ratio_N if delta is None else ratio_N.clamp(max=delta)
    surrogate_N = torch.minimum(bound_N * advantages_N, clip_N * advantages_N)
    if dual_clip is not None:
        bounded_N = torch.maximum(surrogate_N, dual_clip * advantages_N)
        surrogate_N = torch.where(advantages_N < 0, bounded_N, surrogate_N)
    return -surrogate_N


def clip_fractions(
    ratio_N: Tensor, advantages_N: Tensor, epsilon_low: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """Which tokens are clipped below (A < 0) and above (A > 0), as booleans [N]: those whose gradient is cut off."""
    low_N = (ratio_N < 1 - epsilon_low) & (advantages_N < 0)
    high_N = (ratio_N > 1 + epsilon_high) & (advantages_N > 0)
    return low_N, high_N
