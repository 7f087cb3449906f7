"""The transformers engine on models of several kinds: what it says of its tokens is what the trainer says."""

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stages.sample.config import SamplingConfig
from stages.sample.transformers_engine import TransformersSampler
from tests.sample.policies import reported, trainer_logprobs

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # so much that what a token sees matters
}
SHARED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
WINDOW = {"sliding_window": 5}
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 9], [8, 9, 10]]
SEEDS = [[100 * p + i for i in range(4)] for p in range(len(PROMPTS))]
STOP = frozenset(range(40, 44))

MODELS = {
    "one key-value head a query head": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "shared heads": (LlamaForCausalLM, LlamaConfig(**SHARED)),
    "shared heads and biases": (Qwen2ForCausalLM, Qwen2Config(**{**SHARED, "num_key_value_heads": 1})),
    "shared heads, normed": (Qwen3ForCausalLM, Qwen3Config(**SHARED)),
    "learned positions": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2),
    ),
    "a window": (MistralForCausalLM, MistralConfig(**SHARED, **WINDOW)),
    "a window in each other layer": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SHARED, **WINDOW, layer_types=["sliding_attention", "full_attention"]),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_the_trainers_while_rooms_grow_and_rows_leave(name, tmp_path):
    kind, config = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = kind(config)
    model.save_pretrained(tmp_path)
    sampler = TransformersSampler(batch_size=64, device="cpu")
    sampler.load_policy(tmp_path, "digest")
    drawn = sampler.generate(PROMPTS, SEEDS, SamplingConfig(max_tokens=30), STOP)
    lengths = sorted(len(c.tokens) for group in drawn for c in group)
    assert lengths[8] < 15  # half the rows left
    assert lengths[-1] > 20  # and others went on
    trainer = trainer_logprobs(tmp_path, PROMPTS, drawn)
    assert (reported(drawn) - trainer).abs().max() < 1e-4
    assert trainer.std() > 0.5
