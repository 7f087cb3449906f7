"""How far the sampler's log-probabilities are from those that the trainer's model gives to the same tokens.

Dimensions: T completion tokens of a row, N those of all rows, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.sample.config import SamplingConfig
from stages.sample.token_sampling import distribution


@torch.no_grad()
def model_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    device: str,
    sampling: SamplingConfig | None = None,
) -> list[Tensor]:
    """For each row the log-probabilities [T] (nats, on the CPU) of its completion tokens, row by row, without padding.

    Args:
        model: the trainer's.
        prompts: token ids of each row's prompt, one at least.
        completions: token ids of each row's completion.
        device: where the model is.
        sampling: how the distribution was processed before it was sampled from; None takes the model's own.
    """
    out = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([[*prompt, *completion]], device=device)
        logits_TV = model(input_ids=ids, logits_to_keep=len(completion) + 1).logits[0, :-1].float()
        if sampling is None or sampling.logprobs == "raw":
            logprobs_TV = logits_TV.log_softmax(-1)
        else:
            logprobs_TV = distribution(logits_TV, sampling)
        out.append(logprobs_TV.gather(-1, ids[0, len(prompt) :, None])[:, 0].cpu())
    return out


def spread(rows: int, wanted: int | None) -> list[int]:
    """Numbers of `wanted` rows (all, where there are fewer), evenly spread; of None one in every 32, from 1 to 8."""
    count = min(rows, max(1, min(8, rows // 32)) if wanted is None else wanted)
    return [i * rows // count for i in range(count)]


def fidelity(sampler_N: Tensor, trainer_N: Tensor) -> dict[str, float]:
    """Mean and greatest absolute difference, and the KL divergence of the trainer's policy from the sampler's (nats).

    The divergence is estimated from the tokens that the sampler drew, by k3 = exp(d) - 1 - d of d = trainer - sampler
    (Schulman, "Approximating KL divergence", 2020). A token that the trainer's processed distribution leaves out (top-k
    or top-p cut differently by rounding) counts in none of the figures but `left_out`; where these are more than a
    tenth, rounding cannot be why, and the other figures are infinite.
    """
    kept_N = ~trainer_N.isneginf()
    difference_N = (trainer_N - sampler_N)[kept_N].double()
    left_out = float((~kept_N).sum())
    if left_out * 10 > len(kept_N):
        return {"mean": torch.inf, "max": torch.inf, "kl": torch.inf, "left_out": left_out}
    if not len(difference_N):
        return {"mean": 0.0, "max": 0.0, "kl": 0.0, "left_out": 0.0}
    return {
        "mean": float(difference_N.abs().mean()),
        "max": float(difference_N.abs().max()),
        "kl": float((difference_N.expm1() - difference_N).mean()),
        "left_out": left_out,
    }
