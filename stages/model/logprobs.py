"""Log-probabilities and entropies of completion tokens, holding the logits of a chunk of them at most.

Dimensions: N completion tokens of all rows in row order, C those of a chunk, H hidden size, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from transformers import PreTrainedModel

from stages.contract.errors import ModelError
from stages.model.prefix_batches import TokenBatch, completion_states

LOGITS = 2**25
"""Logits that are held at a time; those of `LEAST` tokens at least."""
LEAST = 64
"""Tokens; with fewer at a time the product with the head's weights becomes slow."""


def token_logprobs(
    model: PreTrainedModel, batch: TokenBatch, entropy_gradient: bool = False, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N] of completion tokens and entropies [N] of their distributions (nats).

    The distribution is softmax(logits / temperature), the one that the sampler draws from without top-p and top-k.
    Arguments are those of `head_logprobs`.
    """
    states_NH = token_states(model, batch)
    return head_logprobs(model, states_NH, batch.targets_N, batch.temperature_N, entropy_gradient, chunk)


def token_states(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """What the model's body gives [N, H] where each completion token is predicted."""
    body: Any = model.base_model
    return completion_states(lambda **inputs: body(**inputs)[0], model, batch)


def chunk_tokens(model: PreTrainedModel) -> int:
    """Tokens whose logits are held at a time."""
    head: Any = model.get_output_embeddings()
    return max(LEAST, LOGITS // int(head.weight.shape[0]))


def head_logprobs(
    model: PreTrainedModel,
    states_NH: Tensor,
    targets_N: Tensor,
    temperature_N: Tensor,
    entropy_gradient: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same from what the body gave; for one backward pass.

    Where there is one chunk only, its distributions are kept for that pass; where there are more, they are made anew.

    Args:
        model: whose head it is.
        states_NH: from `token_states`.
        targets_N: the completion tokens.
        temperature_N: by which logits are divided.
        entropy_gradient: whether the entropies, too, have a gradient.
        chunk: tokens whose logits are held at a time; None takes `chunk_tokens`.
    """
    head: Any = model.get_output_embeddings()
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    settings = _Settings(head, chunk or chunk_tokens(model), torch.is_grad_enabled(), entropy_gradient)
    out: tuple[Tensor, Tensor] = _Head.apply(settings, states_NH, targets_N, temperature_N, *trained)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True)
class _Settings:
    head: nn.Module
    chunk: int
    graph: bool
    entropy_gradient: bool

    def parts(self, count: int) -> Iterator[slice]:
        return (slice(first, first + self.chunk) for first in range(0, count, self.chunk))


class _Head(torch.autograd.Function):
    """With z the logits, T the temperature, p = softmax(z / T) and H its entropy: the gradients of a token y are
    d log p(y) / dz = (1[y] - p) / T and dH / dz = -p (log p + H) / T."""

    @staticmethod
    def forward(
        ctx: Any, settings: _Settings, states_NH: Tensor, targets_N: Tensor, temperature_N: Tensor, *trained: Tensor
    ) -> tuple[Tensor, Tensor]:
        keep = settings.graph and len(states_NH) <= settings.chunk
        logprobs, entropies = [], []
        for at in settings.parts(len(states_NH)):
            made = _Applied(settings.head, states_NH[at], temperature_N[at], keep)
            logprobs.append(made.logs_CV.gather(-1, targets_N[at, None])[:, 0])
            entropies.append(-made.logs_CV.exp().mul_(made.logs_CV).sum(-1))
        logprobs_N, entropy_N = torch.cat(logprobs), torch.cat(entropies)
        ctx.settings, ctx.trained, ctx.kept = settings, trained, made if keep else None
        ctx.save_for_backward(states_NH, targets_N, temperature_N, entropy_N)
        ctx.set_materialize_grads(False)
        if not settings.entropy_gradient:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        states_NH, targets_N, temperature_N, entropy_N = ctx.saved_tensors
        logprob_N, by_entropy_N = gradients
        states: list[Tensor] = []
        trained: list[Tensor] = []
        for at in ctx.settings.parts(len(states_NH)):
            made = ctx.kept or _Applied(ctx.settings.head, states_NH[at], temperature_N[at], graph=True)
            ctx.kept = None
            given_C = torch.zeros_like(entropy_N[at]) if logprob_N is None else logprob_N[at]
            if by_entropy_N is None:
                scale_CV = given_C[:, None]
            else:
                scale_CV = (made.logs_CV + entropy_N[at, None]).mul_(by_entropy_N[at, None]).add_(given_C[:, None])
            logits_CV = made.logs_CV.exp_().mul_(scale_CV).neg_()
            logits_CV.scatter_add_(-1, targets_N[at, None], given_C[:, None])
            logits_CV.div_(temperature_N[at, None])
            into = [made.states_CH, *ctx.trained]
            part, *parts = torch.autograd.grad([made.edge], into, [logits_CV.to(states_NH.dtype)])
            states.append(part)
            trained = [whole.add_(new) for whole, new in zip(trained, parts, strict=True)] if trained else parts
        return None, torch.cat(states), None, None, *trained


class _Applied:
    """The head applied to a chunk: log softmax(logits / T) as float32, and where the gradient goes in and comes out."""

    def __init__(self, head: nn.Module, states_CH: Tensor, temperature_C: Tensor, graph: bool) -> None:
        with torch.set_grad_enabled(graph):
            self.states_CH = states_CH.detach().requires_grad_(graph)
            logits_CV: Tensor = head(self.states_CH)
        self.edge: Any = get_gradient_edge(logits_CV) if graph else None
        self.logs_CV = logits_CV.detach().float().div_(temperature_C[:, None]).log_softmax(-1)


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
