"""Statistics of groups without a loop over rows. Pure.

Dimensions: N rows, P groups.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Groups:
    """Statistics of each row's group, over the group's rows that have a reward."""

    count_N: Ints
    mean_N: Floats
    """NaN for a group without rewards."""
    std_N: Floats
    """NaN for a group with no more than ddof rewards."""
    deviation_N: Floats
    """Mean absolute deviation from the mean."""
    constant_N: Bools
    """All rewards of the group are equal; decided by maximum and minimum, because a computed std may be 1e-17."""

    @property
    def useful_N(self) -> Bools:
        """The group has two rewards that differ."""
        different_N: Bools = (self.count_N > 1) & ~self.constant_N
        return different_N


def group_statistics(rewards_N: Floats, group_N: Ints, ddof: int) -> Groups:
    """Count, mean, standard deviation, mean absolute deviation and constancy of the group of each row.

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
        distance = np.abs(values - mean_P[groups])
        deviation_P = np.bincount(groups, weights=distance, minlength=size) / count_P
        squares_P = np.bincount(groups, weights=distance**2, minlength=size)
        std_P = np.where(count_P > ddof, np.sqrt(squares_P / (count_P - ddof)), np.nan)
    least_P, greatest_P = _extremes(values, groups, size)
    constant_P = least_P == greatest_P
    return Groups(count_P[group_N], mean_P[group_N], std_P[group_N], deviation_P[group_N], constant_P[group_N])


def statistics_of_others(rewards_N: Floats, group_N: Ints, ddof: int) -> Groups:
    """The same of the group's other rows: of all of them for a row without a reward.

    A standard deviation of others that are all equal is exactly 0, however the sums round.
    """
    whole = group_statistics(rewards_N, group_N, 0)
    there_N = ~np.isnan(rewards_N)
    own_N = np.where(there_N, rewards_N - whole.mean_N, 0.0)
    count_N = whole.count_N - there_N
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_N = whole.mean_N - own_N / count_N
        # Σ_{j≠i} (r_j - mean_{-i})² = Σ_j (r_j - mean)² - (r_i - mean)² · n / (n - 1)
        squares_N = whole.std_N**2 * whole.count_N - np.where(there_N, own_N**2 * whole.count_N / count_N, 0.0)
        std_N = np.where(count_N > ddof, np.sqrt(np.maximum(squares_N, 0.0) / (count_N - ddof)), np.nan)
    constant_N = whole.constant_N | (there_N & _lonely(rewards_N, group_N, whole))
    std_N = np.where(constant_N & (count_N > ddof), 0.0, std_N)
    return Groups(count_N, mean_N, std_N, np.full_like(mean_N, np.nan), constant_N)


def _lonely(rewards_N: Floats, group_N: Ints, whole: Groups) -> Bools:
    """Rows without which the rewards of their group would all be equal."""
    # Two values in the group, one of them in a single row: that row's own. The rest have the value of any other row.
    size = int(group_N.max(initial=-1)) + 1
    there_N = ~np.isnan(rewards_N)
    least_P, greatest_P = _extremes(rewards_N[there_N], group_N[there_N], size)
    lowest_N, highest_N = rewards_N == least_P[group_N], rewards_N == greatest_P[group_N]
    above_P = np.bincount(group_N[there_N & ~lowest_N], minlength=size)
    below_P = np.bincount(group_N[there_N & ~highest_N], minlength=size)
    alone_N: Bools = (~lowest_N & (above_P[group_N] == 1)) | (~highest_N & (below_P[group_N] == 1))
    return alone_N


def _extremes(values: Floats, groups: Ints, size: int) -> tuple[Floats, Floats]:
    """The least and the greatest value of each group; infinite for a group without any."""
    least_P, greatest_P = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(least_P, groups, values)
    np.maximum.at(greatest_P, groups, values)
    return least_P, greatest_P


def divisor(nothing_N: Bools, spread_N: Floats, eps: float) -> Floats:
    """spread + eps; 1 where there is nothing to divide, or where differences of 1e-200 have a spread of 0."""
    sum_N = np.where(nothing_N, 1.0, spread_N + eps)
    return np.where(sum_N == 0, 1.0, sum_N)
