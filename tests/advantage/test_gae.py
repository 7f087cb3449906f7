"""Generalised advantage estimation: by hand, by the definition's sum, and what must hold for any numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.advantage import gae, returns
from stages.advantage.config import Gae, KlReward
from stages.advantage.returns import estimate, reward_to_go
from stages.advantage.stage import advantage_rows
from stages.contract.errors import ArtifactError, ConfigError
from tests.advantage.numbers import gae_by_definition, table

numbers = st.floats(-10, 10, allow_subnormal=False)


@st.composite
def completions(draw, least=0):
    """Rewards and values of a few completions of different lengths."""
    lengths = draw(st.lists(st.integers(least, 7), min_size=1, max_size=6))
    some = [draw(st.lists(numbers, min_size=2 * n, max_size=2 * n)) for n in lengths]
    return [(np.array(row[:n]), np.array(row[n:])) for n, row in zip(lengths, some, strict=True)]


def flat(rows):
    lengths = np.array([len(r) for r, _ in rows])
    return np.concatenate([r for r, _ in rows]), np.concatenate([v for _, v in rows]), lengths


def test_three_tokens_by_hand():
    # γ 1/2, λ 1/2; r 0 0 1, V 2 1 4: δ = 0 + 1/2 - 2, 0 + 2 - 1, 1 - 4 = -1.5, 1, -3
    # A_3 = -3, A_2 = 1 - 3/4 = 0.25, A_1 = -1.5 + 0.25/4 = -1.4375
    got = estimate(np.array([0, 0, 1.0]), np.array([2, 1, 4.0]), np.array([3]), 0.5, 0.5)
    assert got.tolist() == [-1.4375, 0.25, -3.0]
    _, goal = gae.advantages(
        np.array([0, 0, 1.0]),
        np.array([2, 1, 4.0]),
        np.array([3]),
        np.ones(3, dtype=bool),
        Gae(type="gae", gamma=0.5, gae_lambda=0.5),
    )
    assert goal.tolist() == [0.5625, 1.25, 1.0]


@given(completions(), st.floats(0, 1), st.floats(0, 1))
def test_it_is_the_sum_of_the_definition_wherever_a_row_lies(rows, gamma, lam):
    got = estimate(*flat(rows), gamma, lam)
    wanted = [a for r, v in rows for a in gae_by_definition(r, v, gamma, lam)]
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)


@given(completions())
def test_lambda_one_is_the_return_less_the_value_and_lambda_zero_the_one_step_error(rows):
    rewards, values, lengths = flat(rows)
    to_go = [math.fsum(r[t:]) for r, _ in rows for t in range(len(r))]
    np.testing.assert_allclose(estimate(rewards, values, lengths, 1.0, 1.0), np.array(to_go) - values, atol=1e-9)
    step = [r[t] + (v[t + 1] if t + 1 < len(v) else 0) - v[t] for r, v in rows for t in range(len(r))]
    np.testing.assert_allclose(estimate(rewards, values, lengths, 1.0, 0.0), step, atol=1e-9)
    np.testing.assert_allclose(reward_to_go(rewards, lengths, 1.0), to_go, atol=1e-9)


@given(completions(least=1), st.floats(0, 1))
def test_with_the_true_returns_as_values_nothing_is_an_advantage(rows, gamma):
    rewards, _, lengths = flat(rows)
    values = reward_to_go(rewards, lengths, gamma)
    np.testing.assert_allclose(estimate(rewards, values, lengths, gamma, 0.9), 0, atol=1e-9)


@given(completions(least=1), st.data())
def test_a_masked_gap_is_as_if_its_tokens_were_not_there(rows, data):
    masks = [np.array(data.draw(st.lists(st.booleans(), min_size=len(r), max_size=len(r)))) for r, _ in rows]
    for mask in masks:
        mask[0] = True  # what is earned before the first action is no action's
    rewards, values, lengths = flat(rows)
    mask = np.concatenate(masks)
    got = estimate(rewards, values, lengths, 0.9, 0.8, mask)
    assert (got[~mask] == 0).all()
    wanted = []
    for (r, v), m in zip(rows, masks, strict=True):
        at = np.flatnonzero(m)
        earned = [math.fsum(r[start:end]) for start, end in zip(at, [*at[1:], len(r)], strict=True)]
        wanted += gae_by_definition(earned, v[at], 0.9, 0.8)
    np.testing.assert_allclose(got[mask], wanted, rtol=1e-9, atol=1e-9)


def test_rows_that_run_together_do_not_touch(monkeypatch):
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 9, 50)
    rewards, values = rng.normal(size=(2, lengths.sum()))
    whole = estimate(rewards, values, lengths, 0.9, 0.8)
    monkeypatch.setattr(returns, "ROWS_AT_A_TIME", 7)
    np.testing.assert_array_equal(estimate(rewards, values, lengths, 0.9, 0.8), whole)


@given(completions(least=1), st.floats(0.1, 10), numbers)
def test_whitened_advantages_have_mean_0_and_std_1_and_do_not_depend_on_the_rewards_scale(rows, factor, shift):
    rewards, values, lengths = flat(rows)
    counted = np.ones(len(rewards), dtype=bool)
    config = Gae(type="gae", gamma=0.9, eps=0.0)
    got, goal = gae.advantages(rewards, values, lengths, counted, config)
    raw = estimate(rewards, values, lengths, 0.9, 0.95)
    np.testing.assert_allclose(goal, raw + values)  # whitening leaves the returns alone
    if len(raw) > 1 and np.ptp(raw) > 1e-3:
        np.testing.assert_allclose([got.mean(), got.std(ddof=1)], [0, 1], atol=1e-9)
        scaled, _ = gae.advantages(factor * rewards, factor * values, lengths, counted, config)
        np.testing.assert_allclose(scaled, got, atol=1e-6)


def test_whitening_counts_the_tokens_of_rows_that_are_trained_on():
    rows = table(["a", "b", "c"], [1.0, 0.0, None], [2, 1, 3], values=[[0, 0], [0], [9, 9, 9]])
    out, _ = advantage_rows(rows, Gae(type="gae", gae_lambda=1.0, eps=0.0))
    # 1 1 0: mean 2/3, sample variance (2·1/9 + 4/9) / 2 = 1/3
    np.testing.assert_allclose(np.concatenate(out["advantages"][:2].to_list()), np.array([1, 1, -2]) / math.sqrt(3))
    assert out["advantages"][2].to_list() == [0, 0, 0]
    assert out["reason"].to_list() == [None, None, "no reward"]
    assert out["returns"][:2].to_list() == [[1, 1], [0]]


def test_equal_advantages_everywhere_are_whitened_to_nothing():
    rows = table(["a", "b"], [0.35, 0.35], [1, 1], values=[[0.1], [0.1]])
    assert advantage_rows(rows, Gae(type="gae", eps=0.0))[0]["advantages"].to_list() == [[0], [0]]


def test_groups_of_one_and_constant_groups_are_trained_on():
    rows = table(["a", "b", "b"], [1.0, 0.5, 0.5], [1, 1, 1], values=[[0.25], [0.5], [1]])
    out, result = advantage_rows(rows, Gae(type="gae", whiten=False))
    assert out["train"].to_list() == [True] * 3
    assert out["advantages"].to_list() == [[0.75], [0], [-0.5]]
    assert result.figures["constant_group_rows"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("estimator", "clamp", "wanted"),
    [
        ("k1", None, [0.5, -2.0]),
        ("k2", None, [0.125, 2.0]),
        ("k3", None, [math.exp(-0.5) - 0.5, math.exp(2) - 3]),
        ("k1", 1.0, [0.5, -1.0]),
        ("k3", 1.0, [math.exp(-0.5) - 0.5, 1.0]),
    ],
)
def test_a_kl_penalty_is_taken_from_each_tokens_reward(estimator, clamp, wanted):
    rows = table(["a"], [1.0], [2], values=[[0, 0]], sampler_logprobs=[[-1, -3]], reference_logprobs=[[-1.5, -1]])
    kl = KlReward(coefficient=0.1, estimator=estimator, clamp=clamp)
    out, result = advantage_rows(rows, Gae(type="gae", gae_lambda=0.0, whiten=False, kl=kl))
    np.testing.assert_allclose(out["advantages"][0].to_list(), [-0.1 * wanted[0], 1 - 0.1 * wanted[1]], rtol=1e-6)
    assert result.figures["kl_in_reward"] == pytest.approx(sum(wanted) / 2)


def test_rewards_on_the_way_are_earned_where_they_are_and_the_rest_at_the_end():
    rows = table(["a", "b"], [1.0, 2.0], [3, 2], values=[[0] * 3, [0] * 2], token_rewards=[[0.25, 0, 0.25], None])
    out, _ = advantage_rows(rows, Gae(type="gae", gae_lambda=0.0, whiten=False))
    assert out["advantages"].to_list() == [[0.25, 0, 0.75], [0, 2]]


def test_without_a_critics_values_it_says_so():
    with pytest.raises(ConfigError, match="gae needs a critic's values"):
        advantage_rows(table(["a"], [1.0], [1]), Gae(type="gae"))


def test_values_that_are_not_one_for_each_token_are_refused():
    with pytest.raises(ArtifactError, match="values: not one value for each completion token"):
        advantage_rows(table(["a"], [1.0], [2], values=[[1.0]]), Gae(type="gae"))


def test_no_rows_are_no_error():
    out, _ = advantage_rows(table(["a"], [1.0], [1], values=[[1.0]]).head(0), Gae(type="gae"))
    assert out.height == 0
