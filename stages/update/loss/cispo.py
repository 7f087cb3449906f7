"""Clipped importance-sampling weights (CISPO, MiniMax-M1, arXiv:2506.13585, equations 4 and 5)."""

from torch import Tensor


def cispo(ratio_N: Tensor, logprobs_N: Tensor, advantages_N: Tensor, low: float | None, high: float) -> Tensor:
    """-sg(clip(ρ, low, high)) A log π for each token: a ratio beyond the cap bounds the gradient, never cuts it off.

    Args:
        ratio_N: π / π_old of each token or its sequence; its gradient is not taken.
        logprobs_N: log-probabilities of the policy (nats), with gradient.
        advantages_N: advantage of each token.
        low: least weight; None sets none, as the paper's experiments do.
        high: greatest weight, the cap.
    """
    assert ratio_N.shape == logprobs_N.shape == advantages_N.shape
    return -ratio_N.detach().clamp(low, high) * advantages_N * logprobs_N
