"""Soft adaptive policy optimization (SAPO, arXiv:2511.20347): a soft gate in place of the clip."""

import torch
from torch import Tensor


def sapo(ratio_N: Tensor, advantages_N: Tensor, positive: float, negative: float) -> Tensor:
    """-(4/τ) σ(τ (ρ - 1)) A for each token, τ by the sign of A.

    The gradient with respect to ρ is 4 σ (1 - σ) A: that of the policy gradient at ρ = 1, less the further ρ is from 1.

    Args:
        ratio_N: π / π_old, with gradient.
        advantages_N: advantage of each token.
        positive: τ where A > 0.
        negative: τ where A ≤ 0; the paper takes it greater, so that tokens pushed down are let go of sooner.
    """
    assert ratio_N.shape == advantages_N.shape
    tau_N = torch.where(advantages_N > 0, positive, negative).to(ratio_N.dtype)
    return -torch.sigmoid(tau_N * (ratio_N - 1)) * 4 / tau_N * advantages_N
