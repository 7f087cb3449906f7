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
    scaled_BV = logits_BV.float() / (sampling.temperature or 1.0)
    if 0 < sampling.top_k < scaled_BV.shape[-1]:
        least_B1 = scaled_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < least_B1, -torch.inf)
    if sampling.top_p < 1:
        sorted_BV, order_BV = scaled_BV.sort(dim=-1, descending=True)
        probabilities_BV = sorted_BV.softmax(-1)
        beyond_BV = probabilities_BV.cumsum(-1) - probabilities_BV >= sampling.top_p
        scaled_BV = scaled_BV.masked_fill(beyond_BV.scatter(-1, order_BV, beyond_BV), -torch.inf)
    return scaled_BV.log_softmax(-1)


def draw_tokens(logits_BV: Tensor, uniform_B: Tensor, sampling: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Tokens [B] by the inverse of the cumulative distribution, and the log-probabilities [B] that `sampling` wants."""
    logprobs_BV = distribution(logits_BV, sampling)
    if sampling.temperature == 0:
        tokens_B = logprobs_BV.argmax(-1)
    else:
        cumulative_BV = logprobs_BV.exp().cumsum(-1)
        threshold_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
        tokens_B = torch.searchsorted(cumulative_BV, threshold_B1, right=True)[:, 0].clamp_(max=logits_BV.shape[-1] - 1)
    if sampling.logprobs == "raw":
        logprobs_BV = logits_BV.float().log_softmax(-1)
    return tokens_B, logprobs_BV.gather(-1, tokens_B[:, None])[:, 0]
