"""How the losses of tokens become one number. The weights come from the whole optimizer batch, never a micro-batch."""

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sequence_mean", "token_mean", "constant", "sequence_sum"]


def token_weights(
    lengths_R: Tensor, aggregation: Aggregation, rows: int, tokens: int, length: int | None = None
) -> Tensor:
    """The weight [N] of each token; a loss is the sum of weight times token loss.

    - `sequence_mean`: 1 / (rows · length of its row), a mean over tokens, then sequences (DeepSeekMath,
      arXiv:2402.03300, equation 3).
    - `token_mean`: 1 / tokens, a mean over all tokens of the batch (DAPO, arXiv:2503.14476, equation 12).
    - `constant`: 1 / (rows · `length`), a sum over tokens divided by a length that is the same for all, then a mean
      over sequences (Dr. GRPO, arXiv:2503.20783, section 3.2).
    - `sequence_sum`: 1 / rows, a sum over tokens, then a mean over sequences (LUSPO, arXiv:2602.05261).

    Args:
        lengths_R: completion tokens of each row of the micro-batch.
        aggregation: which mean.
        rows: rows of the whole optimizer batch.
        tokens: completion tokens of the whole optimizer batch.
        length: the fixed length (tokens) of `constant`.
    """
    count = int(lengths_R.sum())
    match aggregation:
        case "sequence_mean":
            return (1.0 / (rows * lengths_R)).repeat_interleave(lengths_R)
        case "token_mean":
            weight = 1.0 / tokens
        case "constant":
            assert length is not None
            weight = 1.0 / (rows * length)
        case "sequence_sum":
            weight = 1.0 / rows
    return torch.full((count,), weight, device=lengths_R.device)
