"""Log-probabilities and entropies of completion tokens, never holding logits for more than a chunk of them.

Dimensions: B rows, S positions of the padded prompt and completion, N completion tokens of all rows in row order,
H hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from stages.contract.errors import ModelError

CHUNK = 1024
"""Tokens whose logits are held at a time."""


@dataclass(frozen=True)
class TokenBatch:
    """Prompts with completions, padded on the right, and where their completion tokens are."""

    ids_BS: Tensor
    mask_BS: Tensor
    """1 for a token, 0 for padding."""
    positions_N: Tensor
    """Index into the flattened [B·S] of the position that predicts each completion token."""
    targets_N: Tensor
    """The completion tokens."""
    rows_N: Tensor
    """The row of each completion token."""
    temperature_N: Tensor
    """The temperature that each completion token was drawn with."""


def collate(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    device: str,
    pad: int = 0,
) -> TokenBatch:
    """A batch from token ids; a temperature of 0 (greedy) counts as 1."""
    assert all(prompts), "a first token needs something before it"
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    width = max(lengths)
    ids = torch.full((len(lengths), width), pad, dtype=torch.long)
    mask = torch.zeros((len(lengths), width), dtype=torch.long)
    positions, targets, rows, temperature = [], [], [], []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, : lengths[row]] = torch.tensor([*prompt, *completion])
        mask[row, : lengths[row]] = 1
        first = row * width + len(prompt) - 1
        positions.append(torch.arange(first, first + len(completion)))
        targets.append(torch.tensor(completion, dtype=torch.long))
        rows.append(torch.full((len(completion),), row))
        temperature.append(torch.full((len(completion),), temperatures[row] or 1.0))
    return TokenBatch(
        ids.to(device),
        mask.to(device),
        torch.cat(positions).to(device),
        torch.cat(targets).to(device),
        torch.cat(rows).to(device),
        torch.cat(temperature).to(device),
    )


def token_logprobs(
    model: PreTrainedModel, batch: TokenBatch, chunk: int = CHUNK, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N] of completion tokens and entropies [N] of their distributions (nats).

    Entropies are detached unless `entropy_gradient`.

    The distribution is softmax(logits / temperature), the one that the sampler draws from without top-p and top-k. The
    body runs once; the head runs over chunks of completion positions, recomputed in the backward pass.
    """
    hidden_BSH = model.base_model(input_ids=batch.ids_BS, attention_mask=batch.mask_BS, use_cache=False)[0]
    hidden_NH = hidden_BSH.flatten(0, 1)[batch.positions_N]
    logprobs, entropies = [], []
    for part in range(0, len(hidden_NH), chunk):
        at = slice(part, part + chunk)
        arguments = (model, hidden_NH[at], batch.targets_N[at], batch.temperature_N[at], entropy_gradient)
        if torch.is_grad_enabled():
            logprob, entropy = checkpoint(_head, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            logprob, entropy = _head(*arguments)
        logprobs.append(logprob)
        entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies)


def _head(
    model: PreTrainedModel, hidden_CH: Tensor, targets_C: Tensor, temperature_C: Tensor, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    logits_CV = model.get_output_embeddings()(hidden_CH).float() / temperature_C[:, None]
    logsumexp_C = logits_CV.logsumexp(-1)
    logprobs_C = logits_CV.gather(-1, targets_C[:, None])[:, 0] - logsumexp_C
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        probabilities_CV = (logits_CV - logsumexp_C[:, None]).exp()
        entropy_C = logsumexp_C - (probabilities_CV * logits_CV).sum(-1)
    return logprobs_C, entropy_C


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Refuses a model whose own logits are not its head applied to its body's output (soft-capped or scaled ones).

    Raises:
        ModelError: the two differ.
    """
    ids = torch.tensor([[1, 2, 3, 4]], device=model.device) % model.get_output_embeddings().weight.shape[0]
    own = model(input_ids=ids).logits.float()
    ours = model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False)[0]).float()
    if own.shape != ours.shape or not torch.allclose(own, ours, rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"{type(model).__name__}: changes its logits after the output head; such models are not supported"
        )
