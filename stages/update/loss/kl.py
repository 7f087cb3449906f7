"""The k3 estimator of KL(π ‖ π_ref) (Schulman, "Approximating KL divergence", 2020; DeepSeekMath, equation 4)."""

import torch
from torch import Tensor


def k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = log π_ref - log π, for each token (nats): never negative, 0 where the two agree.

    Args:
        logprobs_N: log-probabilities of the policy, with gradient.
        reference_N: log-probabilities of the reference policy.
    """
    assert logprobs_N.shape == reference_N.shape
    difference_N = reference_N - logprobs_N
    return torch.expm1(difference_N) - difference_N
