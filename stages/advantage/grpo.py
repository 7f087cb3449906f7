"""Group-relative advantages (DeepSeekMath, arXiv:2402.03300, section 4.1.2; without std Dr. GRPO, arXiv:2503.20783)."""

import numpy as np

from stages.advantage.config import Grpo
from stages.advantage.groups import Floats, Groups


def advantages(rewards_N: Floats, groups: Groups, config: Grpo) -> Floats:
    """A_i = (r_i - mean(r)) / (std(r) + eps); with `scale: none` A_i = r_i - mean(r).

    Rows of a constant group, of a group with fewer than two rewards, and rows without a reward get exactly 0.

    Args:
        rewards_N: rewards; NaN where a row has none.
        groups: statistics of each row's group.
        config: scale, ddof (already in `groups`) and eps.
    """
    nothing_N = np.isnan(rewards_N) | groups.constant_N | (groups.count_N < 2)
    centred_N = np.where(nothing_N, 0.0, rewards_N - groups.mean_N)
    if config.scale == "none":
        return centred_N
    return centred_N / np.where(nothing_N, 1.0, groups.std_N + config.eps)
