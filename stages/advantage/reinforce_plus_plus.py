"""REINFORCE++ (Hu et al., arXiv:2501.03262). Dimensions: N rows, M tokens of all rows in row order."""

import numpy as np

from stages.advantage.config import ReinforcePlusPlus
from stages.advantage.groups import Bools, Floats, Groups, Ints
from stages.advantage.returns import reward_to_go, whitened


def advantages(rewards_M: Floats, length_N: Ints, counted_M: Bools, config: ReinforcePlusPlus) -> Floats:
    """A_t = (G_t - mean(G)) / (std(G) + eps) with G_t = Σ_l γ^l r_{t+l}, statistics over the iteration's tokens.

    Args:
        rewards_M: reward of each token, a KL penalty included; with `baseline: group` of centred rewards.
        length_N: tokens of each row.
        counted_M: tokens of rows that are trained on.
        config: γ and eps.
    """
    return whitened(reward_to_go(rewards_M, length_N, config.gamma), counted_M, config.eps)


def centred(rewards_N: Floats, groups: Groups) -> Floats:
    """r_i - mean(r) of the group (REINFORCE++-baseline): exactly 0 in a constant group, NaN without a reward."""
    return np.where(groups.constant_N & ~np.isnan(rewards_N), 0.0, rewards_N - groups.mean_N)
