"""What each token earns: rewards along the way, the rest at the end, less a KL penalty. Pure.

Dimensions: N rows, M tokens of all rows in row order.
"""

import numpy as np

from stages.advantage.config import KlReward
from stages.advantage.groups import Floats, Ints
from stages.advantage.ragged import row_extremes, row_sums, starts

ROUNDING = 1e-5
"""Rewards of tokens are stored as float32: a rest smaller than this part of the greatest of them is none."""


def token_rewards(rewards_N: Floats, earned_M: Floats | None, length_N: Ints) -> Floats:
    """`earned_M` for each token, and what it does not account for of the row's reward at the row's last token.

    Args:
        rewards_N: the rows' whole rewards; NaN for a row that has none.
        earned_M: the part earned at each token; None where all is earned at the end.
        length_N: tokens of each row.
    """
    out_M = np.zeros(int(length_N.sum())) if earned_M is None else earned_M.copy()
    full_N = length_N > 0
    out_M[(starts(length_N) + length_N - 1)[full_N]] += rest(rewards_N, earned_M, length_N)[full_N]
    return out_M


def rest(rewards_N: Floats, earned_M: Floats | None, length_N: Ints) -> Floats:
    """The part [N] of each row's reward that no token earned on the way; 0 for a row without a reward."""
    there_N = np.nan_to_num(rewards_N, nan=0.0)
    if earned_M is None:
        return there_N
    rest_N = there_N - row_sums(earned_M, length_N)
    small_N = np.abs(rest_N) <= ROUNDING * (np.abs(there_N) + row_extremes(earned_M, length_N))
    return np.where(small_N | np.isnan(rewards_N), 0.0, rest_N)


def kl_penalty(sampler_M: Floats, reference_M: Floats, config: KlReward) -> Floats:
    """-β · KL estimate of each token (nats), of d = log π_sampler - log π_reference.

    k1 = d, k2 = d²/2, k3 = exp(-d) - 1 + d (Schulman, "Approximating KL divergence", 2020); clamped where configured.
    """
    assert sampler_M.shape == reference_M.shape
    difference_M = sampler_M - reference_M
    match config.estimator:
        case "k1":
            estimate_M = difference_M
        case "k2":
            estimate_M = 0.5 * difference_M**2
        case "k3":
            estimate_M = np.expm1(-difference_M) + difference_M
    if config.clamp is not None:
        estimate_M = np.clip(estimate_M, -config.clamp, config.clamp)
    result: Floats = -config.coefficient * estimate_M
    return result
