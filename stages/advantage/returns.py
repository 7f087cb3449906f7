"""Sums over the tokens that follow: the recursion of GAE, of which discounted reward-to-go is a case. Pure.

Dimensions: N rows, M tokens of all rows in row order.
"""

import numpy as np

from stages.advantage.groups import Bools, Floats, Ints
from stages.advantage.ragged import starts

ROWS_AT_A_TIME = 8192
"""Rows that run together, so that what they touch stays in the processor's cache."""


def estimate(
    rewards_M: Floats, values_M: Floats, length_N: Ints, gamma: float, lam: float, mask_M: Bools | None = None
) -> Floats:
    """A_t = δ_t + γλ A_{t+1} with δ_t = r_t + γ V_{t+1} - V_t; after the last token V and A are 0 (arXiv:1506.02438).

    Tokens outside the mask (a tool's answer inside a completion, say) are no actions: they get 0, the token before such
    a gap is followed by the one after it, and a reward earned in a gap goes to the last action before it.

    Args:
        rewards_M: reward of each token.
        values_M: the critic's value before each token.
        length_N: tokens of each row.
        gamma: discount a token (γ).
        lam: λ.
        mask_M: which tokens are actions; None for all.
    """
    assert rewards_M.shape == values_M.shape == (int(length_N.sum()),)
    out_M = np.zeros_like(rewards_M)
    by_length = np.argsort(-length_N, kind="stable")
    begin_N = starts(length_N)
    for first in range(0, len(length_N), ROWS_AT_A_TIME):
        rows = by_length[first : first + ROWS_AT_A_TIME]
        begin, length = begin_N[rows], length_N[rows]
        advantage, value, pending = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
        alive = len(rows) - np.searchsorted(length[::-1], np.arange(length.max(initial=0)), side="right")
        for t in range(len(alive) - 1, -1, -1):
            n = int(alive[t])  # the rows with more than t tokens come first
            at = begin[:n] + t
            v, r = values_M[at], rewards_M[at]
            if mask_M is None:
                advantage[:n] = r + gamma * value[:n] - v + gamma * lam * advantage[:n]
                value[:n] = v
                out_M[at] = advantage[:n]
                continue
            acts = mask_M[at]
            r += pending[:n]
            new = r + gamma * value[:n] - v + gamma * lam * advantage[:n]
            advantage[:n] = np.where(acts, new, advantage[:n])
            value[:n] = np.where(acts, v, value[:n])
            pending[:n] = np.where(acts, 0.0, r)
            out_M[at] = np.where(acts, new, 0.0)
    return out_M


def reward_to_go(rewards_M: Floats, length_N: Ints, gamma: float) -> Floats:
    """G_t = Σ_{l≥0} γ^l r_{t+l} for each token: the recursion with λ = 1 and a critic that always says 0."""
    return estimate(rewards_M, np.zeros_like(rewards_M), length_N, gamma, 1.0)


def whitened(values_M: Floats, counted_M: Bools, eps: float) -> Floats:
    """(x - mean) / (std + eps), statistics (ddof 1) over the tokens that count; 0 everywhere if these are all equal."""
    counted = values_M if counted_M.all() else values_M[counted_M]
    deviation = counted.std(ddof=1) if len(counted) > 1 and counted.min() < counted.max() else 0.0
    if deviation == 0:  # differences of 1e-200 are none: their squares are 0
        return np.zeros_like(values_M)
    result: Floats = values_M - counted.mean()
    result /= deviation + eps
    return result


def first_of_each(values_M: Floats, length_N: Ints) -> Floats:
    """The value [N] at each row's first token; 0 for an empty row."""
    out_N = np.zeros(len(length_N))
    full_N = length_N > 0
    out_N[full_N] = values_M[starts(length_N)[full_N]]
    return out_N
