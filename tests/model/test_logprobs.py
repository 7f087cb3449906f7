"""Log-probabilities in chunks equal those of a plain log-softmax over the whole."""

import pytest
import torch

from stages.contract.errors import ModelError
from stages.model.load import load_model
from stages.model.logprobs import check_head, collate, token_logprobs

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [3]]
COMPLETIONS = [[20, 21, 1], [30], [40, 41, 42, 43, 44]]
TEMPERATURES = [1.0, 0.7, 0.0]


def plain(model, prompt, completion, temperature):
    """Each row alone, unpadded, all logits at once."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / (temperature or 1.0)
    logs = logits.log_softmax(-1)
    return logs.gather(-1, torch.tensor(completion)[:, None])[:, 0], -(logs.exp() * logs).sum(-1)


@pytest.mark.parametrize("chunk", [1, 2, 4, 1000])
def test_chunks_and_padding_change_nothing(tiny_policy, chunk):
    model = load_model(tiny_policy, "cpu")
    with torch.no_grad():
        got, entropy = token_logprobs(model, collate(PROMPTS, COMPLETIONS, TEMPERATURES, "cpu"), chunk)
        rows = [plain(model, *row) for row in zip(PROMPTS, COMPLETIONS, TEMPERATURES, strict=True)]
    torch.testing.assert_close(got, torch.cat([row[0] for row in rows]), atol=2e-6, rtol=0)
    torch.testing.assert_close(entropy, torch.cat([row[1] for row in rows]), atol=2e-6, rtol=0)


def test_the_gradient_through_chunks_is_that_of_the_whole(tiny_policy):
    model = load_model(tiny_policy, "cpu")
    token_logprobs(model, collate(PROMPTS, COMPLETIONS, TEMPERATURES, "cpu"), 2)[0].sum().backward()
    chunked = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    sum(plain(model, *row)[0].sum() for row in zip(PROMPTS, COMPLETIONS, TEMPERATURES, strict=True)).backward()
    for name, parameter in model.named_parameters():
        error = (chunked[name] - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-5, name


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
