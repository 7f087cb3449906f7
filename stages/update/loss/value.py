"""The critic's loss (PPO, arXiv:1707.06347, equation 9; clipped as in its published code, arXiv:2005.12729)."""

import torch
from torch import Tensor


def value_loss(values_N: Tensor, returns_N: Tensor, old_N: Tensor, clip: float | None) -> Tensor:
    """½ (V - R)² for each token; with `clip` ½ max((V - R)², (V_old + clip(V - V_old, -c, c) - R)²).

    Args:
        values_N: the critic's values, with gradient.
        returns_N: what they should be, in units of the reward.
        old_N: the values that the advantages were made with.
        clip: c, in units of the reward; None does not clip.
    """
    assert values_N.shape == returns_N.shape == old_N.shape
    loss_N = (values_N - returns_N) ** 2
    if clip is not None:
        near_N = old_N + (values_N - old_N).clamp(-clip, clip)
        loss_N = torch.maximum(loss_N, (near_N - returns_N) ** 2)
    return 0.5 * loss_N
