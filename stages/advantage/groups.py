"""Statistics of groups without a loop over rows. Pure.

Dimensions: N rows, P groups.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Groups:
    """Statistics of each row's group, over the group's rows that have a reward."""

    count_N: NDArray[np.int64]
    mean_N: Floats
    """NaN for a group without rewards."""
    std_N: Floats
    """NaN for a group with no more than ddof rewards."""
    constant_N: NDArray[np.bool_]
    """All rewards of the group are equal; decided by maximum and minimum, because a computed std may be 1e-17."""


def group_statistics(rewards_N: Floats, group_N: NDArray[np.int64], ddof: int) -> Groups:
    """Count, mean, standard deviation and constancy of the group of each row.

    Args:
        rewards_N: rewards; NaN where a row has none.
        group_N: the group of each row, 0 … P-1.
        ddof: the variance's divisor is count - ddof.
    """
    assert rewards_N.shape == group_N.shape
    size = int(group_N.max(initial=-1)) + 1
    there_N = ~np.isnan(rewards_N)
    groups, values = group_N[there_N], rewards_N[there_N]
    count_P = np.bincount(groups, minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_P = np.bincount(groups, weights=values, minlength=size) / count_P
        squares_P = np.bincount(groups, weights=(values - mean_P[groups]) ** 2, minlength=size)
        std_P = np.where(count_P > ddof, np.sqrt(squares_P / (count_P - ddof)), np.nan)
    least_P, greatest_P = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(least_P, groups, values)
    np.maximum.at(greatest_P, groups, values)
    return Groups(count_P[group_N], mean_P[group_N], std_P[group_N], (least_P == greatest_P)[group_N])
