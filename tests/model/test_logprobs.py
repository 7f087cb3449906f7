"""Log-probabilities in chunks equal those of a plain log-softmax over the whole."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)

from stages.contract.errors import ModelError
from stages.model.load import load_model
from stages.model.logprobs import check_head, token_logprobs
from stages.model.prefix_batches import collate, shares_prompts, token_batches

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [3]]
COMPLETIONS = [[20, 21, 1], [30], [40, 41, 42, 43, 44]]
TEMPERATURES = [1.0, 0.7, 0.0]
SHARED = [[8, 9, 10], [5], [8, 9, 10], [5], [8, 9, 10], [6, 7, 8, 9, 10, 11]]
ANSWERS = [[20, 21, 1], [30], [40, 41, 42, 43, 44], [1, 2], [50], [60, 61]]
HEAT = [1.0, 0.7, 0.0, 1.3, 1.0, 0.9]
ROWS = {"prompts of their own": (PROMPTS, COMPLETIONS, TEMPERATURES), "shared prompts": (SHARED, ANSWERS, HEAT)}


def plain(model, prompt, completion, temperature):
    """Each row alone, unpadded, all logits at once."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / (temperature or 1.0)
    logs = logits.log_softmax(-1)
    return logs.gather(-1, torch.tensor(completion)[:, None])[:, 0], -(logs.exp() * logs).sum(-1)


@pytest.mark.parametrize("chunk", [1, 2, 4, 1000])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_chunks_padding_and_sharing_change_nothing(tiny_policy, rows, chunk):
    model = load_model(tiny_policy, "cpu")
    with torch.no_grad():
        got, entropy = token_logprobs(model, collate(*rows, "cpu"), chunk=chunk)
        alone = [plain(model, *row) for row in zip(*rows, strict=True)]
    torch.testing.assert_close(got, torch.cat([row[0] for row in alone]), atol=3e-6, rtol=0)
    torch.testing.assert_close(entropy, torch.cat([row[1] for row in alone]), atol=3e-6, rtol=0)


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("chunk", [2, 1000])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_the_gradient_is_that_of_plain_rows(tiny_policy, rows, chunk, entropy_gradient):
    model = load_model(tiny_policy, "cpu")
    weights = torch.linspace(-1, 2, sum(map(len, rows[1])))

    def total(logprobs, entropies):
        return (weights * logprobs).sum() + (weights.flip(0) * entropies).sum() * entropy_gradient

    total(*token_logprobs(model, collate(*rows, "cpu"), entropy_gradient, chunk)).backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    alone = [plain(model, *row) for row in zip(*rows, strict=True)]
    total(torch.cat([row[0] for row in alone]), torch.cat([row[1] for row in alone])).backward()
    for name, parameter in model.named_parameters():
        assert (got[name] - parameter.grad).norm() < 1e-5 * parameter.grad.norm(), name


FAMILIES = {
    "llama": LlamaConfig(num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": Qwen3Config(num_key_value_heads=2, head_dim=8),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "a sliding window shorter than the prompts": MistralConfig(num_key_value_heads=2, head_dim=8, sliding_window=3),
    "windows in some layers": Gemma3TextConfig(num_key_value_heads=2, head_dim=8, sliding_window=4),
    "convolutions in some layers": Lfm2Config(
        num_key_value_heads=2, num_hidden_layers=2, layer_types=["conv", "full_attention"]
    ),
    "no attention": MambaConfig(state_size=4),
}


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_shared_prompt_is_the_same_to_every_family_of_models(config):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    for name, value in ({} if config.model_type == "gpt2" else small).items():
        setattr(config, name, value)
    config.vocab_size = 97
    if config.model_type == "gemma3_text":
        config.layer_types = ["sliding_attention", "full_attention"]
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    rows = (SHARED, ANSWERS, HEAT)
    assert shares_prompts(model) == (config.model_type not in ("lfm2", "mamba"))
    [(order, batch)] = token_batches(model, *rows, 1000, "cpu")
    assert (batch.prefix is not None) == shares_prompts(model) and sorted(order) == list(range(len(SHARED)))
    token_logprobs(model, batch)[0].sum().backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sum(plain(model, *row)[0].sum() for row in zip(*rows, strict=True)).backward()
    for name, gradient in got.items():
        expected = model.get_parameter(name).grad
        assert (gradient - expected).norm() < 2e-5 * max(expected.norm(), 1e-2), name


def test_no_tensor_as_large_as_batch_times_length_times_vocabulary_is_ever_made(tiny_policy):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.seen = max(self.seen, out.numel())
            return out

    model = load_model(tiny_policy, "cpu")
    rows, prompt, completion, vocabulary = 16, 4, 40, model.config.vocab_size
    batch = collate([[3] * prompt] * rows, [[7] * completion] * rows, [1.0] * rows, "cpu")
    with Largest() as largest:
        token_logprobs(model, batch, chunk=32)[0].sum().backward()
    # What is left is the feed-forward layers' own [tokens, 96]: nothing has a vocabulary for each token.
    body = rows * (prompt + completion) * model.config.intermediate_size
    assert 32 * vocabulary <= largest.seen <= body < rows * (prompt + completion) * vocabulary


def test_a_model_that_changes_its_logits_after_the_head_is_refused(tiny_policy):
    model = load_model(tiny_policy, "cpu")
    check_head(model)
    model.register_forward_hook(lambda module, args, output: output.__class__(logits=30 * torch.tanh(output.logits)))
    with torch.no_grad():
        model.lm_head.weight *= 100
    with pytest.raises(ModelError, match="changes its logits"):
        check_head(model)
