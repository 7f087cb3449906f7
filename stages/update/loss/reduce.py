"""How the losses of tokens become one number. The weights come from the whole optimizer batch, never a micro-batch."""

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sequence_mean", "token_mean"]


def token_weights(lengths_R: Tensor, aggregation: Aggregation, rows: int, tokens: int) -> Tensor:
    """The weight [N] of each token; a loss is the sum of weight times token loss.

    - `sequence_mean`: 1 / (rows · length of its row), a mean over tokens, then sequences (DeepSeekMath, equation 3).
    - `token_mean`: 1 / tokens, a mean over all tokens of the batch (DAPO, arXiv:2503.14476, equation 12).

    Args:
        lengths_R: completion tokens of each row of the micro-batch.
        aggregation: which mean.
        rows: rows of the whole optimizer batch.
        tokens: completion tokens of the whole optimizer batch.
    """
    count = int(lengths_R.sum())
    match aggregation:
        case "sequence_mean":
            return (1.0 / (rows * lengths_R)).repeat_interleave(lengths_R)
        case "token_mean":
            return torch.full((count,), 1.0 / tokens, device=lengths_R.device)
