"""How far sampler and trainer are apart: figures by hand, and the trainer's own log-probabilities."""

import math

import pytest
import torch

from stages.model.load import load_model
from stages.model.logprobs import token_logprobs
from stages.model.prefix_batches import collate
from stages.sample.config import SamplingConfig
from stages.sample.fidelity import fidelity, model_logprobs, spread
from stages.sample.token_sampling import distribution

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]
COMPLETIONS = [[20, 21, 1], [30, 31, 32, 33, 34, 35], [40]]


def test_figures_by_hand():
    sampler = torch.tensor([-1.0, -2.0, -0.5, -3.0])
    trainer = torch.tensor([-1.25, -2.0, -0.25, -2.0])
    # d = -1/4, 0, 1/4, 1; k3 = exp(d) - 1 - d
    k3 = [math.exp(-0.25) - 0.75, 0.0, math.exp(0.25) - 1.25, math.e - 2]
    assert fidelity(sampler, trainer) == pytest.approx(
        {"mean": 0.375, "max": 1.0, "kl": sum(k3) / 4, "left_out": 0.0}, abs=1e-12
    )


def test_a_policy_compared_with_itself_differs_by_nothing():
    logprobs = torch.tensor([-0.1, -7.0, -30.0])
    assert fidelity(logprobs, logprobs.clone()) == {"mean": 0.0, "max": 0.0, "kl": 0.0, "left_out": 0.0}


def test_the_estimate_is_never_negative_and_in_the_mean_the_divergence():
    # Tokens a and b, sampler (1/2, 1/2), trainer (4/5, 1/5): the divergence is 0.5 ln(0.5/0.8) + 0.5 ln(0.5/0.2).
    sampler = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    trainer = torch.tensor([0.8, 0.2], dtype=torch.float64).log()
    assert fidelity(sampler, trainer)["kl"] == pytest.approx(0.5 * math.log(0.625) + 0.5 * math.log(2.5))
    for shift in (-3.0, -0.01, 0.01, 3.0):
        assert fidelity(sampler, sampler + shift)["kl"] > 0


def test_tiny_differences_are_not_lost_in_rounding():
    # k3 of a small d is d²/2: 5e-11 here, far below the float32 rounding of exp(d) - 1 - d
    sampler = torch.zeros(4)
    assert fidelity(sampler, sampler + 1e-5)["kl"] == pytest.approx(5e-11, rel=1e-3)


def test_a_token_that_the_trainers_distribution_leaves_out_is_counted_and_nothing_else():
    sampler = torch.tensor([-1.0, -2.0, *[-3.0] * 8])
    trainer = torch.tensor([-1.5, -math.inf, *[-3.0] * 8])
    assert fidelity(sampler, trainer) == pytest.approx(
        {"mean": 0.5 / 9, "max": 0.5, "kl": (math.exp(-0.5) - 0.5) / 9, "left_out": 1.0}
    )


def test_more_than_a_tenth_left_out_is_no_rounding():
    sampler = torch.full((9,), -1.0)
    for count in (1, 9):
        trainer = sampler.clone()
        trainer[:count] = -math.inf
        assert fidelity(sampler, trainer) == {"mean": math.inf, "max": math.inf, "kl": math.inf, "left_out": count}


def test_rows_are_spread_evenly():
    assert spread(64, 8) == [0, 8, 16, 24, 32, 40, 48, 56]
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(5, 1) == [0]
    assert spread(5, 0) == []


def test_where_nobody_says_how_many_rows_are_compared_it_is_one_of_32_and_never_more_than_eight():
    assert spread(1, None) == spread(63, None) == [0]
    assert spread(64, None) == [0, 32]
    assert spread(256, None) == spread(256, 8)
    assert spread(10_000, None) == spread(10_000, 8)


def test_the_models_own_log_probabilities_are_those_that_the_trainer_computes(tiny_policy):
    model = load_model(tiny_policy, "cpu")
    rows = model_logprobs(model, PROMPTS, COMPLETIONS, "cpu")
    assert [len(row) for row in rows] == [3, 6, 1]
    with torch.no_grad():
        trainer, _ = token_logprobs(model, collate(PROMPTS, COMPLETIONS, [1.0] * 3, "cpu"))
    torch.testing.assert_close(torch.cat(rows), trainer, atol=5e-6, rtol=0)


def test_a_temperature_is_the_trainers_too(tiny_policy):
    model = load_model(tiny_policy, "cpu")
    rows = model_logprobs(model, PROMPTS, COMPLETIONS, "cpu", SamplingConfig(temperature=0.6))
    with torch.no_grad():
        trainer, _ = token_logprobs(model, collate(PROMPTS, COMPLETIONS, [0.6] * 3, "cpu"))
    torch.testing.assert_close(torch.cat(rows), trainer, atol=5e-6, rtol=0)


def test_processed_ones_are_of_the_distribution_that_was_sampled_from_and_raw_ones_the_models(tiny_policy):
    model = load_model(tiny_policy, "cpu")
    cut = {"temperature": 0.7, "top_k": 5, "top_p": 0.9}
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPTS[0], *COMPLETIONS[0]]])).logits[0, 2:-1]
    likely = logits.argmax(-1).tolist()  # the most likely token is never left out
    tokens = [likely[0], COMPLETIONS[0][1], COMPLETIONS[0][2]]
    processed = model_logprobs(model, PROMPTS[:1], [tokens], "cpu", SamplingConfig(**cut))[0]
    first = distribution(logits[:1], SamplingConfig(**cut))[0, tokens[0]]
    assert processed[0].item() == pytest.approx(first.item(), abs=1e-5)
    assert first.item() > logits[:1].log_softmax(-1)[0, tokens[0]].item() + 0.1
    raw = model_logprobs(model, PROMPTS[:1], [tokens], "cpu", SamplingConfig(logprobs="raw", **cut))[0]
    own = model_logprobs(model, PROMPTS[:1], [tokens], "cpu")[0]
    assert torch.equal(raw, own)


def test_what_is_no_number_is_not_passed_over():
    figures = fidelity(torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, math.nan]))
    assert math.isnan(figures["mean"])
    assert figures["left_out"] == 0
