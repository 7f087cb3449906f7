"""Which token: the drawing itself."""

import math

import pytest
import torch

from stages.sample.config import SamplingConfig
from stages.sample.token_sampling import distribution, draw_tokens, exact_cumulative, uniforms

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log() + 3  # any shift


def probabilities(**sampling):
    return distribution(LOGITS, SamplingConfig(**sampling)).exp()[0].tolist()


def test_the_distribution_by_hand():
    assert probabilities() == pytest.approx([0.5, 0.3, 0.15, 0.05])
    # temperature 1/2 squares: 0.25, 0.09, 0.0225, 0.0025 over 0.365
    assert probabilities(temperature=0.5) == pytest.approx([0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365])
    assert probabilities(top_k=2) == pytest.approx([0.625, 0.375, 0, 0])
    assert probabilities(top_p=0.6) == pytest.approx([0.625, 0.375, 0, 0])  # 0.5 < 0.6 ≤ 0.8
    assert probabilities(top_p=0.4) == pytest.approx([1, 0, 0, 0])  # the most likely token always stays
    assert probabilities(top_k=3, top_p=0.8) == pytest.approx([0.625, 0.375, 0, 0])  # of 0.526 0.316 0.158


def test_a_token_is_drawn_where_the_cumulative_probability_passes_the_uniform_number():
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81, 0.949, 0.951, 0.99999994])
    tokens, logprobs = draw_tokens(LOGITS.expand(8, -1), uniform, SamplingConfig())
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    expected = [math.log(p) for p in (0.5, 0.5, 0.3, 0.3, 0.15, 0.15, 0.05, 0.05)]
    assert logprobs.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_token_outside_top_k_is_never_drawn_even_at_the_edge():
    tokens, _ = draw_tokens(LOGITS.expand(2, -1), torch.tensor([0.0, 0.99999994]), SamplingConfig(top_k=2))
    assert tokens.tolist() == [0, 1]


def test_frequencies_follow_the_distribution():
    # 40,000 draws: the standard error of a share of 0.3 is 0.0023
    uniform = uniforms(list(range(400)), 100).flatten()
    tokens, _ = draw_tokens(LOGITS.expand(len(uniform), -1), uniform, SamplingConfig())
    shares = (torch.bincount(tokens, minlength=4) / len(tokens)).tolist()
    assert shares == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.01)


def test_temperature_zero_takes_the_most_likely_and_reports_the_models_own_log_probability():
    tokens, logprobs = draw_tokens(LOGITS, torch.tensor([0.9]), SamplingConfig(temperature=0))
    assert (tokens.item(), logprobs.item()) == (0, pytest.approx(math.log(0.5)))


def test_a_row_of_uniform_numbers_depends_on_its_seed_alone():
    assert torch.equal(uniforms([3, 5, 7], 10)[1], uniforms([5], 10)[0])
    assert torch.equal(uniforms([5], 10)[0, :4], uniforms([5], 4)[0])
    assert not torch.equal(uniforms([5], 10), uniforms([6], 10))


def test_the_cumulative_sum_of_a_gpu_is_exact_and_rises():
    parts = torch.rand(3, 50_000, generator=torch.Generator().manual_seed(0))
    summed = exact_cumulative(parts)
    assert torch.allclose(summed.double(), parts.double().cumsum(-1), rtol=1e-7, atol=1e-6)
    assert bool((summed.diff() >= 0).all())
    assert exact_cumulative(torch.tensor([[0.5, 0.25, 0.0, 0.25]])).tolist() == [[0.5, 0.75, 0.75, 1.0]]
