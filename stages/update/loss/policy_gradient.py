"""The policy gradient without a ratio (REINFORCE, Williams 1992, doi:10.1007/BF00992696)."""

from torch import Tensor


def policy_gradient(logprobs_N: Tensor, advantages_N: Tensor) -> Tensor:
    """-A log π for each token; its gradient is the policy gradient only while the policy is the one that sampled.

    Args:
        logprobs_N: log-probabilities of the policy (nats), with gradient.
        advantages_N: advantage of each token.
    """
    assert logprobs_N.shape == advantages_N.shape
    return -advantages_N * logprobs_N
