"""Policies for the tests of engines, and what the trainer says of what was drawn from them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from stages.model.load import load_model, save_policy
from stages.sample.config import SamplingConfig
from stages.sample.engine import Completion
from stages.sample.fidelity import model_logprobs
from stages.warmstart.config import NewModel
from stages.warmstart.new_model import character_tokenizer, new_model


def make_policy(folder: Path, context: int, tied: bool = False, layers: int = 2, width: int = 64) -> Path:
    """A new policy of random weights, with its tokenizer."""
    config = NewModel(
        type="new", hidden_size=width, intermediate_size=96, layers=layers, heads=2, context_length=context
    )
    tokenizer = character_tokenizer(config.characters)
    model = new_model(config, tokenizer, seed=5)
    if tied:
        model.config.tie_word_embeddings = True
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model = LlamaForCausalLM(model.config)
        assert model.lm_head.weight is model.model.embed_tokens.weight
    save_policy(model, folder, None)
    tokenizer.save_pretrained(folder)
    return folder


def stirred(policy: Path, folder: Path, seed: int, amount: float = 0.1) -> Path:
    """A policy with noise on all its weights, so much that it tells some tokens from others."""
    model = load_model(policy, "cpu")
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=amount)
    save_policy(model, folder, policy)
    return folder


def trainer_logprobs(
    policy: Path,
    prompts: Sequence[Sequence[int]],
    drawn: Sequence[Sequence[Completion]],
    sampling: SamplingConfig | None = None,
) -> Tensor:
    """[N], of all drawn tokens in order, by the transformers model in `policy`."""
    rows = [(prompt, c.tokens) for prompt, group in zip(prompts, drawn, strict=True) for c in group]
    model = load_model(policy, "cpu")
    return torch.cat(model_logprobs(model, [p for p, _ in rows], [c for _, c in rows], "cpu", sampling))


def reported(drawn: Sequence[Sequence[Completion]]) -> Tensor:
    """[N], the log-probabilities that came with the tokens."""
    return torch.tensor([value for group in drawn for c in group for value in c.logprobs])


def check_endings(drawn: Sequence[Sequence[Completion]], stop: frozenset[int], limit: int) -> None:
    """Each completion ends with the first token that ends one, or at the limit; both kinds are there."""
    seen = set()
    for completion in (c for group in drawn for c in group):
        assert len(completion.tokens) == len(completion.logprobs)
        assert not stop & set(completion.tokens[:-1])
        stopped = completion.tokens[-1] in stop
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(completion.tokens) == limit
        seen.add(completion.finish_reason)
    assert seen == {"stop", "length"}
