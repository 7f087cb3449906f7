"""The Bradley–Terry loss, by hand."""

import math

import pytest
import torch

from stages.reward_model.bradley_terry import losses


def test_the_loss_is_that_of_a_coin_with_the_difference_as_log_odds():
    got = losses(torch.tensor([1.0, 2.0, 0.0, -3.0]), torch.tensor([1.0, 0.0, 2.0, -3.5]))
    # σ(0) = 1/2; σ(2) = 1/(1 + e⁻²) = 0.880797; σ(-2) = 0.119203; σ(1/2) = 0.622459
    assert got.tolist() == pytest.approx([math.log(2), 0.126928, 2.126928, 0.474077], abs=1e-6)


def test_only_the_difference_counts_and_its_gradient_is_the_chance_of_being_wrong():
    chosen, rejected = torch.tensor([0.3, 40.0], requires_grad=True), torch.tensor([-0.7, 41.0], requires_grad=True)
    total = losses(chosen, rejected)
    assert torch.allclose(total, losses(chosen + 7, rejected + 7))
    total.sum().backward()
    # -(1 - σ(1)) = -0.268941, -(1 - σ(-1)) = -0.731059
    assert chosen.grad.tolist() == pytest.approx([-0.268941, -0.731059], abs=1e-5)
    assert rejected.grad.tolist() == pytest.approx([0.268941, 0.731059], abs=1e-5)


def test_a_difference_of_a_thousand_is_no_overflow():
    assert losses(torch.tensor([0.0, 1000.0]), torch.tensor([1000.0, 0.0])).tolist() == [1000.0, 0.0]
