"""Estimators of KL(π ‖ π_ref) from the tokens that were drawn (Schulman, "Approximating KL divergence", 2020)."""

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3", "unbiased_k3"]


def k1(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """log π - log π_ref for each token (nats): unbiased, of either sign; in a loss its gradient has mean 0.

    Args:
        logprobs_N: log-probabilities of the policy, with gradient.
        reference_N: log-probabilities of the reference policy.
    """
    assert logprobs_N.shape == reference_N.shape
    return logprobs_N - reference_N


def k2(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """½ (log π - log π_ref)² for each token (nats): biased; in a loss its gradient is that of the KL, on policy.

    Args:
        logprobs_N: log-probabilities of the policy, with gradient.
        reference_N: log-probabilities of the reference policy.
    """
    assert logprobs_N.shape == reference_N.shape
    return 0.5 * (logprobs_N - reference_N) ** 2


def k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = log π_ref - log π, for each token (nats): never negative, 0 where the two agree.

    DeepSeekMath, arXiv:2402.03300, equation 4.

    Args:
        logprobs_N: log-probabilities of the policy, with gradient.
        reference_N: log-probabilities of the reference policy.
    """
    assert logprobs_N.shape == reference_N.shape
    difference_N = reference_N - logprobs_N
    return torch.expm1(difference_N) - difference_N


def kl_estimate(
    logprobs_N: Tensor, old_N: Tensor, reference_N: Tensor, estimator: Estimator, clamp: float | None
) -> Tensor:
    """The KL of each token (nats), with gradient.

    `unbiased_k3` is k3 times the token's own ratio π / π_old with its gradient (DeepSeek-V3.2, arXiv:2512.02556,
    equation 7): value and gradient are then unbiased also away from the old policy. The ratio is never a sequence's.

    Args:
        logprobs_N: log-probabilities of the policy, with gradient.
        old_N: log-probabilities of the old policy.
        reference_N: log-probabilities of the reference policy.
        estimator: which.
        clamp: bound of the estimate on both sides, beyond which it has no gradient; None sets none.
    """
    estimate_N = {"k1": k1, "k2": k2, "k3": k3, "unbiased_k3": k3}[estimator](logprobs_N, reference_N)
    if clamp is not None:
        estimate_N = estimate_N.clamp(-clamp, clamp)
    if estimator == "unbiased_k3":
        estimate_N = (logprobs_N - old_N).exp() * estimate_N
    return estimate_N
