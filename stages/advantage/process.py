"""Process supervision (DeepSeekMath, arXiv:2402.03300, section 4.1.3).

Dimensions: N rows, S steps of all rows in row order, M tokens of all rows in row order.
"""

import numpy as np

from stages.advantage.config import Process
from stages.advantage.groups import Floats, Groups, Ints, divisor, group_statistics
from stages.advantage.ragged import starts
from stages.advantage.returns import reward_to_go


def advantages(
    rewards_S: Floats, row_S: Ints, end_S: Ints, length_N: Ints, group_N: Ints, config: Process
) -> tuple[Floats, Groups]:
    """A_{i,t} = Σ over steps j that end at t or later of (r_{i,j} - mean(R)) / (std(R) + eps).

    R are the rewards of all steps of all completions of the group. Steps of a group whose step rewards are all equal,
    or that has only one step, add exactly 0. Also returned: the statistics of each step's group.

    Args:
        rewards_S: reward of each step; NaN for the steps of a row that is left out.
        row_S: the row of each step.
        end_S: the step's last token, counted from 0 in its row.
        length_N: tokens of each row.
        group_N: the group of each row.
        config: ddof and eps.
    """
    groups = group_statistics(rewards_S, group_N[row_S], config.ddof)
    normal_S = normalised(rewards_S, groups, config.eps)
    earned_M = np.zeros(int(length_N.sum()))
    earned_M[starts(length_N)[row_S] + end_S] = normal_S
    return reward_to_go(earned_M, length_N, 1.0), groups


def normalised(rewards: Floats, groups: Groups, eps: float) -> Floats:
    """(r - mean) / (std + eps); exactly 0 where there is no reward or nothing that differs."""
    nothing = np.isnan(rewards) | ~groups.useful_N
    result: Floats = np.where(nothing, 0.0, rewards - groups.mean_N) / divisor(nothing, groups.std_N, eps)
    return result
