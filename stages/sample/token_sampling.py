"""Drawing a token from logits. Pure.

Dimensions: B completions, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor

from stages.sample.config import SamplingConfig


def uniforms(seeds: list[int], length: int) -> Tensor:
    """[B, length] numbers in [0, 1); row i depends on seed i alone; a shorter row is the beginning of a longer one."""
    rows = [np.random.Generator(np.random.Philox(key=seed)).random(length, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def distribution(logits_BV: Tensor, sampling: SamplingConfig) -> Tensor:
    """Log-probabilities [B, V] of the distribution that is sampled from: temperature, then top-k, then top-p."""
    return _shaped(logits_BV, sampling).log_softmax(-1)


def draw_tokens(logits_BV: Tensor, uniform_B: Tensor, sampling: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Tokens [B] by the inverse of the cumulative distribution, and the log-probabilities [B] that `sampling` wants."""
    shaped_BV = _shaped(logits_BV, sampling)
    most_B1 = shaped_BV.amax(-1, keepdim=True)
    cumulative_BV = _cumulative((shaped_BV - most_B1).exp_())
    total_B1 = cumulative_BV[:, -1:]
    if sampling.temperature == 0:
        tokens_B1 = shaped_BV.argmax(-1, keepdim=True)
    else:
        tokens_B1 = torch.searchsorted(cumulative_BV, uniform_B[:, None] * total_B1, right=True)
        tokens_B1.clamp_(max=logits_BV.shape[-1] - 1)
    if sampling.logprobs == "raw":
        shaped_BV = logits_BV.float()
        logprobs_B1 = shaped_BV.gather(-1, tokens_B1) - shaped_BV.logsumexp(-1, keepdim=True)
    else:
        logprobs_B1 = shaped_BV.gather(-1, tokens_B1) - most_B1 - total_B1.log()
    return tokens_B1[:, 0], logprobs_B1[:, 0]


def _cumulative(parts_BV: Tensor) -> Tensor:
    """Cumulative sums [B, V] of numbers from 0 to 1, in place where that is possible: new memory costs as much as work.

    On a GPU torch has no deterministic sum of that kind for floating point. There the numbers are added as multiples of
    2^-40: integers have one sum in any order, and those of 2^22 tokens at most fit 63 bits.
    """
    return parts_BV.cumsum_(-1) if parts_BV.device.type == "cpu" else exact_cumulative(parts_BV)


def exact_cumulative(parts_BV: Tensor) -> Tensor:
    """Cumulative sums [B, V] of numbers from 0 to 1, each off by 2^-41 a number at most, then rounded to float32."""
    return ((parts_BV.double() * 2**40).round().long().cumsum(-1).double() / 2**40).to(parts_BV.dtype)


def _shaped(logits_BV: Tensor, sampling: SamplingConfig) -> Tensor:
    """Logits [B, V] of the distribution that is sampled from."""
    shaped_BV = logits_BV.float()
    if sampling.temperature not in (0, 1):
        shaped_BV = shaped_BV / sampling.temperature
    if 0 < sampling.top_k < shaped_BV.shape[-1]:
        least_B1 = shaped_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        shaped_BV = shaped_BV.masked_fill(shaped_BV < least_B1, -torch.inf)
    if sampling.top_p < 1:
        sorted_BV, order_BV = shaped_BV.sort(dim=-1, descending=True)
        probabilities_BV = sorted_BV.softmax(-1)
        beyond_BV = _cumulative(probabilities_BV.clone()) - probabilities_BV >= sampling.top_p
        shaped_BV = shaped_BV.masked_fill(beyond_BV.scatter(-1, order_BV, beyond_BV), -torch.inf)
    return shaped_BV
