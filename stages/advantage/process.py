"""Process supervision (DeepSeekMath, arXiv:2402.03300, section 4.1.3).

Dimensions: N rows, S steps of all rows in row order, M tokens of all rows in row order.
"""

import numpy as np
from numpy.typing import NDArray

from stages.advantage.groups import Floats, Groups, Ints, divisor
from stages.advantage.returns import reward_to_go


def advantages(normal_S: Floats, row_S: Ints, end_S: Ints, outcome_N: Floats, length_N: Ints) -> NDArray[np.float32]:
    """A_{i,t} = Σ over steps j that end at t or later of r̃_{i,j}, plus what the outcome gives to all tokens.

    A token belongs to the step that ends next; tokens after the last step have the outcome's part alone.

    Args:
        normal_S: normalised reward r̃ of each step.
        row_S: the row of each step, ascending.
        end_S: the step's last token, counted from 0 in its row, ascending within it.
        outcome_N: normalised reward of each row's outcome; 0 where there is none.
        length_N: tokens of each row.
    """
    rows, steps = len(length_N), len(row_S)
    count_N = np.bincount(row_S, minlength=rows)
    first_S = np.diff(row_S, prepend=-1) > 0
    before_S = np.where(first_S, -1, np.roll(end_S, 1))
    last_N = np.full(rows, -1)
    last_N[row_S] = end_S  # the last assignment, that of the row's last step, holds
    # A row's tokens fall into one part for each step and one after the last.
    part_S, part_N = np.arange(steps) + row_S, np.cumsum(count_N) + np.arange(rows)
    value, length = np.zeros(steps + rows), np.zeros(steps + rows, dtype=np.int64)
    value[part_S] = reward_to_go(normal_S, count_N, 1.0) + outcome_N[row_S]
    value[part_N] = outcome_N
    length[part_S], length[part_N] = end_S - before_S, length_N - 1 - last_N
    return np.repeat(value.astype(np.float32), length)


def normalised(rewards: Floats, groups: Groups, eps: float) -> Floats:
    """(r - mean(R)) / (std(R) + eps), R all rewards of the group; exactly 0 without a reward or where nothing differs.

    Args:
        rewards: of steps or of outcomes; NaN where there is none.
        groups: statistics of the group of each, over the rewards of all steps of all completions of the group.
        eps: added to the standard deviation.
    """
    nothing = np.isnan(rewards) | ~groups.useful_N
    result: Floats = np.where(nothing, 0.0, rewards - groups.mean_N) / divisor(nothing, groups.std_N, eps)
    return result
