"""Training the critic: its gradient, what must not change it, and that it learns to foretell returns."""

from dataclasses import replace

import pytest
import torch

from stages.contract.errors import DivergenceError
from stages.contract.metrics import Meter
from stages.contract.progress import no_progress
from stages.model.config import OptimizerConfig
from stages.model.critic import starting_critic
from stages.model.load import load_model
from stages.model.optim import Optimizer
from stages.update.config import UpdateConfig
from stages.update.loop import train, with_old_policy
from stages.update.objective import derived
from stages.update.value import CriticTrainer, accumulate_values
from tests.update.test_loop import rows_of


def rows_with_returns(count=8):
    generator = torch.Generator().manual_seed(3)
    rows = []
    for row in rows_of(count, reference=False):
        n = len(row.completion)
        returns, values = torch.randn(2, n, generator=generator)
        rows.append(replace(row, returns_T=returns, values_T=values))
    return rows


def trainee(tiny_policy, clip=None, rate=1e-3):
    critic = starting_critic(tiny_policy, "cpu")
    with torch.no_grad():
        critic.score.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return CriticTrainer(critic, Optimizer(critic, OptimizerConfig(learning_rate=rate)), clip)


def gradient(one, rows, budget):
    one.model.zero_grad()
    meter = Meter()
    accumulate_values(one, rows, budget, "cpu", meter)
    return {name: p.grad.clone() for name, p in one.model.named_parameters()}, derived(meter.result())


@pytest.mark.parametrize("clip", [None, 0.5])
def test_neither_micro_batch_size_nor_row_order_changes_the_critics_gradient(tiny_policy, clip):
    one, rows = trainee(tiny_policy, clip), rows_with_returns()
    whole, figures = gradient(one, rows, 100_000)
    for again_rows, budget in ((rows, 1), (rows, 60), (rows[::-1], 100_000)):
        again, again_figures = gradient(one, again_rows, budget)
        assert again_figures == pytest.approx(figures, rel=1e-4, abs=1e-6)
        for name, expected in whole.items():
            assert (again[name] - expected).norm() <= 1e-5 * max(expected.norm(), 1e-3), name


def test_loss_gradient_and_figures_are_those_of_the_formulas_row_by_row(tiny_policy):
    one, rows = trainee(tiny_policy, clip=0.5), rows_with_returns(4)
    got, figures = gradient(one, rows, 4096)
    one.model.zero_grad()
    total, values = 0.0, []
    for row in rows:
        logits = one.model(torch.tensor([row.prompt + row.completion])).logits[0, :, 0]
        value = logits[len(row.prompt) - 1 : -1]
        near = row.values_T + (value - row.values_T).clamp(-0.5, 0.5)
        total = total + torch.maximum((value - row.returns_T) ** 2, (near - row.returns_T) ** 2).sum() / 2
        values.append(value.detach())
    value, returns = torch.cat(values), torch.cat([row.returns_T for row in rows])
    (total / len(value)).backward()
    for name, parameter in one.model.named_parameters():
        assert (got[name] - parameter.grad).norm() <= 1e-5 * max(parameter.grad.norm(), 1e-3), name
    old = torch.cat([row.values_T for row in rows])
    explained = 1 - (returns - value).var(correction=0) / returns.var(correction=0)
    assert figures == pytest.approx(
        {
            "value_loss": total.item() / len(value),
            "value_mean": value.mean().item(),
            "return_mean": returns.mean().item(),
            "value_clip_fraction": ((value - old).abs() > 0.5).float().mean().item(),
            "explained_variance": explained.item(),
        },
        rel=1e-4,
    )


def test_explained_variance_by_hand():
    # R 0, 2: variance 1; V 0.5, 1.5: errors -0.5, 0.5, variance 0.25
    means = {"return_mean": 1.0, "return_square": 2.0, "error_mean": 0.0, "error_square": 0.25}
    assert derived(means) == {"return_mean": 1.0, "explained_variance": 0.75}
    assert derived(means | {"return_square": 1.0}) == {"return_mean": 1.0}  # constant returns


def test_policy_and_critic_are_trained_in_the_same_steps(tiny_policy):
    model, one = load_model(tiny_policy, "cpu"), trainee(tiny_policy, rate=3e-3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    rows = [replace(row, returns_T=torch.full_like(row.returns_T, i / 8)) for i, row in enumerate(rows_with_returns())]
    rows = with_old_policy(model, rows, 4096, "cpu")
    config = UpdateConfig(epochs=30, minibatches=2)
    optimizer = Optimizer(model, config.optimizer)
    steps = train(model, optimizer, rows, config, 0, "cpu", no_progress, critic=one)
    assert one.optimizer.steps == optimizer.steps == len(steps) == 60
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())
    assert steps[-1]["value_loss"] < 0.1 * steps[0]["value_loss"]
    assert steps[-1]["explained_variance"] > 0.5
    assert {"critic_gradient_norm", "critic_learning_rate"} <= steps[0].keys()


def test_a_value_loss_that_is_not_finite_stops_before_anything_changes(tiny_policy):
    model, one = load_model(tiny_policy, "cpu"), trainee(tiny_policy)
    rows = [replace(row, returns_T=row.returns_T * float("inf")) for row in rows_with_returns(3)]
    rows = with_old_policy(model, rows, 4096, "cpu")
    before = {name: p.clone() for name, p in model.named_parameters()}
    config = UpdateConfig()
    with pytest.raises(DivergenceError, match="step 1: the value loss is"):
        train(model, Optimizer(model, config.optimizer), rows, config, 0, "cpu", no_progress, critic=one)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
