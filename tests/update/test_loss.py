"""The loss's terms: numbers worked by hand in float64, gradients, limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.contract.metrics import Meter
from stages.update.config import ClippedLoss, KlConfig, UpdateConfig
from stages.update.loop import LossInputs, loss_of
from stages.update.loss.clipped import clip_fractions, clipped
from stages.update.loss.kl import k3
from stages.update.loss.reduce import token_weights


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_the_clipped_surrogate_on_both_sides_of_both_signs():
    # ε 0.2 / 0.3. A=2: ratios 0.5, 1, 1.25, 2 → -1, -2, -2.5, -2·1.3; A=-2: → 2·0.8 (clipped below), 2, 2.5, 4
    ratio = doubles(0.5, 1, 1.25, 2, 0.5, 1, 1.25, 2)
    advantages = torch.tensor([2.0] * 4 + [-2.0] * 4, dtype=torch.float64)
    loss = clipped(ratio, advantages, 0.2, 0.3)
    torch.testing.assert_close(loss, torch.tensor([-1, -2, -2.5, -2.6, 1.6, 2, 2.5, 4], dtype=torch.float64))
    loss.sum().backward()
    assert ratio.grad.tolist() == [-2, -2, -2, 0, 0, 2, 2, 2]
    low, high = clip_fractions(ratio, advantages, 0.2, 0.3)
    assert low.nonzero().tolist() == [[4]]
    assert high.nonzero().tolist() == [[3]]


def test_k3_by_hand():
    # d = ln 2: 2 - ln 2 - 1 = 0.306853; d = -ln 2: 1/2 + ln 2 - 1 = 0.193147
    logprobs = doubles(-2.0, -2.0, -2.0)
    value = k3(logprobs, torch.tensor([-2.0, -2 + math.log(2), -2 - math.log(2)], dtype=torch.float64))
    assert value.tolist() == pytest.approx([0.0, 0.3068528194, 0.1931471806])
    value.sum().backward()  # 1 - exp(d)
    assert logprobs.grad.tolist() == pytest.approx([0.0, -1.0, 0.5])


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative(a, b):
    assert k3(torch.tensor([a]), torch.tensor([b])).item() >= 0


def test_k3_keeps_its_digits_where_the_two_nearly_agree():
    # d²/2 for small d; exp(d) - d - 1 in float32 would give 0 or 6e-8
    assert k3(torch.tensor([-1.0]), torch.tensor([-1.0 + 2**-12])).item() == pytest.approx(2**-25, rel=1e-3)


def test_the_two_aggregations_by_hand():
    # rows of 1 and 3 tokens, losses 4 | 1 2 3: sequence mean (4 + 2) / 2 = 3, token mean 10 / 4 = 2.5
    losses, lengths = torch.tensor([4.0, 1, 2, 3]), torch.tensor([1, 3])
    assert (token_weights(lengths, "sequence_mean", rows=2, tokens=4) * losses).sum().item() == pytest.approx(3.0)
    assert (token_weights(lengths, "token_mean", rows=2, tokens=4) * losses).sum().item() == pytest.approx(2.5)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_weights_of_a_whole_batch_sum_to_one_however_it_is_cut(aggregation):
    lengths = [1, 7, 2, 30, 5]
    parts = [torch.tensor(lengths[:2]), torch.tensor(lengths[2:])]
    total = sum(token_weights(part, aggregation, rows=5, tokens=45).sum().item() for part in parts)
    assert total == pytest.approx(1.0)


def test_loss_gradient_and_figures_of_a_small_batch_by_hand():
    # Two rows of one and two tokens; ε 0.2; β 0.5; token mean over 3 tokens.
    # token 1: ρ = 1,   A =  1: -1;              reference equal: KL 0
    # token 2: ρ = 1.5, A =  1: clipped, -1.2;   d = ln 2: KL 0.3068528
    # token 3: ρ = 1.5, A = -2: 3;               d = -ln 2: KL 0.1931472
    # loss = (-1 - 1.2 + 3)/3 + 0.5·0.5/3 = 0.2666667 + 0.0833333 = 0.35
    # d loss / d logprob: token 1: -1/3; token 2: 0 + 0.5·(1-2)/3; token 3: (1.5·2)/3 + 0.5·(1-0.5)/3
    logprobs = doubles(-1.0, -1.0, -1.0)
    old = torch.tensor([-1.0, -1 - math.log(1.5), -1 - math.log(1.5)], dtype=torch.float64)
    reference = torch.tensor([-1.0, -1 + math.log(2), -1 - math.log(2)], dtype=torch.float64)
    inputs = LossInputs(old, torch.tensor([1.0, 1, -2], dtype=torch.float64), reference, torch.tensor([1, 2]))
    config = UpdateConfig(loss=ClippedLoss(epsilon_low=0.2, epsilon_high=0.2), kl=KlConfig(coefficient=0.5))
    meter = Meter()
    loss = loss_of(logprobs, inputs, config, rows=2, tokens=3, meter=meter)
    assert loss.item() == pytest.approx(0.35)
    loss.backward()
    assert logprobs.grad.tolist() == pytest.approx([-1 / 3, -0.5 / 3, 1 + 0.25 / 3])
    figures = meter.result()
    assert figures == pytest.approx(
        {
            "clip_fraction_low": 0.0,
            "clip_fraction_high": 1 / 3,
            "ratio_mean": 4 / 3,
            "ratio_min": 1.0,
            "ratio_max": 1.5,
            "policy_loss": 0.8 / 3,
            "kl": 0.5 / 3,
            "kl_loss": 0.25 / 3,
            "loss": 0.35,
        }
    )


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    logprobs = doubles(-0.5, -1.5, -2.5)
    advantages = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    inputs = LossInputs(logprobs.detach(), advantages, None, torch.tensor([3]))
    loss_of(logprobs, inputs, UpdateConfig(), rows=1, tokens=3, meter=Meter()).backward()
    torch.testing.assert_close(logprobs.grad, -advantages / 3)


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(3)
    logprobs = (-torch.rand(12, dtype=torch.float64) * 3).requires_grad_()
    old = logprobs.detach() + 0.3 * torch.randn(12, dtype=torch.float64)
    inputs = LossInputs(old, torch.randn(12, dtype=torch.float64), old - 0.2, torch.tensor([3, 4, 5]))
    config = UpdateConfig(loss=ClippedLoss(aggregation="sequence_mean"), kl=KlConfig(coefficient=0.1))
    assert torch.autograd.gradcheck(lambda x: loss_of(x, inputs, config, 3, 12, Meter()), (logprobs,))
