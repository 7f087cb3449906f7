"""REINFORCE leave-one-out (Kool et al., 2019; Ahmadian et al., arXiv:2402.14740). Dimensions: N rows."""

import numpy as np

from stages.advantage.groups import Floats, Groups


def advantages(rewards_N: Floats, groups: Groups) -> Floats:
    """A_i = r_i - (1/(G-1)) Σ_{j≠i} r_j = G/(G-1) · (r_i - mean(r)), G the rewards of the group.

    Rows of a constant group, of a group with fewer than two rewards, and rows without a reward get exactly 0.
    """
    nothing_N = np.isnan(rewards_N) | ~groups.useful_N
    factor_N = groups.count_N / np.maximum(groups.count_N - 1, 1)
    return np.where(nothing_N, 0.0, factor_N * (rewards_N - groups.mean_N))
