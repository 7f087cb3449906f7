"""The ratio π / π_old of a token, or of its whole sequence. R is the rows of a micro-batch."""

from typing import Literal

import torch
from torch import Tensor

RatioLevel = Literal["token", "sequence", "sequence_token"]


def row_means(values_N: Tensor, lengths_R: Tensor) -> Tensor:
    """The mean over each row's tokens, given to each of them; [N] with gradient. Rows are whole and never empty."""
    assert int(lengths_R.sum()) == len(values_N)
    return torch.segment_reduce(values_N, "mean", lengths=lengths_R).repeat_interleave(lengths_R)


def importance_ratio(logprobs_N: Tensor, old_N: Tensor, lengths_R: Tensor, level: RatioLevel) -> Tensor:
    """ρ of each token, with gradient.

    - `token`: π(o_t) / π_old(o_t) (PPO, arXiv:1707.06347, section 3).
    - `sequence`: (π(o) / π_old(o))^(1/|o|), the same for all tokens of a row (GSPO, arXiv:2507.18071, equation 7).
    - `sequence_token`: sg(that) · π(o_t) / sg(π(o_t)): its value is the sequence's, its gradient goes to each token by
      that token's own loss (GSPO-token, same paper, equation 14); equal to `sequence` where a row's advantages are.

    Args:
        logprobs_N: log-probabilities of the policy (nats), with gradient.
        old_N: log-probabilities of the old policy.
        lengths_R: completion tokens of each row.
        level: which ratio.
    """
    assert logprobs_N.shape == old_N.shape
    match level:
        case "token":
            return (logprobs_N - old_N).exp()
        case "sequence":
            return row_means(logprobs_N - old_N, lengths_R).exp()
        case "sequence_token":
            mean_N = row_means(logprobs_N.detach() - old_N, lengths_R)
            return (mean_N + logprobs_N - logprobs_N.detach()).exp()
