"""Generalised advantage estimation (Schulman et al., arXiv:1506.02438, equation 16), as PPO uses it.

Dimensions: M tokens of all rows in row order.
"""

from stages.advantage.config import Gae
from stages.advantage.groups import Bools, Floats, Ints
from stages.advantage.returns import estimate, whitened


def advantages(
    rewards_M: Floats, values_M: Floats, length_N: Ints, counted_M: Bools, config: Gae, mask_M: Bools | None = None
) -> tuple[Floats, Floats]:
    """δ_t = r_t + γ V_{t+1} - V_t; A_t = Σ_l (γλ)^l δ_{t+l}; returns A_t + V_t. Whitening changes A, not the returns.

    Args:
        rewards_M: reward of each token, a KL penalty included.
        values_M: the critic's value before each token; what follows the last token is worth 0.
        length_N: tokens of each row.
        counted_M: tokens of rows that are trained on, over which the whitening takes mean and standard deviation.
        config: γ, λ, whitening.
        mask_M: which tokens are actions; None for all. The others get 0, and returns of their own value.
    """
    raw_M = estimate(rewards_M, values_M, length_N, config.gamma, config.gae_lambda, mask_M)
    acting_M = counted_M if mask_M is None else counted_M & mask_M
    advantages_M = whitened(raw_M, acting_M, config.eps) if config.whiten else raw_M
    if mask_M is not None and config.whiten:
        advantages_M = advantages_M * mask_M
    return advantages_M, raw_M + values_M
