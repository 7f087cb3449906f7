"""Group-relative advantages (DeepSeekMath, arXiv:2402.03300, section 4.1.2; without std Dr. GRPO, arXiv:2503.20783).

Dimensions: N rows.
"""

from collections.abc import Sequence

import numpy as np

from stages.advantage.config import Grpo
from stages.advantage.groups import Floats, Groups, Ints, divisor, group_statistics, statistics_of_others


def advantages(rewards_N: Floats, groups: Groups, config: Grpo) -> Floats:
    """A_i = (r_i - mean(r)) / (std(r) + eps); with `scale: none` A_i = r_i - mean(r).

    `batch` takes the standard deviation of all rewards of the iteration (arXiv:2508.08221), `mad` the group's mean
    absolute deviation (1/G) Σ |r_j - mean(r)|. Rows of a constant group, of a group with fewer than two rewards, and
    rows without a reward get exactly 0.

    Args:
        rewards_N: rewards; NaN where a row has none.
        groups: statistics of each row's group.
        config: scale, ddof (already in `groups`) and eps.
    """
    nothing_N = np.isnan(rewards_N) | ~groups.useful_N
    centred_N: Floats = np.where(nothing_N, 0.0, rewards_N - groups.mean_N)
    match config.scale:
        case "none":
            return centred_N
        case "group":
            spread_N = groups.std_N
        case "mad":
            spread_N = groups.deviation_N
        case "batch":
            spread_N = np.full_like(centred_N, spread(rewards_N, config.ddof))
    result_N: Floats = centred_N / divisor(nothing_N, spread_N, config.eps)
    return result_N


def leave_one_out(rewards_N: Floats, group_N: Ints, config: Grpo) -> Floats:
    """A_i = (r_i - mean(r_{-i})) / (std(r_{-i}) + eps), statistics of the group's other rewards (NeMo-RL's convention).

    Where the others are all equal there is nothing to divide by, and A_i = r_i - mean(r_{-i}); where they are only one,
    too. Constant groups and rows without a reward get exactly 0.
    """
    whole = group_statistics(rewards_N, group_N, config.ddof)
    others = statistics_of_others(rewards_N, group_N, config.ddof)
    nothing_N = np.isnan(rewards_N) | ~whole.useful_N
    centred_N: Floats = np.where(nothing_N, 0.0, rewards_N - others.mean_N)
    if config.scale == "none":
        return centred_N
    spread_N = np.full_like(centred_N, spread(rewards_N, config.ddof)) if config.scale == "batch" else others.std_N
    result_N: Floats = centred_N / divisor(nothing_N | ~(spread_N > 0), spread_N, config.eps)
    return result_N


def relative(rewards_N: Floats, group_N: Ints, config: Grpo) -> Floats:
    """The advantages by the baseline that the configuration names."""
    if config.baseline == "leave_one_out":
        return leave_one_out(rewards_N, group_N, config)
    return advantages(rewards_N, group_statistics(rewards_N, group_N, config.ddof), config)


def decoupled(parts: Sequence[tuple[float, Floats]], scored_N: Floats, group_N: Ints, config: Grpo) -> Floats:
    """Each reward normalised in its group, then summed by weight, then divided by its spread (GDPO, arXiv:2601.05242).

    A_i = S_i / (std(S) + eps) with S_i = Σ_m w_m · A_i^m. The mean of S over the iteration is 0 by construction, for
    every A^m sums to 0 in each group; so it is not subtracted, and constant groups keep their exact zeros.

    Args:
        parts: weight and values of each reward; NaN where one does not apply to a row, which adds nothing to its sum.
        scored_N: the rows' weighted rewards, NaN for a row that is left out of all statistics.
        group_N: the group of each row.
        config: how each reward is normalised.
    """
    total_N = np.zeros_like(scored_N)
    for weight, values_N in parts:
        total_N += weight * relative(np.where(np.isnan(scored_N), np.nan, values_N), group_N, config)
    deviation = spread(np.where(np.isnan(scored_N), np.nan, total_N), config.ddof)
    return total_N / (deviation + config.eps) if deviation > 0 else total_N


def spread(values_N: Floats, ddof: int) -> float:
    """The standard deviation of the values that are there; exactly 0 where they are all equal or too few."""
    there = values_N[~np.isnan(values_N)]
    return float(there.std(ddof=ddof)) if len(there) > ddof and there.min() < there.max() else 0.0
