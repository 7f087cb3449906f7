"""The optimizer loop on a real model: what must not change the gradient does not."""

from dataclasses import replace

import polars as pl
import pytest
import torch

from stages.advantage.filters import CONSTANT
from stages.contract.columns import CONSTANT_GROUP
from stages.contract.errors import ArtifactError, ConfigError, DivergenceError
from stages.contract.metrics import Meter
from stages.contract.progress import no_progress
from stages.model.config import OptimizerConfig
from stages.model.load import load_model
from stages.model.optim import Optimizer
from stages.update.batch import TrainingRow, group_counts, kept_tokens, optimizer_batches, training_rows
from stages.update.config import ClippedLoss, KlConfig, UpdateConfig
from stages.update.loop import accumulate, train, with_old_policy, without_old_policy


def rows_of(count=12, seed=0, reference=True):
    """Rows of 1 to 20 completion tokens; most prompts, of 2 to 9 tokens, are those of several rows."""
    random = torch.Generator().manual_seed(seed)

    def integers(low, high, n=1):
        return torch.randint(low, high, (n,), generator=random).tolist()

    prompts = [integers(2, 97, n) for n in integers(2, 10, 1 + count // 3)]
    rows = []
    for i in range(count):
        [completion] = integers(1, 21)
        rows.append(
            TrainingRow(
                prompts[i * i % len(prompts)],
                integers(2, 97, completion),
                1.0,
                torch.full((completion,), -4.5),
                torch.randn(1, generator=random).repeat(completion),
                torch.full((completion,), -4.6) if reference else None,
            )
        )
    return rows


def gradient(model, rows, factor=1.0, **config):
    model.zero_grad()
    meter = Meter()
    settings = {"kl": KlConfig(coefficient=0.1)} | config
    accumulate(model, rows, UpdateConfig(**settings), "cpu", meter, factor)
    return {name: p.grad.clone() for name, p in model.named_parameters()}, meter.result()


def moved(rows, by):
    """The rows with the old policy's log-probabilities moved, so that ratios are not 1."""
    return [replace(row, old_T=row.old_T + by) for row in rows]


SEQUENCE = {"ratio": "sequence"}
LOSSES = [
    {"type": "clipped"},
    {"type": "clipped", "dual_clip": 3.0} | SEQUENCE,
    {"type": "clipped", "delta": 1.05, "ratio": "sequence_token"},
    {"type": "policy_gradient"},
    {"type": "gpg"},
    {"type": "cispo", "epsilon_high": 0.02},
    {"type": "cispo", "cap": "absolute", "epsilon_high": 5.0} | SEQUENCE,
    {"type": "sapo"},
    {"type": "sapo"} | SEQUENCE,
    {"type": "gmpo", "epsilon_low": 0.05, "epsilon_high": 0.05},
    {"type": "dppo", "threshold": 0.001},
]
AGGREGATIONS = [
    {"aggregation": "sequence_mean"},
    {"aggregation": "token_mean"},
    {"aggregation": "constant", "length": 16},
    {"aggregation": "sequence_sum"},
]
OPTIONS = {
    "plain": {},
    "entropy": {"entropy": {"bonus": 0.01, "top": 0.3}},
    "truncate": {
        "mismatch": {"type": "truncate", "high": 1.05},
        "kl": {"coefficient": 0.1, "estimator": "unbiased_k3"},
    },
    "mask": {"mismatch": {"type": "mask", "level": "sequence", "low": 0.5, "high": 2.0}},
}


def named(loss):
    return "-".join(str(value) for value in loss.values())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=named)
@pytest.mark.parametrize("loss", LOSSES, ids=named)
def test_neither_micro_batch_size_nor_padding_nor_row_order_changes_the_gradient(
    tiny_policy, loss, aggregation, options
):
    model = load_model(tiny_policy, "cpu")
    rows = moved(with_old_policy(model, rows_of(), 4096, "cpu"), 0.1)
    config = {"loss": loss | aggregation} | options
    whole, figures = gradient(model, rows, micro_batch_tokens=100_000, **config)
    for again_rows, budget in ((rows, 1), (rows, 60), (rows[::-1], 100_000)):
        again, again_figures = gradient(model, again_rows, micro_batch_tokens=budget, **config)
        assert again_figures == pytest.approx(figures, rel=1e-4, abs=1e-6)
        assert again_figures["loss"] == pytest.approx(figures["loss"], rel=1e-5, abs=1e-6)
        norm = torch.cat([part.flatten() for part in whole.values()]).norm()
        for name, expected in whole.items():
            assert (again[name] - expected).norm() <= 1e-5 * max(expected.norm(), 1e-2 * norm), (budget, name)


def test_the_gradient_is_that_of_the_formula_written_out_row_by_row(tiny_policy):
    model = load_model(tiny_policy, "cpu")
    rows = moved(with_old_policy(model, rows_of(5), 4096, "cpu"), -0.15)
    loss = ClippedLoss(epsilon_low=0.1, epsilon_high=0.3, aggregation="sequence_mean")
    got, _ = gradient(model, rows, loss=loss)
    model.zero_grad()
    total = 0.0
    for row in rows:
        logprob, _ = plain(model, row)
        ratio = (logprob - row.old_T).exp()
        surrogate = torch.minimum(ratio * row.advantages_T, ratio.clamp(0.9, 1.3) * row.advantages_T)
        away = row.reference_T - logprob
        kl = away.exp() - away - 1
        total = total - (surrogate - 0.1 * kl).mean() / len(rows)
    total.backward()
    for name, parameter in model.named_parameters():
        assert (got[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


def plain(model, row):
    """Log-probabilities and entropies of one row, alone and with all logits at once."""
    logs = model(torch.tensor([row.prompt + row.completion])).logits[0].log_softmax(-1)[len(row.prompt) - 1 : -1]
    return logs.gather(-1, torch.tensor(row.completion)[:, None])[:, 0], -(logs.exp() * logs).sum(-1)


def test_the_gradient_with_bonus_top_entropy_and_mismatch_written_out(tiny_policy):
    model = load_model(tiny_policy, "cpu")
    rows = with_old_policy(model, rows_of(5, reference=False), 4096, "cpu")
    config = {
        "loss": {"type": "clipped", "aggregation": "token_mean"},
        "entropy": {"bonus": 0.3, "top": 0.4},
        "mismatch": {"type": "truncate", "level": "token", "high": 1.1},
        "kl": {"coefficient": 0.0},
    }
    got, figures = gradient(model, rows, **config)
    model.zero_grad()
    tokens = sum(len(row.completion) for row in rows)
    threshold = torch.quantile(torch.cat([row.entropy_T for row in rows]).double(), 0.6)
    total, kept = 0.0, 0
    for row in rows:
        logprob, entropy = plain(model, row)
        weight = (row.old_T - row.sampler_T).exp().clamp(max=1.1)
        on = row.entropy_T.double() >= threshold
        kept += int(on.sum())
        total = total - (on * weight * (logprob - row.old_T).exp() * row.advantages_T + 0.3 * entropy).sum() / tokens
    assert 0.35 < kept / tokens < 0.45
    assert figures["loss"] == pytest.approx(total.item(), rel=1e-5)
    total.backward()
    for name, parameter in model.named_parameters():
        assert (got[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


def test_the_tokens_of_greatest_entropy_are_counted_over_all_rows():
    entropies = [torch.tensor([0.1, 0.9]), torch.tensor([0.5, 0.7, 0.3])]
    assert [kept.tolist() for kept in kept_tokens(entropies, 0.4)] == [[False, True], [False, True, False]]
    assert [kept.tolist() for kept in kept_tokens(entropies, 1.0)] == [[True, True], [True] * 3]
    ties = kept_tokens([torch.full((4,), 0.25)], 0.1)
    assert ties[0].all()


@pytest.mark.parametrize("settings", [{}, {"minibatches": 3, "epochs": 2}], ids=["one step", "six steps"])
def test_the_first_step_tells_the_old_policy_itself(tiny_policy, settings):
    config = UpdateConfig(mismatch={"type": "truncate"}, **settings)
    rows, ends = rows_of(9), []
    spared = without_old_policy(len(rows), config, seed=7)
    assert len(spared) == len(rows) // config.minibatches
    assert without_old_policy(len(rows), UpdateConfig(entropy={"top": 0.5}), seed=7) == frozenset()
    for left_out in (frozenset(), spared):
        model = load_model(tiny_policy, "cpu")
        given = with_old_policy(model, rows, 4096, "cpu", left_out)
        assert {i for i, row in enumerate(given) if row.old_T is None} == left_out
        optimizer = Optimizer(model, OptimizerConfig(learning_rate=1e-2))
        ends.append((train(model, optimizer, given, config, 7, "cpu", no_progress), model.state_dict()))
    (steps, weights), (spared_steps, spared_weights) = ends
    for step, other in zip(steps, spared_steps, strict=True):
        assert other == pytest.approx(step, rel=1e-4, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(spared_weights[name], weight, atol=2e-5, rtol=1e-4)


def test_old_logprobs_do_not_depend_on_the_micro_batch(tiny_policy):
    model, rows = load_model(tiny_policy, "cpu"), rows_of(6)
    one, many = with_old_policy(model, rows, 1, "cpu"), with_old_policy(model, rows, 10_000, "cpu")
    for a, b, row in zip(one, many, rows, strict=True):
        assert len(a.old_T) == len(a.entropy_T) == len(row.completion)
        torch.testing.assert_close(a.old_T, b.old_T, atol=2e-6, rtol=0)
        torch.testing.assert_close(a.entropy_T, b.entropy_T, atol=2e-6, rtol=0)


def test_what_gpg_multiplies_by_multiplies_the_policy_loss_and_nothing_else(tiny_policy):
    model = load_model(tiny_policy, "cpu")
    rows = with_old_policy(model, rows_of(4), 4096, "cpu")
    _, one = gradient(model, rows, loss={"type": "gpg"})
    _, two = gradient(model, rows, factor=2.0, loss={"type": "gpg"})
    assert two["policy_loss"] == pytest.approx(2 * one["policy_loss"], rel=1e-6)
    assert two["kl_loss"] == one["kl_loss"]


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
    model = load_model(tiny_policy, "cpu")
    rows = with_old_policy(model, rows_of(8, reference=False), 4096, "cpu")
    config = UpdateConfig(epochs=2, minibatches=2)
    optimizer = Optimizer(model, config.optimizer.model_copy(update={"learning_rate": 1e-3}))
    steps = train(model, optimizer, rows, config, 0, "cpu", no_progress)
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    after = with_old_policy(model, rows, 4096, "cpu")
    gain = sum(float((b.old_T - a.old_T).mean() * a.advantages_T[0]) for a, b in zip(rows, after, strict=True))
    assert gain > 0


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tiny_policy):
    model = load_model(tiny_policy, "cpu")
    rows = [replace(row, old_T=row.sampler_T * float("nan")) for row in rows_of(4, reference=False)]
    weights = {name: p.clone() for name, p in model.named_parameters()}
    config = UpdateConfig()
    with pytest.raises(DivergenceError, match="step 1: the loss is nan"):
        train(model, Optimizer(model, config.optimizer), rows, config, 0, "cpu", no_progress)
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
    scores = pl.DataFrame(
        key | {"reference_logprobs": [[-1.5], [-2.5, -3.5], [-4.5]], "values": [[0.5], [0.25, 0.75], [0.0]]}
    ).reverse()
    made = {"advantages": [[1.0], [-1.0, -1.0], [0.0]], "returns": [[1.0], [0.5, 2.0], [0.0]]}
    advantages = pl.DataFrame(key | made | {"train": [True, True, False]})
    return rollouts, scores, advantages


def test_rows_are_joined_by_key_never_by_order_and_untrained_ones_left_out():
    rollouts, scores, advantages = frames()
    rows = training_rows(rollouts, scores, advantages, with_reference=True)
    assert [(row.prompt, row.completion) for row in rows] == [([5, 6], [8]), ([5, 6], [9, 1])]
    assert rows[1].reference_T.tolist() == [-2.5, -3.5]
    assert rows[1].sampler_T.tolist() == [-2.0, -3.0]
    assert rows[0].advantages_T.tolist() == [1.0]


def test_values_and_returns_are_joined_where_there_is_a_critic():
    rollouts, scores, advantages = frames()
    rows = training_rows(rollouts, scores, advantages, with_returns=True)
    assert (rows[1].values_T.tolist(), rows[1].returns_T.tolist()) == ([0.25, 0.75], [0.5, 2.0])
    assert training_rows(rollouts, scores, advantages)[1].values_T is None
    without = scores.with_columns(values=pl.lit(None, dtype=pl.List(pl.Float32)))
    with pytest.raises(ConfigError, match="a critic to train, but no values"):
        training_rows(rollouts, without, advantages, with_returns=True)


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


def test_reference_logprobs_that_are_not_needed_are_taken_where_they_are():
    rollouts, scores, advantages = frames()
    assert training_rows(rollouts, scores, advantages, with_reference=False)[0].reference_T.tolist() == [-1.5]
    without = scores.with_columns(reference_logprobs=pl.lit(None, dtype=pl.List(pl.Float32)))
    assert training_rows(rollouts, without, advantages, with_reference=False)[0].reference_T is None


def test_rows_and_tokens_of_constant_groups_are_counted():
    rollouts, _, advantages = frames()

    def counts(*reasons):
        reason = pl.Series(reasons, dtype=pl.String)
        return group_counts(rollouts, advantages.with_columns(reason=reason, train=reason.is_null()))

    assert counts("constant group", "no reward", None) == (2, 2, 2, 1)  # the last row's advantages are 0
    assert counts(None, None, "constant group") == (3, 1, 4, 3)
    assert counts(None, None, None) == (3, 1, 4, 4)
    assert counts(None, None, "no reward") == (2, 0, 3, 3)


def test_the_reason_that_gpg_counts_is_the_one_that_the_filters_give():
    assert CONSTANT == CONSTANT_GROUP
