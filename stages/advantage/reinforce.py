"""REINFORCE (Williams, 1992): reward-to-go less a baseline. Dimensions: N rows, M tokens of all rows in row order."""

import numpy as np

from stages.advantage.config import Reinforce
from stages.advantage.groups import Bools, Floats, Ints
from stages.advantage.returns import first_of_each, reward_to_go


def advantages(
    rewards_M: Floats, length_N: Ints, scored_N: Bools, config: Reinforce, former: float | None
) -> tuple[Floats, float | None]:
    """A_t = Σ_l γ^l r_{t+l} - b, and the running baseline that the next iteration starts from (None without one).

    b is 0, or the mean return from the first token over the iteration's completions, or the moving average of that
    mean over the iterations before this one: b_k = decay · b_{k-1} + (1 - decay) · mean_{k-1}. The first iteration,
    which has none before it, takes its own mean.

    Args:
        rewards_M: reward of each token.
        length_N: tokens of each row.
        scored_N: rows that have a reward and a token: those over which the mean is taken.
        config: γ, which baseline, decay.
        former: the running baseline that the iteration before left; None for the first.
    """
    returns_M = reward_to_go(rewards_M, length_N, config.gamma)
    if config.baseline == "none":
        return returns_M, None
    mean = float(first_of_each(returns_M, length_N)[scored_N].mean()) if scored_N.any() else None
    if config.baseline == "batch":
        return returns_M - (mean or 0.0), None
    before = mean if former is None else former
    if before is None or mean is None:
        return returns_M - (before or 0.0), before
    return returns_M - before, float(np.float64(config.decay * before + (1 - config.decay) * mean))
