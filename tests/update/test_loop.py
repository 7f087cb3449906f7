"""The optimizer loop on a real model: what must not change the gradient does not."""

import polars as pl
import pytest
import torch

from stages.contract.errors import ArtifactError, ConfigError, DivergenceError
from stages.contract.metrics import Meter
from stages.contract.workspace import no_progress
from stages.model.load import load_model
from stages.model.optim import Optimizer
from stages.update.batch import TrainingRow, optimizer_batches, training_rows
from stages.update.config import ClippedLoss, KlConfig, UpdateConfig
from stages.update.loop import accumulate, old_logprobs, train


def rows_of(count=12, seed=0, reference=True):
    """Rows of 2 to 9 prompt tokens and 1 to 20 completion tokens."""
    random = torch.Generator().manual_seed(seed)

    def integers(low, high, n=1):
        return torch.randint(low, high, (n,), generator=random).tolist()

    rows = []
    for _ in range(count):
        [prompt], [completion] = integers(2, 10), integers(1, 21)
        rows.append(
            TrainingRow(
                integers(2, 97, prompt),
                integers(2, 97, completion),
                1.0,
                torch.full((completion,), -4.5),
                torch.randn(1, generator=random).repeat(completion),
                torch.full((completion,), -4.6) if reference else None,
            )
        )
    return rows


def gradient(model, rows, old, **config):
    model.zero_grad()
    meter = Meter()
    accumulate(model, rows, old, UpdateConfig(kl=KlConfig(coefficient=0.1), **config), "cpu", meter)
    return {name: p.grad.clone() for name, p in model.named_parameters()}, meter.result()


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_neither_micro_batch_size_nor_padding_nor_row_order_changes_the_gradient(tiny_policy, aggregation):
    model, rows = load_model(tiny_policy, "cpu"), rows_of()
    old = old_logprobs(model, rows, 4096, "cpu")
    old = [part + 0.1 for part in old]
    loss = ClippedLoss(aggregation=aggregation)
    whole, figures = gradient(model, rows, old, loss=loss, micro_batch_tokens=100_000)
    for budget in (1, 40, 75):
        small, again = gradient(model, rows, old, loss=loss, micro_batch_tokens=budget)
        assert again == pytest.approx(figures, rel=1e-4)
        for name, expected in whole.items():
            assert (small[name] - expected).norm() <= 1e-5 * expected.norm(), (budget, name)
    turned, _ = gradient(model, rows[::-1], old[::-1], loss=loss)
    for name, expected in whole.items():
        assert (turned[name] - expected).norm() <= 1e-5 * expected.norm(), name


def test_the_gradient_is_that_of_the_formula_written_out_row_by_row(tiny_policy):
    model, rows = load_model(tiny_policy, "cpu"), rows_of(5)
    old = [part - 0.15 for part in old_logprobs(model, rows, 4096, "cpu")]
    got, _ = gradient(
        model, rows, old, loss=ClippedLoss(epsilon_low=0.1, epsilon_high=0.3, aggregation="sequence_mean")
    )
    model.zero_grad()
    total = 0.0
    for row, past in zip(rows, old, strict=True):
        ids = torch.tensor([row.prompt + row.completion])
        logs = model(ids).logits[0].log_softmax(-1)[len(row.prompt) - 1 : -1]
        logprob = logs.gather(-1, torch.tensor(row.completion)[:, None])[:, 0]
        ratio = (logprob - past).exp()
        surrogate = torch.minimum(ratio * row.advantages_T, ratio.clamp(0.9, 1.3) * row.advantages_T)
        away = row.reference_T - logprob
        kl = away.exp() - away - 1
        total = total - (surrogate - 0.1 * kl).mean() / len(rows)
    total.backward()
    for name, parameter in model.named_parameters():
        assert (got[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


def test_old_logprobs_do_not_depend_on_the_micro_batch(tiny_policy):
    model, rows = load_model(tiny_policy, "cpu"), rows_of(6)
    one, many = old_logprobs(model, rows, 1, "cpu"), old_logprobs(model, rows, 10_000, "cpu")
    for a, b, row in zip(one, many, rows, strict=True):
        assert len(a) == len(row.completion)
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


def test_each_epoch_takes_each_row_once_in_an_order_of_its_own():
    steps = list(optimizer_batches(10, epochs=2, minibatches=3, seed=4))
    assert [(epoch, minibatch, len(rows)) for epoch, minibatch, rows in steps] == [
        (0, 0, 4), (0, 1, 3), (0, 2, 3), (1, 0, 4), (1, 1, 3), (1, 2, 3)
    ]  # fmt: skip
    orders = [[row for e, _, rows in steps if e == epoch for row in rows] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]
    assert [rows for *_, rows in optimizer_batches(2, 1, 4, 0) if not rows] == []


def test_training_raises_the_probability_of_what_had_a_positive_advantage(tiny_policy):
    model, rows = load_model(tiny_policy, "cpu"), rows_of(8, reference=False)
    before = old_logprobs(model, rows, 4096, "cpu")
    config = UpdateConfig(epochs=2, minibatches=2)
    optimizer = Optimizer(model, config.optimizer.model_copy(update={"learning_rate": 1e-3}))
    steps = train(model, optimizer, rows, before, config, 0, "cpu", no_progress)
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    after = old_logprobs(model, rows, 4096, "cpu")
    moved = sum(float((b - a).mean() * row.advantages_T[0]) for a, b, row in zip(before, after, rows, strict=True))
    assert moved > 0


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tiny_policy):
    model, rows = load_model(tiny_policy, "cpu"), rows_of(4, reference=False)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    old = [torch.full((len(row.completion),), float("nan")) for row in rows]
    config = UpdateConfig()
    with pytest.raises(DivergenceError, match="step 1: the loss is nan"):
        train(model, Optimizer(model, config.optimizer), rows, old, config, 0, "cpu", no_progress)
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())


def frames():
    key = {"prompt_id": ["a", "a", "b"], "sample": [0, 1, 0]}
    rollouts = pl.DataFrame(
        key
        | {
            "prompt_tokens": [[5, 6], [5, 6], [7]],
            "completion_tokens": [[8], [9, 1], [3]],
            "temperature": [1.0] * 3,
            "sampler_logprobs": [[-1.0], [-2.0, -3.0], [-4.0]],
        }
    )
    scores = pl.DataFrame(key | {"reference_logprobs": [[-1.5], [-2.5, -3.5], [-4.5]]}).reverse()
    advantages = pl.DataFrame(key | {"advantages": [[1.0], [-1.0, -1.0], [0.0]], "train": [True, True, False]}).select(
        "prompt_id", "sample", "advantages", "train"
    )
    return rollouts, scores, advantages


def test_rows_are_joined_by_key_never_by_order_and_untrained_ones_left_out():
    rollouts, scores, advantages = frames()
    rows = training_rows(rollouts, scores, advantages, with_reference=True)
    assert [(row.prompt, row.completion) for row in rows] == [([5, 6], [8]), ([5, 6], [9, 1])]
    assert rows[1].reference_T.tolist() == [-2.5, -3.5]
    assert rows[1].sampler_T.tolist() == [-2.0, -3.0]
    assert rows[0].advantages_T.tolist() == [1.0]


def test_tables_that_do_not_fit_are_refused():
    rollouts, scores, advantages = frames()
    with pytest.raises(ArtifactError, match="rollouts and advantages"):
        training_rows(rollouts, scores, advantages.head(2), with_reference=True)
    short = scores.with_columns(pl.Series("reference_logprobs", [[-4.5], [-2.5], [-1.5]]))
    with pytest.raises(ArtifactError, match="reference_logprobs: not one value for each"):
        training_rows(rollouts, short, advantages, with_reference=True)
    without = scores.with_columns(reference_logprobs=pl.lit(None, dtype=pl.List(pl.Float32)))
    with pytest.raises(ConfigError, match=r"score\.reference"):
        training_rows(rollouts, without, advantages, with_reference=True)
